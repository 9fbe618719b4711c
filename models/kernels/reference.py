"""Linear attention with decay, token by token: the definition that every other form is tested on.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T        (K, V), the state after token t
    o_t = S_t^T q_t                                     (V,)

The state is updated first and read afterwards, and nothing is scaled: a model folds 1/sqrt(K) or
its like into q. `decay` is the logarithm of the factor, in nats a step: absent (factor 1), one
number a head (TNL, arXiv 2405.17381), one a token and head, or one a token, head and key
channel (HGRN2, arXiv 2404.07904). A decay of -inf forgets everything before its token.

Plain differentiable PyTorch. Both products are matrix products, so `FlopCounterMode` counts
4 K V FLOPs a token and head forward and twice that backward.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def recurrent_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of the module docstring, in float32 or, for float64 input, float64.

    Args:
        q: queries, (B, T, H, K).
        k: keys, (B, T, H, K).
        v: values, (B, T, H, V).
        decay: log decay in nats a step, at most 0: None, (H,), (B, T, H) or (B, T, H, K).
        initial_state: state before the first token of each sequence, (N, H, K, V); None is zero.
        cu_seqlens: offsets of N packed sequences, (N + 1,), from 0 to T; B is then 1. None: each
            row of the batch is one sequence, N = B.

    Returns:
        o, (B, T, H, V) in v's dtype, and the state after each sequence, (N, H, K, V) in the
        working dtype.
    """
    if cu_seqlens is not None:
        bounds: list[int] = cu_seqlens.tolist()
        parts = [
            recurrent_reference(
                q[:, start:end],
                k[:, start:end],
                v[:, start:end],
                decay if decay is None or decay.ndim == 1 else decay[:, start:end],
                None if initial_state is None else initial_state[i : i + 1],
            )
            for i, (start, end) in enumerate(pairwise(bounds))
        ]
        return torch.cat([o for o, _ in parts], 1), torch.cat([state for _, state in parts])

    batch, length, heads, key_dim = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = q.to(dtype), k.to(dtype), v.to(dtype)
    if decay is None:
        factors = [q.new_ones((1, 1, 1, 1), dtype=dtype)] * length
    elif decay.ndim == 1:
        factors = [decay.to(dtype).exp().view(1, heads, 1, 1)] * length
    else:
        factor = decay.to(dtype).exp()
        factor = factor[..., None, None] if decay.ndim == 3 else factor[..., None]
        factors = list(factor.unbind(1))  # of (B, H, 1 or K, 1)
    if initial_state is None:
        state = v.new_zeros((batch, heads, key_dim, v.shape[-1]), dtype=dtype)
    else:
        state = initial_state.to(dtype)
    outputs: list[Tensor] = []
    for t in range(length):
        state = factors[t] * state + keys[:, t, :, :, None] @ values[:, t, :, None, :]
        outputs.append(queries[:, t, :, None, :] @ state)  # (B, H, 1, V)
    if not outputs:
        return torch.zeros_like(v), state.clone()
    return torch.cat(outputs, 2).transpose(1, 2).to(v.dtype), state
