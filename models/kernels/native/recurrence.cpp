// Linear attention with decay on the CPU: the recurrence itself, with the state in registers.
//
//     S_t = diag(f_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t
//
// The recurrence takes 4 K V FLOPs a token, fewer than any form by chunks. What makes it slow in
// plain code is that the state passes through memory for every token. Here a tile of R rows by C
// vectors of the state stays in registers over an interval of tokens, while the small rows of q, k,
// v and o pass through the first cache.
//
// Backward takes the states that forward stored, one an interval, and runs the recurrence again
// beside that of the gradient D_t of S_t:
//
//     D_t += q_t do_t^T,   dv_t = D_t^T k_t,   dk_t = D_t v_t,   dq_t = S_t do_t,
//     df_t = sum over values of D_t * S_{t-1},   D_{t-1} = diag(f_t) D_t
//
// Sums over keys keep values in the lanes of a vector (`read_write`, `back_values`), sums over
// values keep keys there (`back_keys`), so that no sum goes across lanes. Each sequence and head is
// one job with a fixed order of sums: results do not depend on the number of threads.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int R = 4;  // rows of a tile; W is a multiple of it
typedef float Vec __attribute__((vector_size(W * sizeof(float)), may_alias));

enum Decay { NONE, CONSTANT, TOKEN, CHANNEL };  // as the recurrence sees it
enum Mode : int64_t { MODE_NONE, MODE_HEAD, MODE_TOKEN, MODE_CHANNEL, MODE_GATE };

inline Vec& at(float* p) { return *reinterpret_cast<Vec*>(p); }
inline const Vec& at(const float* p) { return *reinterpret_cast<const Vec*>(p); }

// The factor of row r (values in the lanes) and of vector j (keys in the lanes) at token t.
template <Decay M> inline float row_factor(const float* f, int t, int stride, int r) {
    return M == CONSTANT ? f[0] : M == TOKEN ? f[t] : f[t * stride + r];
}
template <Decay M> inline Vec lane_factor(const float* f, int t, int stride, int lane) {
    if (M == CHANNEL) return at(f + t * stride + lane);
    return (M == CONSTANT ? f[0] : f[t]) + Vec{};
}

// exp of numbers up to 0, to 2 units in the last place; 0 below the smallest normal number.
inline Vec exp_of(Vec x) {
    typedef int32_t Int __attribute__((vector_size(sizeof(Vec))));
    const Vec lowest = -87.33f + Vec{}, clamped = x < lowest ? lowest : x;
    const Vec shifted = clamped * 1.44269504f + 12582912.0f;  // rounds to an integer in low bits
    const Vec n = shifted - 12582912.0f;
    const Vec r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec y = 1.9875691500e-4f * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    Int bits, power = __builtin_convertvector(n, Int);
    std::memcpy(&bits, &y, sizeof bits);
    bits += power << 23;
    std::memcpy(&y, &bits, sizeof y);
    return x < lowest ? Vec{} : y;
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

enum Type : int64_t { FLOAT32, BFLOAT16 };

inline float widen(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}
inline uint16_t narrow(float x) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

int padded(int n) { return (n + W - 1) / W * W; }

}  // namespace

extern "C" {

struct Array {  // (B, T, H, D): strides in elements, of D one
    void* data;
    int64_t batch, token, head, type;
};

struct Problem {
    Array q, k, v, o, grad_o, dq, dk, dv;
    Array decay, ddecay;     // by token, or by token and channel: logarithms
    const float* constant;   // logarithms of a head, (H,), or bounds of HGRN2, (H, K)
    float* dconstant;        // (N, H) or (N, H, K)
    const float* initial;    // (N, H, K, V) or null
    float* final;            // (N, H, K, V)
    float* states;           // (slots, B, H, K, V)
    const float* dfinal;     // (N, H, K, V) or null
    float* dinitial;         // (N, H, K, V)
    const int64_t* bounds;   // (N + 1) tokens of packed sequences, or null
    const int64_t* slots;    // (N) first slot of each packed sequence, or null
    int64_t sequences, batch, tokens, heads, keys, values, mode, learned, interval, threads;
};

}  // extern "C"

