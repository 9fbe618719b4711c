// Linear attention with decay on the CPU: the recurrence itself, with the state in registers.
//
//     S_t = diag(f_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t
//
// The recurrence takes 4 K V FLOPs a token, fewer than any form by chunks; `tiles.h` keeps the
// state in registers, where plain code passes it through memory for every token.
//
// Backward takes the states that forward stored, one an interval, and runs the recurrence again
// beside that of the gradient D_t of S_t:
//
//     D_t += q_t do_t^T,   dv_t = D_t^T k_t,   dk_t = D_t v_t,   dq_t = S_t do_t,
//     df_t = sum over values of D_t * S_{t-1},   D_{t-1} = diag(f_t) D_t
//
// Each sequence and head is one job with a fixed order of sums: results do not depend on the number
// of threads.

#include "job.h"

namespace {

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

}  // namespace

extern "C" {

int linscale_forward(const Problem* p) {
    constexpr Work by_mode[] = {forward<NONE>, forward<CONSTANT>, forward<TOKEN>, forward<CHANNEL>,
                                forward<CHANNEL>, forward<NONE>};
    return run_recurrence(*p, by_mode[p->mode]);
}

int linscale_backward(const Problem* p) {
    constexpr Work fixed[] = {backward<NONE, false>, backward<CONSTANT, false>,
                              backward<TOKEN, false>, backward<CHANNEL, false>,
                              backward<CHANNEL, true>, backward<NONE, false>};
    constexpr Work learned[] = {backward<NONE, false>, backward<CONSTANT, true>,
                                backward<TOKEN, true>, backward<CHANNEL, true>,
                                backward<CHANNEL, true>, backward<NONE, false>};
    return run_recurrence(*p, (p->learned ? learned : fixed)[p->mode]);
}

}  // extern "C"
