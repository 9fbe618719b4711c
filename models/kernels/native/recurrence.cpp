// Linear attention with decay on the CPU: the recurrence itself, with the state in registers.
//
//     S_t = diag(f_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t
//
// The recurrence takes 4 K V FLOPs a token, fewer than any form by chunks; `tiles.h` keeps the state
// in registers, where plain code passes it through memory for every token.
//
// Backward takes the states that forward stored, one an interval, and runs the recurrence again
// beside that of the gradient D_t of S_t:
//
//     D_t += q_t do_t^T,   dv_t = D_t^T k_t,   dk_t = D_t v_t,   dq_t = S_t do_t,
//     df_t = sum over values of D_t * S_{t-1},   D_{t-1} = diag(f_t) D_t
//
// Each sequence and head is one job with a fixed order of sums: results do not depend on the number
// of threads.

#include "tiles.h"

namespace {

enum Mode : int64_t { MODE_NONE, MODE_HEAD, MODE_TOKEN, MODE_CHANNEL, MODE_GATE, MODE_PHASE };

}  // namespace

extern "C" {

struct Problem {
    Array q, k, v, o, grad_o, dq, dk, dv;
    Array decay, ddecay;     // by token, or by token and channel: logarithms
    const float* constant;   // logarithms of a head, (H,), bounds of HGRN2 or angles, (H, K)
    float* dconstant;        // (N, H) or (N, H, K)
    const int64_t* offsets;  // position of the first token, (N)
    const float* initial;    // (N, H, K, V) or null; with angles 2K for K, here and below
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

// One sequence and head of a problem.
struct Job {
    const Problem& p;
    int64_t sequence, head, row, start, end, slot;
    int channels, keys, values;  // of q and k as given, and rows and columns of the state
    int key_row, value_row;      // padded

    Job(const Problem& problem, int64_t number) : p(problem) {
        sequence = number / p.heads;
        head = number % p.heads;
        row = p.bounds ? 0 : sequence;
        start = p.bounds ? p.bounds[sequence] : 0;
        end = p.bounds ? p.bounds[sequence + 1] : p.tokens;
        slot = p.slots ? p.slots[sequence] : 0;
        channels = int(p.keys);
        keys = p.mode == MODE_PHASE ? 2 * channels : channels;
        values = int(p.values);
        key_row = padded(keys);
        value_row = padded(values);
    }
    size_t size() const { return size_t(keys) * size_t(values); }
    size_t place() const { return size_t(sequence * p.heads + head); }
    float* state(int64_t interval) const {
        const int64_t batch = p.bounds ? 1 : p.batch;
        return p.states + (((slot + interval) * batch + row) * p.heads + head) * int64_t(size());
    }
    void load(const Array& from, int64_t first, int tokens, int width, float* to, int stride) const {
        load_rows(from, row, head, first, tokens, width, to, stride);
    }
    void save(const float* from, int stride, const Array& to, int64_t first, int tokens,
              int width) const {
        save_rows(from, stride, to, row, head, first, tokens, width);
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
    // Queries, keys and factors of an interval. Two numbers a token and channel stay for backward:
    // of HGRN2 sigmoid(x) and sigmoid(-x), of the cosine form cos and sin.
    void prepare(int64_t first, Rows& x, float* gate, float* closed, bool& risen) const {
        load(p.q, first, x.tokens, channels, x.q, x.keys);
        load(p.k, first, x.tokens, channels, x.k, x.keys);
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
        } else if (p.mode == MODE_PHASE) {
            angles(first, x, gate, closed);
            for (float* rows : {x.q, x.k}) {
                for (int t = 0; t < x.tokens; t++) {
                    float* row = rows + t * x.keys;
                    for (int i = 0; i < channels; i++) {
                        row[channels + i] = row[i] * closed[t * x.keys + i];
                        row[i] *= gate[t * x.keys + i];
                    }
                }
            }
        }
    }
    // cos and sin of theta times the position, by turning in float64 from the interval's first.
    void angles(int64_t first, const Rows& x, float* cosines, float* sines) const {
        const double start = double(p.offsets[sequence] + first - this->start);
        for (int i = 0; i < channels; i++) {
            const double theta = p.constant[head * channels + i];
            const double turn_re = std::cos(theta), turn_im = std::sin(theta);
            double re = std::cos(theta * start), im = std::sin(theta * start);
            for (int t = 0; t < x.tokens; t++) {
                cosines[t * x.keys + i] = float(re);
                sines[t * x.keys + i] = float(im);
                const double next = re * turn_re - im * turn_im;
                im = re * turn_im + im * turn_re;
                re = next;
            }
        }
    }
    // Turns the gradients of q and k back, and adds to that of the angles.
    void turn_back(int64_t first, const Rows& x, const float* cosines, const float* sines,
                   double* dtheta) const {
        for (int t = 0; t < x.tokens; t++) {
            const double position = double(p.offsets[sequence] + first + t - start);
            for (auto [row, turned] : {std::pair{x.dq + t * x.keys, x.q + t * x.keys},
                                       std::pair{x.dk + t * x.keys, x.k + t * x.keys}}) {
                for (int i = 0; i < channels; i++) {
                    const float cosine = cosines[t * x.keys + i], sine = sines[t * x.keys + i];
                    const float a = row[i], b = row[channels + i];
                    dtheta[i] += position * (turned[i] * b - turned[channels + i] * a);
                    row[i] = a * cosine + b * sine;
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
        job.load(p.v, first, x.tokens, job.values, x.v, x.values);
        job.prepare(first, x, gate, closed, risen);
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
        job.load(p.v, first, x.tokens, job.values, x.v, x.values);
        job.load(p.grad_o, first, x.tokens, job.values, x.grad_o, x.values);
        job.prepare(first, x, gate, closed, risen);
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
        } else if (p.mode == MODE_PHASE) {
            job.turn_back(first, x, gate, closed, dconstant.data());
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
        job.save(x.dq, x.keys, p.dq, first, x.tokens, job.channels);
        job.save(x.dk, x.keys, p.dk, first, x.tokens, job.channels);
        job.save(x.dv, x.values, p.dv, first, x.tokens, job.values);
    }
    job.pack(grad, p.dinitial + job.place() * job.size());
    const int each = p.mode == MODE_GATE || p.mode == MODE_PHASE ? job.channels : 1;
    const int width = p.dconstant ? each : 0;
    for (int i = 0; i < width; i++)
        p.dconstant[job.place() * size_t(width) + size_t(i)] = float(dconstant[size_t(i)]);
}

using Work = void (*)(const Job&, bool&);

int run(const Problem& p, Work work) {
    return run_jobs(p.sequences * p.heads, p.threads,
                    [&](int64_t number, bool& risen) { work(Job(p, number), risen); });
}

}  // namespace

extern "C" {

int linscale_forward(const Problem* p) {
    constexpr Work by_mode[] = {forward<NONE>, forward<CONSTANT>, forward<TOKEN>, forward<CHANNEL>,
                                forward<CHANNEL>, forward<NONE>};
    return run(*p, by_mode[p->mode]);
}

int linscale_backward(const Problem* p) {
    constexpr Work fixed[] = {backward<NONE, false>, backward<CONSTANT, false>,
                              backward<TOKEN, false>, backward<CHANNEL, false>,
                              backward<CHANNEL, true>, backward<NONE, false>};
    constexpr Work learned[] = {backward<NONE, false>, backward<CONSTANT, true>,
                                backward<TOKEN, true>, backward<CHANNEL, true>,
                                backward<CHANNEL, true>, backward<NONE, false>};
    return run(*p, (p->learned ? learned : fixed)[p->mode]);
}

}  // extern "C"
