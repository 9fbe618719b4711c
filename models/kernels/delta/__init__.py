"""The delta rule: a state that corrects what it holds under a key, on every device.

    S~_t = diag(exp(decay_t)) S_{t-1}
    S_t = S~_t + beta_t k_t (v_t - S~_t^T k_t)^T        o_t = S_t^T q_t

The same rooms as in `models.kernels`: `reference` is the definition; `api` is what models call;
`operators` are what `torch.compile` and autograd see; `call` is what they pass on; `chunked` (with
`passes`, `pairs_scalar`, `pairs_channel`) runs it, in PyTorch, on the CPU and on CUDA devices.
"""
