// A call of the compiled recurrences, and what one sequence and head of it reads and writes.

#pragma once

#include "tiles.h"

namespace {

enum Mode : int64_t { MODE_NONE, MODE_HEAD, MODE_TOKEN, MODE_CHANNEL, MODE_GATE, MODE_PHASE };

}  // namespace

extern "C" {

struct Problem {
    Array q, k, v, o, grad_o, dq, dk, dv;
    Array decay, ddecay;     // by token, or by token and channel: logarithms
    Array beta, dbeta;       // by token: of the delta rule
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
    void load(const Array& from, int64_t first, int tokens, int width, float* to,
              int stride) const {
        load_rows(from, row, head, first, tokens, width, to, stride);
    }
    void save(const float* from, int stride, const Array& to, int64_t first, int tokens,
              int width) const {
        save_rows(from, stride, to, row, head, first, tokens, width);
    }
    void unpack(const float* from, float* to) const {  // (K, V) to padded rows
        for (int r = 0; r < keys; r++)
            std::memcpy(to + r * value_row, from + r * values, values * 4);
    }
    void pack(const float* from, float* to) const {
        for (int r = 0; r < keys; r++)
            std::memcpy(to + r * values, from + r * value_row, values * 4);
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
            const int width = p.mode == MODE_TOKEN ? 1 : keys;
            const int stride = p.mode == MODE_TOKEN ? 1 : x.keys;
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

using Work = void (*)(const Job&, bool&);

inline int run_recurrence(const Problem& p, Work work) {
    return run_jobs(p.sequences * p.heads, p.threads,
                    [&](int64_t number, bool& risen) { work(Job(p, number), risen); });
}

}  // namespace
