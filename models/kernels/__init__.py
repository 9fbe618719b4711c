"""The two primitives of the linear mixers, on every device.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

`reference` is the definition; `api` is what models call; `operators` are what `torch.compile` and
autograd see; `launch` is the table of what runs a `Call`: `chunked` (with `layout`, `passes`,
`intra_scalar`, `intra_channel`) on the CPU, `triton` on CUDA devices. `parallel` is the same over a
sequence split across processes. `tools` are for developers. `delta` is the other primitive, the
delta rule, which corrects what a state holds under a key instead of adding to it.
"""

from models.kernels.api import (
    cosine_attention,
    hgrn2_attention,
    hgrn2_attention_step,
    linear_attention,
    linear_attention_step,
)
from models.kernels.delta.api import delta_attention, delta_attention_step

__all__ = [
    "cosine_attention",
    "delta_attention",
    "delta_attention_step",
    "hgrn2_attention",
    "hgrn2_attention_step",
    "linear_attention",
    "linear_attention_step",
]
