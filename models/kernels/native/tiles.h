// Tiles of the recurrence, and of its gradients', over an interval of tokens.
//
// A tile of R rows by C vectors of the state stays in registers, while the small rows of q, k, v
// and o pass through the first cache. Sums over keys keep values in the lanes of a vector
// (`read_write`, `back_values`), sums over values keep keys there (`back_keys`): no sum goes across
// lanes.

#pragma once

#include "common.h"

namespace {

constexpr int R = 4;  // rows of a tile; W is a multiple of it

enum Decay { NONE, CONSTANT, TOKEN, CHANNEL };  // as the recurrence sees it

// The factor of row r (values in the lanes) and of vector j (keys in the lanes) at token t.
template <Decay M> inline float row_factor(const float* f, int t, int stride, int r) {
    return M == CONSTANT ? f[0] : M == TOKEN ? f[t] : f[t * stride + r];
}
template <Decay M> inline Vec lane_factor(const float* f, int t, int stride, int lane) {
    if (M == CHANNEL) return at(f + t * stride + lane);
    return (M == CONSTANT ? f[0] : f[t]) + Vec{};
}

struct Rows {  // of one interval and head, padded with zeros to whole vectors
    int tokens, keys, values;  // keys and values: length of a row
    float *q, *k, *f, *v, *o, *grad_o, *dq, *dk, *dv, *df, *history;
};

template <int C, Decay M> void read_write(const Rows& x, float* state, int row, int column) {
    Vec s[R][C];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) s[r][j] = at(state + (row + r) * x.values + column + j * W);
    for (int t = 0; t < x.tokens; t++) {
        const float *v = x.v + t * x.values + column, *q = x.q + t * x.keys + row;
        const float* k = x.k + t * x.keys + row;
        float* o = x.o + t * x.values + column;
        Vec sum[C];
        for (int j = 0; j < C; j++) sum[j] = at(o + j * W);
        for (int r = 0; r < R; r++) {
            for (int j = 0; j < C; j++) {
                if (M != NONE) s[r][j] *= row_factor<M>(x.f, t, x.keys, row + r);
                s[r][j] += k[r] * at(v + j * W);
                sum[j] += q[r] * s[r][j];
            }
        }
        for (int j = 0; j < C; j++) at(o + j * W) = sum[j];
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) at(state + (row + r) * x.values + column + j * W) = s[r][j];
}

template <int C, Decay M> void back_values(const Rows& x, float* grad, int row, int column) {
    Vec d[R][C];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) d[r][j] = at(grad + (row + r) * x.values + column + j * W);
    for (int t = x.tokens - 1; t >= 0; t--) {
        const float *grad_o = x.grad_o + t * x.values + column, *q = x.q + t * x.keys + row;
        const float* k = x.k + t * x.keys + row;
        float* dv = x.dv + t * x.values + column;
        Vec sum[C];
        for (int j = 0; j < C; j++) sum[j] = at(dv + j * W);
        for (int r = 0; r < R; r++) {
            for (int j = 0; j < C; j++) {
                d[r][j] += q[r] * at(grad_o + j * W);
                sum[j] += k[r] * d[r][j];
                if (M != NONE) d[r][j] *= row_factor<M>(x.f, t, x.keys, row + r);
            }
        }
        for (int j = 0; j < C; j++) at(dv + j * W) = sum[j];
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) at(grad + (row + r) * x.values + column + j * W) = d[r][j];
}

// state and grad are transposed here: a row a value channel.
template <int C, Decay M, bool LEARNED>
void back_keys(const Rows& x, float* state, float* grad, int row, int column) {
    Vec s[R][C];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) s[r][j] = at(state + (row + r) * x.keys + column + j * W);
    for (int t = 0; t < x.tokens; t++) {
        const float *v = x.v + t * x.values + row, *grad_o = x.grad_o + t * x.values + row;
        const float* k = x.k + t * x.keys + column;
        float *dq = x.dq + t * x.keys + column, *before = x.history + t * R * C * W;
        Vec sum[C];
        for (int j = 0; j < C; j++) sum[j] = at(dq + j * W);
        for (int j = 0; j < C; j++) {
            const Vec f = M == NONE ? Vec{} : lane_factor<M>(x.f, t, x.keys, column + j * W);
            for (int r = 0; r < R; r++) {
                if (LEARNED) at(before + (r * C + j) * W) = s[r][j];
                if (M != NONE) s[r][j] *= f;
                s[r][j] += v[r] * at(k + j * W);
                sum[j] += grad_o[r] * s[r][j];
            }
        }
        for (int j = 0; j < C; j++) at(dq + j * W) = sum[j];
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) s[r][j] = at(grad + (row + r) * x.keys + column + j * W);
    for (int t = x.tokens - 1; t >= 0; t--) {
        const float *v = x.v + t * x.values + row, *grad_o = x.grad_o + t * x.values + row;
        const float *q = x.q + t * x.keys + column, *before = x.history + t * R * C * W;
        float *dk = x.dk + t * x.keys + column, *df = x.df + t * x.keys + column;
        Vec sum[C], through[C];
        for (int j = 0; j < C; j++) sum[j] = at(dk + j * W);
        for (int j = 0; LEARNED && j < C; j++) through[j] = at(df + j * W);
        for (int j = 0; j < C; j++) {
            const Vec f = M == NONE ? Vec{} : lane_factor<M>(x.f, t, x.keys, column + j * W);
            for (int r = 0; r < R; r++) {
                s[r][j] += grad_o[r] * at(q + j * W);
                sum[j] += v[r] * s[r][j];
                if (LEARNED) through[j] += s[r][j] * at(before + (r * C + j) * W);
                if (M != NONE) s[r][j] *= f;
            }
        }
        for (int j = 0; j < C; j++) at(dk + j * W) = sum[j];
        for (int j = 0; LEARNED && j < C; j++) at(df + j * W) = through[j];
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) at(grad + (row + r) * x.keys + column + j * W) = s[r][j];
}

// Calls a function of the tile's width for every tile of `rows` by `columns` (whole vectors).
template <class F> void tiles(int rows, int columns, F each) {
    for (int column = 0, left = columns / W; left > 0;) {
        const int width = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int row = 0; row < rows; row += R) {
            if (width == 4) each(std::integral_constant<int, 4>{}, row, column);
            else if (width == 2) each(std::integral_constant<int, 2>{}, row, column);
            else each(std::integral_constant<int, 1>{}, row, column);
        }
        column += width * W;
        left -= width;
    }
}

}  // namespace