namespace {

struct Workspace {  // zeros, in pieces that begin at a cache line
    std::vector<float> memory;
    float* next;
    explicit Workspace(size_t floats) : memory(floats + 16 * 32) {
        const auto address = reinterpret_cast<uintptr_t>(memory.data());
        next = memory.data() + ((64 - address % 64) % 64) / sizeof(float);
    }
    float* take(size_t floats) {
        float* result = next;
        next += (floats + 15) / 16 * 16;
        return result;
    }
};

// One sequence and head of a problem.
struct Job {
    const Problem& p;
    int64_t sequence, head, row, start, end, slot;
    int keys, values, key_row, value_row;  // channels, and the padded rows that hold them

    Job(const Problem& problem, int64_t number) : p(problem) {
        sequence = number / p.heads;
        head = number % p.heads;
        row = p.bounds ? 0 : sequence;
        start = p.bounds ? p.bounds[sequence] : 0;
        end = p.bounds ? p.bounds[sequence + 1] : p.tokens;
        slot = p.slots ? p.slots[sequence] : 0;
        keys = int(p.keys);
        values = int(p.values);
        key_row = padded(keys);
        value_row = padded(values);
    }
    size_t size() const { return size_t(p.keys * p.values); }
    size_t place() const { return size_t(sequence * p.heads + head); }
    float* state(int64_t interval) const {
        const int64_t batch = p.bounds ? 1 : p.batch;
        return p.states + (((slot + interval) * batch + row) * p.heads + head) * int64_t(size());
    }
    void load(const Array& from, int64_t first, int tokens, int width, float* to, int stride) const {
        for (int t = 0; t < tokens; t++) {
            const int64_t offset = row * from.batch + (first + t) * from.token + head * from.head;
            float* target = to + t * stride;
            if (from.type == FLOAT32) {
                std::memcpy(target, static_cast<const float*>(from.data) + offset, width * 4);
            } else {
                const auto* source = static_cast<const uint16_t*>(from.data) + offset;
                for (int i = 0; i < width; i++) target[i] = widen(source[i]);
            }
        }
    }
    void save(const float* from, int stride, const Array& to, int64_t first, int tokens,
              int width) const {
        for (int t = 0; t < tokens; t++) {
            const int64_t offset = row * to.batch + (first + t) * to.token + head * to.head;
            const float* source = from + t * stride;
            if (to.type == FLOAT32) {
                std::memcpy(static_cast<float*>(to.data) + offset, source, width * 4);
            } else {
                auto* target = static_cast<uint16_t*>(to.data) + offset;
                for (int i = 0; i < width; i++) target[i] = narrow(source[i]);
            }
        }
    }
    void unpack(const float* from, float* to) const {  // (K, V) to padded rows
        for (int r = 0; r < keys; r++) std::memcpy(to + r * value_row, from + r * values, values * 4);
    }
    void pack(const float* from, float* to) const {
        for (int r = 0; r < keys; r++) std::memcpy(to + r * values, from + r * value_row, values * 4);
    }
    void turn(const float* from, float* to) const {  // (K, V) to (V, K) in padded rows
        for (int r = 0; r < keys; r++)
            for (int c = 0; c < values; c++) to[c * key_row + r] = from[r * values + c];
    }
    // Keys and factors of an interval; of HGRN2, sigmoid(x) and its complement are kept in gate.
    void keys_and_factors(int64_t first, Rows& x, float* gate, float* closed, bool& risen) const {
        load(p.k, first, x.tokens, keys, x.k, x.keys);
        if (p.mode == MODE_HEAD) {
            Vec factor = exp_of(p.constant[head] + Vec{});
            x.f[0] = factor[0];
            risen |= p.constant[head] > 0;
        } else if (p.mode == MODE_TOKEN || p.mode == MODE_CHANNEL) {
            const int width = p.mode == MODE_TOKEN ? 1 : keys, stride = p.mode == MODE_TOKEN ? 1 : x.keys;
            load(p.decay, first, x.tokens, width, x.f, stride);
            for (int i = 0; i < x.tokens * stride; i++) risen |= x.f[i] > 0;
            for (int i = 0; i < x.tokens * stride; i += W) at(x.f + i) = exp_of(at(x.f + i));
        } else if (p.mode == MODE_GATE) {
            const float* bound = p.constant + head * keys;
            for (int t = 0; t < x.tokens; t++) {
                for (int i = 0; i < x.keys; i += W) {
                    float *k = x.k + t * x.keys + i, *open = gate + t * x.keys + i;
                    const Vec logit = at(k);
                    const Vec e = exp_of(logit > 0.0f ? -logit : logit);
                    const Vec high = 1.0f / (1.0f + e), low = e * high;
                    at(open) = logit > 0.0f ? high : low;
                    at(closed + t * x.keys + i) = logit > 0.0f ? low : high;
                }
                for (int i = 0; i < x.keys; i++) {
                    const int place = t * x.keys + i;
                    const float b = i < keys ? bound[i] : 0.0f;
                    x.k[place] = i < keys ? (1 - b) * closed[place] : 0.0f;
                    x.f[place] = b + (1 - b) * gate[place];
                }
            }
        }
    }
};

template <Decay M> void forward(const Job& job, bool& risen) {
    const Problem& p = job.p;
    const size_t length = size_t(p.interval);
    const size_t kr = size_t(job.key_row), vr = size_t(job.value_row);
    Workspace space(length * (5 * kr + 2 * vr) + kr * vr);
    Rows x{};
    x.keys = job.key_row;
    x.values = job.value_row;
    for (float** rows : {&x.q, &x.k, &x.f}) *rows = space.take(length * kr);
    for (float** rows : {&x.v, &x.o}) *rows = space.take(length * vr);
    float *gate = space.take(length * kr), *closed = space.take(length * kr);
    float* state = space.take(kr * vr);
    if (p.initial) job.unpack(p.initial + job.place() * job.size(), state);
    int64_t interval = 0;
    for (int64_t first = job.start; first < job.end; first += p.interval, interval++) {
        x.tokens = int(job.end - first < p.interval ? job.end - first : p.interval);
        job.pack(state, job.state(interval));
        job.load(p.q, first, x.tokens, job.keys, x.q, x.keys);
        job.load(p.v, first, x.tokens, job.values, x.v, x.values);
        job.keys_and_factors(first, x, gate, closed, risen);
        std::memset(x.o, 0, sizeof(float) * size_t(x.tokens) * vr);
        tiles((job.keys + R - 1) / R * R, job.value_row, [&](auto width, int row, int column) {
            read_write<decltype(width)::value, M>(x, state, row, column);
        });
        job.save(x.o, x.values, p.o, first, x.tokens, job.values);
    }
    job.pack(state, p.final + job.place() * job.size());
}

template <Decay M, bool LEARNED> void backward(const Job& job, bool& risen) {
    const Problem& p = job.p;
    const size_t length = size_t(p.interval);
    const size_t kr = size_t(job.key_row), vr = size_t(job.value_row);
    Workspace space(length * (8 * kr + 3 * vr + R * 4 * W) + 3 * kr * vr);
    std::vector<double> dconstant(kr);  // sums over all tokens, of terms that may cancel
    Rows x{};
    x.keys = job.key_row;
    x.values = job.value_row;
    for (float** rows : {&x.q, &x.k, &x.f, &x.dq, &x.dk, &x.df}) *rows = space.take(length * kr);
    for (float** rows : {&x.v, &x.grad_o, &x.dv}) *rows = space.take(length * vr);
    x.history = space.take(length * R * 4 * W);
    float *gate = space.take(length * kr), *closed = space.take(length * kr);
    float *grad = space.take(kr * vr), *grad_turned = space.take(kr * vr);
    float* state = space.take(kr * vr);
    if (p.dfinal) {
        job.unpack(p.dfinal + job.place() * job.size(), grad);
        job.turn(p.dfinal + job.place() * job.size(), grad_turned);
    }
    const int64_t intervals = (job.end - job.start + p.interval - 1) / p.interval;
    for (int64_t interval = intervals - 1; interval >= 0; interval--) {
        const int64_t first = job.start + interval * p.interval;
        x.tokens = int(job.end - first < p.interval ? job.end - first : p.interval);
        job.turn(job.state(interval), state);
        job.load(p.q, first, x.tokens, job.keys, x.q, x.keys);
        job.load(p.v, first, x.tokens, job.values, x.v, x.values);
        job.load(p.grad_o, first, x.tokens, job.values, x.grad_o, x.values);
        job.keys_and_factors(first, x, gate, closed, risen);
        const size_t bytes = sizeof(float) * size_t(x.tokens);
        for (float* rows : {x.dq, x.dk, x.df}) std::memset(rows, 0, bytes * kr);
        std::memset(x.dv, 0, bytes * vr);
        tiles((job.keys + R - 1) / R * R, job.value_row, [&](auto width, int row, int column) {
            back_values<decltype(width)::value, M>(x, grad, row, column);
        });
        tiles((job.values + R - 1) / R * R, job.key_row, [&](auto width, int row, int column) {
            back_keys<decltype(width)::value, M, LEARNED>(x, state, grad_turned, row, column);
        });
        if (p.mode == MODE_GATE) {  // through keys and factors to logits and bounds
            const float* bound = p.constant + job.head * job.keys;
            for (int t = 0; t < x.tokens; t++) {
                for (int i = 0; i < job.keys; i++) {
                    const int place = t * x.keys + i;
                    const float through = x.df[place] - x.dk[place];
                    dconstant[size_t(i)] += closed[place] * through;
                    x.dk[place] = (1 - bound[i]) * gate[place] * closed[place] * through;
                }
            }
        } else if (LEARNED) {
            for (int t = 0; t < x.tokens; t++) {
                double sum = 0;
                for (int i = 0; i < job.keys; i++) {
                    const int place = t * x.keys + i;
                    if (M == CHANNEL) x.df[place] *= x.f[place];
                    else sum += x.df[place];
                }
                if (M == CONSTANT) dconstant[0] += sum * x.f[0];
                if (M == TOKEN) x.df[t] = float(sum) * x.f[t];  // rows of df before t are done with
            }
            if (M == TOKEN) job.save(x.df, 1, p.ddecay, first, x.tokens, 1);
            if (M == CHANNEL) job.save(x.df, x.keys, p.ddecay, first, x.tokens, job.keys);
        }
        job.save(x.dq, x.keys, p.dq, first, x.tokens, job.keys);
        job.save(x.dk, x.keys, p.dk, first, x.tokens, job.keys);
        job.save(x.dv, x.values, p.dv, first, x.tokens, job.values);
    }
    job.pack(grad, p.dinitial + job.place() * job.size());
    const int width = p.mode == MODE_GATE ? job.keys : p.mode == MODE_HEAD && LEARNED ? 1 : 0;
    for (int i = 0; i < width; i++)
        p.dconstant[job.place() * size_t(width) + size_t(i)] = float(dconstant[size_t(i)]);
}

using Work = void (*)(const Job&, bool&);

// 0; 1 where memory ends; 2 where a log decay is above 0.
int run(const Problem& p, Work work) {
    const int64_t jobs = p.sequences * p.heads;
    std::atomic<int64_t> next{0};
    std::atomic<int> result{0};
    auto worker = [&] {
        bool risen = false;
        try {
            for (int64_t i = next++; i < jobs && !result; i = next++) work(Job(p, i), risen);
        } catch (...) {
            result = 1;
        }
        if (risen) result = 2;
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < p.threads && i < jobs; i++) others.emplace_back(worker);
    } catch (...) {  // no more threads to be had: those that are there do the work
    }
    worker();
    for (auto& thread : others) thread.join();
    return result;
}

}  // namespace

extern "C" {

int linscale_forward(const Problem* p) {
    constexpr Work by_mode[] = {forward<NONE>, forward<CONSTANT>, forward<TOKEN>, forward<CHANNEL>,
                                forward<CHANNEL>};
    return run(*p, by_mode[p->mode]);
}

int linscale_backward(const Problem* p) {
    constexpr Work fixed[] = {backward<NONE, false>, backward<CONSTANT, false>,
                              backward<TOKEN, false>, backward<CHANNEL, false>,
                              backward<CHANNEL, true>};
    constexpr Work learned[] = {backward<NONE, false>, backward<CONSTANT, true>,
                                backward<TOKEN, true>, backward<CHANNEL, true>,
                                backward<CHANNEL, true>};
    return run(*p, (p->learned ? learned : fixed)[p->mode]);
}

}  // extern "C"
