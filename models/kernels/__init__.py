"""The one primitive of the linear mixers, on every device.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

`reference` is the definition, `chunked*` the CPU form, `triton` the GPU form, `api` the operators
that models call, `parallel` the same over a sequence split across processes.
"""
