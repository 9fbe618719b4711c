// Causal softmax attention on the CPU: queries in the lanes of vectors, keys one after another.
//
//     o_t = sum_{s <= t} p_ts v_s,   p_ts = exp(q_t . k_s - l_t),
//     l_t = log sum_{s <= t} exp(q_t . k_s)
//
// with the scale of the scores on q. A tile of L queries meets the keys block by block with a
// running maximum (arXiv 2205.14135), so that no matrix of T x T is formed. With queries in the
// lanes a head dimension of 8 fills vectors as 64 does. Scores and sums are in float32 whatever the
// tensors are in. A sequence and key-value head is one job: results do not depend on threads.

#include "common.h"

extern "C" {

struct Attention {
    Array q, k, v, o, grad_o, dq, dk, dv;
    float* log_sum;  // (B, H, T): l
    double scale;
    int64_t batch, tokens, heads, groups, channels, threads;  // groups: key-value heads
};

}  // extern "C"

namespace {

constexpr int L = 2 * W;  // queries of a tile
constexpr int BLOCK = 64;  // keys of a block
constexpr float FAR = -1e30f;  // a score that counts as none

// s (n, L): products of the keys' rows with the queries in the lanes of q (channels, L).
template <int J> void products(const float* q, const float* k, int stride, int channels, float* s) {
    Vec a[J], b[J];
    for (int j = 0; j < J; j++) a[j] = b[j] = Vec{};
    for (int c = 0; c < channels; c++) {
        const Vec first = at(q + c * L), second = at(q + c * L + W);
        for (int j = 0; j < J; j++) {
            a[j] += k[j * stride + c] * first;
            b[j] += k[j * stride + c] * second;
        }
    }
    for (int j = 0; j < J; j++) {
        at(s + j * L) = a[j];
        at(s + j * L + W) = b[j];
    }
}
void score(const float* q, const float* k, int stride, int channels, int keys, float* s) {
    int j = 0;
    for (; j + 8 <= keys; j += 8) products<8>(q, k + j * stride, stride, channels, s + j * L);
    for (; j < keys; j++) products<1>(q, k + j * stride, stride, channels, s + j * L);
}

// o (stride, L) += sum over keys of the lanes' weights p (keys, L) times the keys' rows.
void gather(const float* p, const float* rows, int stride, int channels, int keys, float* o) {
    for (int c = 0; c < channels; c += 4) {
        Vec a[4], b[4];
        for (int i = 0; i < 4; i++) {
            a[i] = at(o + (c + i) * L);
            b[i] = at(o + (c + i) * L + W);
        }
        for (int j = 0; j < keys; j++) {
            const Vec first = at(p + j * L), second = at(p + j * L + W);
            for (int i = 0; i < 4; i++) {
                a[i] += rows[j * stride + c + i] * first;
                b[i] += rows[j * stride + c + i] * second;
            }
        }
        for (int i = 0; i < 4; i++) {
            at(o + (c + i) * L) = a[i];
            at(o + (c + i) * L + W) = b[i];
        }
    }
}

// Gradients of keys (keys, stride) += sum over queries of p (keys, L) times the queries' rows.
template <int J, int C>
void spread_tile(const float* p, const float* rows, int stride, float* grad) {
    Vec sum[J][C];
    for (int j = 0; j < J; j++)
        for (int c = 0; c < C; c++) sum[j][c] = at(grad + j * stride + c * W);
    for (int t = 0; t < L; t++)
        for (int j = 0; j < J; j++)
            for (int c = 0; c < C; c++) sum[j][c] += p[j * L + t] * at(rows + t * stride + c * W);
    for (int j = 0; j < J; j++)
        for (int c = 0; c < C; c++) at(grad + j * stride + c * W) = sum[j][c];
}
template <int C>
void spread_columns(const float* p, const float* rows, int stride, int keys, float* grad) {
    int j = 0;
    for (; j + 4 <= keys; j += 4) spread_tile<4, C>(p + j * L, rows, stride, grad + j * stride);
    for (; j < keys; j++) spread_tile<1, C>(p + j * L, rows, stride, grad + j * stride);
}
void spread(const float* p, const float* rows, int stride, int keys, float* grad) {
    int c = 0;
    for (; c + 4 * W <= stride; c += 4 * W) spread_columns<4>(p, rows + c, stride, keys, grad + c);
    for (; c + 2 * W <= stride; c += 2 * W) spread_columns<2>(p, rows + c, stride, keys, grad + c);
    for (; c < stride; c += W) spread_columns<1>(p, rows + c, stride, keys, grad + c);
}

// Rows of up to L tokens to (channels, L) with a factor, and back; absent tokens are zeros.
void turn(const float* rows, int stride, int channels, float factor, float* lanes) {
    for (int t = 0; t < L; t++)
        for (int c = 0; c < channels; c++) lanes[c * L + t] = factor * rows[t * stride + c];
}
void turn_back(const float* lanes, int stride, int channels, int tokens, float* rows) {
    for (int t = 0; t < tokens; t++)
        for (int c = 0; c < channels; c++) rows[t * stride + c] = lanes[c * L + t];
}

// Scores of keys behind their query are none: the key of row j is `ahead` + j tokens behind the
// tile's first query.
void mask(float* s, int keys, int64_t ahead) {
    for (int j = 0; j < keys; j++)
        for (int64_t t = 0; t < L && t < ahead + j; t++) s[j * L + t] = FAR;
}

struct Keys {  // rows of one job's keys and values
    int stride;
    float *k, *v;
};

void forward_head(const Attention& p, int64_t row, int64_t head, const Keys& keys,
                  Workspace space) {
    const int channels = int(p.channels), stride = keys.stride;
    float *rows = space.take(L * stride), *q = space.take(L * stride), *o = space.take(L * stride);
    float *s = space.take(BLOCK * L), *factors = space.take(L);
    const int64_t tokens = p.tokens;
    float* log_sum = p.log_sum + (row * p.heads + head) * tokens;
    for (int64_t first = 0; first < tokens; first += L) {
        const int count = int(tokens - first < L ? tokens - first : L);
        std::memset(rows, 0, sizeof(float) * L * stride);
        load_rows(p.q, row, head, first, count, channels, rows, stride);
        turn(rows, stride, channels, float(p.scale), q);
        std::memset(o, 0, sizeof(float) * L * stride);
        Vec top[2] = {FAR + Vec{}, FAR + Vec{}}, sum[2] = {Vec{}, Vec{}};
        for (int64_t begin = 0; begin < first + count; begin += BLOCK) {
            const int64_t end = first + count;
            const int n = int(end - begin < BLOCK ? end - begin : BLOCK);
            score(q, keys.k + begin * stride, stride, channels, n, s);
            if (begin + n - 1 > first) mask(s, n, begin - first);
            for (int half = 0; half < 2; half++) {
                Vec peak = top[half];
                for (int j = 0; j < n; j++) {
                    const Vec x = at(s + j * L + half * W);
                    peak = x > peak ? x : peak;
                }
                const Vec shrink = exp_of(top[half] - peak);
                Vec total = sum[half] * shrink;
                for (int j = 0; j < n; j++) {
                    Vec& x = at(s + j * L + half * W);
                    x = exp_of(x - peak);
                    total += x;
                }
                top[half] = peak;
                sum[half] = total;
                if (begin > 0)
                    for (int c = 0; c < channels; c++) at(o + c * L + half * W) *= shrink;
            }
            gather(s, keys.v + begin * stride, stride, channels, n, o);
        }
        for (int half = 0; half < 2; half++) {
            at(factors + half * W) = 1.0f / sum[half];
            for (int c = 0; c < channels; c++) at(o + c * L + half * W) *= at(factors + half * W);
        }
        for (int t = 0; t < count; t++)
            log_sum[first + t] = top[t / W][t % W] + std::log(sum[t / W][t % W]);
        turn_back(o, stride, channels, count, rows);
        save_rows(rows, stride, p.o, row, head, first, count, channels);
    }
}

void backward_head(const Attention& p, int64_t row, int64_t head, const Keys& keys, float* dk,
                   float* dv, Workspace space) {
    const int channels = int(p.channels), stride = keys.stride;
    float *rows = space.take(L * stride), *grad_rows = space.take(L * stride);
    float *q = space.take(L * stride), *grad_o = space.take(L * stride);
    float *dq = space.take(L * stride), *o = space.take(L * stride);
    float *s = space.take(BLOCK * L), *ds = space.take(BLOCK * L);
    float *level = space.take(L), *delta = space.take(L);
    const int64_t tokens = p.tokens;
    const float scale = float(p.scale);
    const float* log_sum = p.log_sum + (row * p.heads + head) * tokens;
    for (int64_t first = 0; first < tokens; first += L) {
        const int count = int(tokens - first < L ? tokens - first : L);
        for (float* x : {rows, grad_rows, o}) std::memset(x, 0, sizeof(float) * L * stride);
        load_rows(p.q, row, head, first, count, channels, rows, stride);
        load_rows(p.grad_o, row, head, first, count, channels, grad_rows, stride);
        load_rows(p.o, row, head, first, count, channels, o, stride);
        for (int t = 0; t < L; t++) {
            float sum = 0;
            for (int c = 0; c < channels; c++) {
                sum += grad_rows[t * stride + c] * o[t * stride + c];
                rows[t * stride + c] *= scale;
            }
            delta[t] = sum;
            level[t] = t < count ? log_sum[first + t] : -FAR;
        }
        turn(rows, stride, channels, 1, q);
        turn(grad_rows, stride, channels, 1, grad_o);
        std::memset(dq, 0, sizeof(float) * L * stride);
        for (int64_t begin = 0; begin < first + count; begin += BLOCK) {
            const int64_t end = first + count;
            const int n = int(end - begin < BLOCK ? end - begin : BLOCK);
            const float *k = keys.k + begin * stride, *v = keys.v + begin * stride;
            score(q, k, stride, channels, n, s);
            if (begin + n - 1 > first) mask(s, n, begin - first);
            score(grad_o, v, stride, channels, n, ds);
            for (int i = 0; i < n * L; i += W) {
                const Vec weight = exp_of(at(s + i) - at(level + i % L));
                at(s + i) = weight;
                at(ds + i) = weight * (at(ds + i) - at(delta + i % L));
            }
            gather(ds, k, stride, channels, n, dq);
            spread(ds, rows, stride, n, dk + begin * stride);
            spread(s, grad_rows, stride, n, dv + begin * stride);
        }
        for (int i = 0; i < channels * L; i += W) at(dq + i) *= scale;
        turn_back(dq, stride, channels, count, rows);
        save_rows(rows, stride, p.dq, row, head, first, count, channels);
    }
}

// Workspace of a tile, in floats, and of the rows of one job.
size_t tile_size(int stride) { return size_t(6 * L * stride + 2 * BLOCK * L + 3 * L + 160); }

}  // namespace

