// The delta rule on the CPU: the recurrence itself.
//
//     e_t = v_t - (f_t S_{t-1})^T k_t,   u_t = beta_t e_t,   S_t = f_t S_{t-1} + k_t u_t^T,
//     o_t = S_t^T q_t
//
// Columns of the state depend on one another in nothing, but all rows of a column on u: a column's
// rows pass through the first cache once a token, which writes token t and reads for token t + 1.
//
// Backward runs this again for u (`advance`), then from the last token the gradient D_t of S_t,
//
//     D_t += q_t do_t^T,   du_t = D_t^T k_t,   de_t = beta_t du_t,
//     D_{t-1} = f_t (D_t - k_t de_t^T)
//
// (`retreat`). With u and de known, both are linear recurrences, and what is summed over values
// follows from tiles in registers, as in `tiles.h` (`sum_values`):
//
//     dq_t = S_t do_t,   dk_t = D_t u_t - f_t S_{t-1} de_t,
//     df_t = sum over values of (D_t - k_t de_t^T) * S_{t-1}
//
// One decay a head needs df summed over keys, too. With <D_t, S_t> the sum of all products it is
//
//     f_t df_t = <D_t, S_t> - de_t . v_t        <D_{t-1}, S_{t-1}> = f_t df_t + q_{t-1} . dq_{t-1}
//
// from the interval's end, where the sum is formed: good to a rounding of the largest in it.

#include "job.h"

