"""The delta rule, token by token: the definition that every other form is tested on.

    S~_t = diag(exp(decay_t)) S_{t-1}                       (K, V), what is kept of the state
    S_t  = S~_t + beta_t k_t (v_t - S~_t^T k_t)^T           (K, V), the state after token t
    o_t  = S_t^T q_t                                        (V,)

What the state holds under the key k_t moves towards v_t by the share beta_t: for a key of length 1
all the way at beta = 1. Nothing is scaled or normalised here: models fold 1/sqrt(K) into q and
normalise k. Along k_t the state is multiplied by 1 - beta_t |k_t|^2: beta in [0, 1] keeps it in
[0, 1], beta up to 2 lets it change sign (arXiv 2411.12537).

The three published forms are this one:

* DeltaNet (arXiv 2406.06484): no decay. Its state is the transpose, (V, K).
* Gated DeltaNet (arXiv 2412.06464): one decay a token and head. Its eq. 10 writes
  S_t = alpha_t S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T, (V, K): a scalar alpha commutes
  with the correction, so decaying first is the same.
* Kimi Delta Attention (arXiv 2510.26692): one decay a token, head and key channel, before the
  correction: S_t = (I - beta_t k_t k_t^T) diag(alpha_t) S_{t-1} + beta_t k_t v_t^T, (K, V) as here.

Plain differentiable PyTorch. The read for the correction, the update and the read of the output are
matrix products, so `FlopCounterMode` counts 6 K V FLOPs a token and head forward and twice that
backward.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def recurrent_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence in the inputs' precision, at least float32. Differentiable.

    Args:
        q: queries, (B, T, H, K).
        k: keys, (B, T, H, K).
        v: values, (B, T, H, V).
        beta: share of the correction that is written, (B, T, H).
        decay: log decay in nats a step, at most 0: None, (B, T, H) or (B, T, H, K).
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
            recurrent_delta(
                q[:, start:end],
                k[:, start:end],
                v[:, start:end],
                beta[:, start:end],
                None if decay is None else decay[:, start:end],
                None if initial_state is None else initial_state[i : i + 1],
            )
            for i, (start, end) in enumerate(pairwise(bounds))
        ]
        return torch.cat([o for o, _ in parts], 1), torch.cat([state for _, state in parts])

    batch, length, heads, key_dim = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values, share = (x.to(dtype) for x in (q, k, v, beta))
    if initial_state is None:
        state = v.new_zeros((batch, heads, key_dim, v.shape[-1]), dtype=dtype)
    else:
        state = initial_state.to(dtype)
    outputs: list[Tensor] = []
    for t in range(length):
        if decay is not None:
            factor = decay[:, t].to(dtype).exp()  # (B, H) or (B, H, K)
            state = state * (factor[..., None, None] if factor.ndim == 2 else factor[..., None])
        key = keys[:, t, :, None, :]  # (B, H, 1, K)
        missing = values[:, t, :, None, :] - key @ state  # (B, H, 1, V)
        state = state + key.mT @ (share[:, t, :, None, None] * missing)
        outputs.append(queries[:, t, :, None, :] @ state)
    if not outputs:
        return torch.zeros_like(v), state.clone()
    return torch.cat(outputs, 2).transpose(1, 2).to(v.dtype), state