extern "C" {

int linscale_attention_forward(const Attention* given) {
    const Attention& p = *given;
    const int stride = padded(int(p.channels));
    return run_jobs(p.batch * p.groups, p.threads, [&](int64_t job, bool&) {
        const int64_t row = job / p.groups, group = job % p.groups, share = p.heads / p.groups;
        const size_t all = size_t(p.tokens * stride);
        Workspace space(2 * all + tile_size(stride) + 64);
        const Keys keys{stride, space.take(all), space.take(all)};
        load_rows(p.k, row, group, 0, int(p.tokens), int(p.channels), keys.k, stride);
        load_rows(p.v, row, group, 0, int(p.tokens), int(p.channels), keys.v, stride);
        for (int64_t i = 0; i < share; i++) {
            Workspace tile(tile_size(stride));
            forward_head(p, row, group * share + i, keys, std::move(tile));
        }
    });
}

int linscale_attention_backward(const Attention* given) {
    const Attention& p = *given;
    const int stride = padded(int(p.channels));
    return run_jobs(p.batch * p.groups, p.threads, [&](int64_t job, bool&) {
        const int64_t row = job / p.groups, group = job % p.groups, share = p.heads / p.groups;
        const size_t all = size_t(p.tokens * stride);
        Workspace space(4 * all + 64);
        const Keys keys{stride, space.take(all), space.take(all)};
        float *dk = space.take(all), *dv = space.take(all);
        load_rows(p.k, row, group, 0, int(p.tokens), int(p.channels), keys.k, stride);
        load_rows(p.v, row, group, 0, int(p.tokens), int(p.channels), keys.v, stride);
        for (int64_t i = 0; i < share; i++) {
            Workspace tile(tile_size(stride));
            backward_head(p, row, group * share + i, keys, dk, dv, std::move(tile));
        }
        save_rows(dk, stride, p.dk, row, group, 0, int(p.tokens), int(p.channels));
        save_rows(dv, stride, p.dv, row, group, 0, int(p.tokens), int(p.channels));
    });
}

}  // extern "C"