namespace {

struct Delta {  // an interval's rows beside those of `Rows`
    float *beta, *kept_k;             // (tokens), and f_t k_t (tokens, keys)
    float *u, *e, *du, *de, *missed;  // (tokens, values), and S_{t-1} de_t (tokens, keys)
};

template <Decay M> inline float factor(const Rows& x, int t, int row) {
    return M == TOKEN ? x.f[t] : x.f[t * x.keys + row];
}

template <int C, Decay M>
void advance(const Rows& x, const Delta& y, float* state, int rows, int column) {
    Vec read[C];
    for (int j = 0; j < C; j++) read[j] = Vec{};
    for (int r = 0; r < rows && x.tokens; r++)
        for (int j = 0; j < C; j++)
            read[j] += y.kept_k[r] * at(state + r * x.values + column + j * W);
    for (int t = 0; t < x.tokens; t++) {
        const float *q = x.q + t * x.keys, *k = x.k + t * x.keys;
        // After the last token what is read is not used.
        const float* next = y.kept_k + (t + 1 < x.tokens ? t + 1 : t) * x.keys;
        Vec u[C], o[C];
        for (int j = 0; j < C; j++) {
            const int place = t * x.values + column + j * W;
            const Vec e = at(x.v + place) - read[j];
            at(y.e + place) = e;
            at(y.u + place) = u[j] = y.beta[t] * e;
            read[j] = o[j] = Vec{};
        }
        for (int r = 0; r < rows; r++) {
            for (int j = 0; j < C; j++) {
                Vec s = at(state + r * x.values + column + j * W);
                if (M != NONE) s *= factor<M>(x, t, r);
                s += k[r] * u[j];
                o[j] += q[r] * s;
                read[j] += next[r] * s;
                at(state + r * x.values + column + j * W) = s;
            }
        }
        for (int j = 0; j < C; j++) at(x.o + t * x.values + column + j * W) = o[j];
    }
}

template <int C, Decay M>
void retreat(const Rows& x, const Delta& y, float* grad, int rows, int column) {
    Vec du[C];
    for (int j = 0; j < C; j++) du[j] = Vec{};
    const int last = x.tokens - 1;
    for (int r = 0; r < rows; r++) {
        for (int j = 0; j < C; j++) {
            Vec& d = at(grad + r * x.values + column + j * W);
            d += x.q[last * x.keys + r] * at(x.grad_o + last * x.values + column + j * W);
            du[j] += x.k[last * x.keys + r] * d;
        }
    }
    for (int t = last; t >= 0; t--) {
        const float* k = x.k + t * x.keys;
        Vec de[C], grad_o[C];
        for (int j = 0; j < C; j++) {
            const int place = t * x.values + column + j * W;
            at(y.du + place) = du[j];
            at(y.de + place) = de[j] = y.beta[t] * du[j];
            grad_o[j] = t ? at(x.grad_o + place - x.values) : Vec{};
            du[j] = Vec{};
        }
        const float *q = x.q + (t ? t - 1 : 0) * x.keys, *before = x.k + (t ? t - 1 : 0) * x.keys;
        for (int r = 0; r < rows; r++) {
            for (int j = 0; j < C; j++) {
                Vec d = at(grad + r * x.values + column + j * W) - k[r] * de[j];
                if (M != NONE) d *= factor<M>(x, t, r);
                d += q[r] * grad_o[j];
                du[j] += before[r] * d;
                at(grad + r * x.values + column + j * W) = d;
            }
        }
    }
}

// state and grad are transposed: a row a value channel.
template <int C, Decay M, bool LEARNED>
void sum_values(const Rows& x, const Delta& y, float* state, float* grad, int row, int column) {
    Vec s[R][C];
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) s[r][j] = at(state + (row + r) * x.keys + column + j * W);
    for (int t = 0; t < x.tokens; t++) {
        const float *u = y.u + t * x.values + row, *grad_o = x.grad_o + t * x.values + row;
        const float *de = y.de + t * x.values + row, *k = x.k + t * x.keys + column;
        float *dq = x.dq + t * x.keys + column, *missed = y.missed + t * x.keys + column;
        float* before = x.history + t * R * C * W;
        for (int j = 0; j < C; j++) {
            const Vec f = M == NONE ? Vec{} : lane_factor<M>(x.f, t, x.keys, column + j * W);
            Vec read = at(dq + j * W), lost = at(missed + j * W);
            for (int r = 0; r < R; r++) {
                if (LEARNED) at(before + (r * C + j) * W) = s[r][j];
                lost += de[r] * s[r][j];
                if (M != NONE) s[r][j] *= f;
                s[r][j] += u[r] * at(k + j * W);
                read += grad_o[r] * s[r][j];
            }
            at(dq + j * W) = read;
            at(missed + j * W) = lost;
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) s[r][j] = at(grad + (row + r) * x.keys + column + j * W);
    for (int t = x.tokens - 1; t >= 0; t--) {
        const float *u = y.u + t * x.values + row, *grad_o = x.grad_o + t * x.values + row;
        const float *de = y.de + t * x.values + row, *before = x.history + t * R * C * W;
        const float *q = x.q + t * x.keys + column, *k = x.k + t * x.keys + column;
        float *dk = x.dk + t * x.keys + column, *df = x.df + t * x.keys + column;
        for (int j = 0; j < C; j++) {
            const Vec f = M == NONE ? Vec{} : lane_factor<M>(x.f, t, x.keys, column + j * W);
            Vec written = at(dk + j * W), through = LEARNED ? at(df + j * W) : Vec{};
            for (int r = 0; r < R; r++) {
                s[r][j] += grad_o[r] * at(q + j * W);
                written += u[r] * s[r][j];
                s[r][j] -= de[r] * at(k + j * W);
                if (LEARNED) through += s[r][j] * at(before + (r * C + j) * W);
                if (M != NONE) s[r][j] *= f;
            }
            at(dk + j * W) = written;
            if (LEARNED) at(df + j * W) = through;
        }
    }
    for (int r = 0; r < R; r++)
        for (int j = 0; j < C; j++) at(grad + (row + r) * x.keys + column + j * W) = s[r][j];
}

// Calls a function of the width for every block of `columns` (whole vectors).
template <class F> void blocks(int columns, F each) {
    tiles(R, columns, [&](auto width, int, int column) { each(width, column); });
}

template <Decay M> struct Interval {
    const Job& job;
    Rows x{};
    Delta y{};
    Workspace space;

    Interval(const Job& job, bool back)
        : job(job), space(size(job, back)) {
        const Problem& p = job.p;
        const size_t length = size_t(p.interval);
        const size_t keys = length * size_t(job.key_row), values = length * size_t(job.value_row);
        x.keys = job.key_row;
        x.values = job.value_row;
        for (float** rows : {&x.q, &x.k, &x.f, &y.kept_k}) *rows = space.take(keys);
        for (float** rows : {&x.v, &x.o, &y.u, &y.e}) *rows = space.take(values);
        y.beta = space.take(length);
        if (!back) return;
        for (float** rows : {&x.dq, &x.dk, &x.df, &y.missed}) *rows = space.take(keys);
        for (float** rows : {&x.grad_o, &y.du, &y.de}) *rows = space.take(values);
        x.history = space.take(length * R * 4 * W);
    }
    static size_t size(const Job& job, bool back) {
        const size_t length = size_t(job.p.interval);
        const size_t rows = size_t(8 * job.key_row + 7 * job.value_row + R * 4 * W + 1);
        return length * (back ? rows : size_t(4 * job.key_row + 4 * job.value_row + 1)) +
               4 * size_t(job.key_row) * size_t(job.value_row);
    }
    void load(int64_t first, bool& risen) {
        const int64_t left = job.end - first;
        x.tokens = int(left < job.p.interval ? left : job.p.interval);
        job.prepare(first, x, nullptr, nullptr, risen);
        job.load(job.p.v, first, x.tokens, job.values, x.v, x.values);
        job.load(job.p.beta, first, x.tokens, 1, y.beta, 1);
        for (int t = 0; t < x.tokens; t++)
            for (int i = 0; i < job.keys; i++)
                y.kept_k[t * x.keys + i] =
                    x.k[t * x.keys + i] * (M == NONE ? 1.0f : factor<M>(x, t, i));
    }
};

template <Decay M> void forward(const Job& job, bool& risen) {
    const Problem& p = job.p;
    Interval<M> part(job, false);
    float* state = part.space.take(size_t(job.key_row) * size_t(job.value_row));
    if (p.initial) job.unpack(p.initial + job.place() * job.size(), state);
    int64_t number = 0;
    for (int64_t first = job.start; first < job.end; first += p.interval, number++) {
        job.pack(state, job.state(number));
        part.load(first, risen);
        blocks(job.value_row, [&](auto width, int column) {
            advance<decltype(width)::value, M>(part.x, part.y, state, job.keys, column);
        });
        job.save(part.x.o, part.x.values, p.o, first, part.x.tokens, job.values);
    }
    job.pack(state, p.final + job.place() * job.size());
}

template <Decay M, bool LEARNED> void backward(const Job& job, bool& risen) {
    const Problem& p = job.p;
    Interval<M> part(job, true);
    Rows& x = part.x;
    Delta& y = part.y;
    const size_t whole = size_t(job.key_row) * size_t(job.value_row);
    float *state = part.space.take(whole), *turned = part.space.take(whole);
    float *grad = part.space.take(whole), *grad_turned = part.space.take(whole);
    if (p.dfinal) {
        job.unpack(p.dfinal + job.place() * job.size(), grad);
        job.turn(p.dfinal + job.place() * job.size(), grad_turned);
    }
    const int64_t intervals = (job.end - job.start + p.interval - 1) / p.interval;
    for (int64_t number = intervals - 1; number >= 0; number--) {
        const int64_t first = job.start + number * p.interval;
        job.unpack(job.state(number), state);
        job.turn(job.state(number), turned);
        part.load(first, risen);
        job.load(p.grad_o, first, x.tokens, job.values, x.grad_o, x.values);
        for (float* rows : {x.dq, x.dk, x.df, y.missed})
            std::memset(rows, 0, sizeof(float) * size_t(x.tokens) * size_t(x.keys));
        blocks(job.value_row, [&](auto width, int column) {
            advance<decltype(width)::value, M>(x, y, state, job.keys, column);
        });
        double held = 0;  // <D, S> at the interval's end, less what its last token reads
        for (size_t i = 0; LEARNED && M == TOKEN && i < whole; i++)
            held += double(grad[i]) * state[i];
        blocks(job.value_row, [&](auto width, int column) {
            retreat<decltype(width)::value, M>(x, y, grad, job.keys, column);
        });
        tiles((job.values + R - 1) / R * R, job.key_row, [&](auto width, int row, int column) {
            sum_values<decltype(width)::value, M, LEARNED && M == CHANNEL>(
                x, y, turned, grad_turned, row, column);
        });
        for (int t = x.tokens - 1; t >= 0; t--) {
            double share = 0, written = 0;
            for (int i = 0; i < job.values; i++) {
                const int place = t * x.values + i;
                share += double(y.du[place]) * y.e[place];
                written += double(y.de[place]) * x.v[place];
            }
            for (int i = 0; i < job.keys; i++) {
                const int place = t * x.keys + i;
                const float f = M == NONE ? 1.0f : factor<M>(x, t, i);
                x.dk[place] -= f * y.missed[place];
                if (M == CHANNEL) x.df[place] *= f;
                if (M == TOKEN) held += double(x.q[place]) * x.dq[place];
            }
            y.beta[t] = float(share);
            if (M == TOKEN) {
                held = x.f[t] == 0 ? 0 : held - written;
                x.df[t] = float(held);
            }
        }
        job.save(x.dq, x.keys, p.dq, first, x.tokens, job.keys);
        job.save(x.dk, x.keys, p.dk, first, x.tokens, job.keys);
        job.save(y.de, x.values, p.dv, first, x.tokens, job.values);
        job.save(y.beta, 1, p.dbeta, first, x.tokens, 1);
        if (LEARNED && M == TOKEN) job.save(x.df, 1, p.ddecay, first, x.tokens, 1);
        if (LEARNED && M == CHANNEL) job.save(x.df, x.keys, p.ddecay, first, x.tokens, job.keys);
    }
    job.pack(grad, p.dinitial + job.place() * job.size());
}

}  // namespace

extern "C" {

int linscale_delta_forward(const Problem* p) {
    return run_recurrence(*p, p->mode == MODE_NONE    ? forward<NONE>
                              : p->mode == MODE_TOKEN ? forward<TOKEN>
                                                      : forward<CHANNEL>);
}

int linscale_delta_backward(const Problem* p) {
    const Work by_token = p->learned ? backward<TOKEN, true> : backward<TOKEN, false>;
    const Work by_channel = p->learned ? backward<CHANNEL, true> : backward<CHANNEL, false>;
    return run_recurrence(*p, p->mode == MODE_NONE    ? backward<NONE, false>
                              : p->mode == MODE_TOKEN ? by_token
                                                      : by_channel);
}

}  // extern "C"
