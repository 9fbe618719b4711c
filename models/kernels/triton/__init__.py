"""Triton forward and backward of `linear_attention`: tensors in, tensors out, no autograd.

`models.kernels.api` wraps these in custom operators; see it for shapes and meanings. Decay None,
(H,) and (B, T, H) run the scalar kernels (`scalar_launch`), (B, T, H, K) and HGRN2's gate the
per-channel ones (`vector_launch`), or up to `decode.PREFILL` tokens the recurrent one (`decode`);
`step` and `hgrn2_step` are one token of decoding. Kernel modules are imported on first use, so
importing this package costs nothing where there is no GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs o (B, T, H, V), final state (N, H, K, V) float32, and what `backward` wants kept.

    The third result is float32 chunk states, or an empty tensor when backward needs none.

    Raises:
        ValueError: dtype, shape or device outside what the kernels support.
    """
    if decay is not None and decay.ndim == 4:
        from models.kernels.triton import decode, vector_launch

        if q.shape[1] <= decode.PREFILL:
            o, final = decode.recurrent_forward(q, k, v, decay, initial_state, cu_seqlens)
            return o, final, final.new_empty(0)
        return vector_launch.forward(q, k, v, decay, initial_state, cu_seqlens)
    from models.kernels.triton import scalar_launch

    return scalar_launch.forward(q, k, v, decay, initial_state, cu_seqlens)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients (dq, dk, dv, ddecay, dinitial_state) of everything `forward` read.

    ddecay is None without a decay and with `decay_gradient=False`, which for decays of (H,) or
    (B, T, H) saves one or two launches (a constant slope needs none). dinitial_state is None
    without an initial state. dfinal_state None stands for zeros.
    """
    if decay is not None and decay.ndim == 4:
        from models.kernels.triton import vector_launch

        *gradients, ddecay, dinitial_state = vector_launch.backward(
            q, k, v, decay, initial_state, cu_seqlens, states, do, dfinal_state
        )
        return *gradients, ddecay if decay_gradient else None, dinitial_state
    from models.kernels.triton import scalar_launch

    return scalar_launch.backward(
        q, k, v, decay, initial_state, cu_seqlens, states, do, dfinal_state, decay_gradient
    )


def hgrn2_forward(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` with HGRN2's gate in registers: factor f = b + (1 - b) sigmoid(x), key k = 1 - f.

    gate_logits: x, (B, T, H, K), in q's dtype; lower_bound: b, (H, K).
    """
    from models.kernels.triton import decode, vector_launch

    if q.shape[1] <= decode.PREFILL:
        o, final = decode.recurrent_forward(
            q, gate_logits, v, gate_logits, initial_state, cu_seqlens, lower_bound
        )
        return o, final, final.new_empty(0)
    return vector_launch.hgrn2_forward(q, gate_logits, v, lower_bound, initial_state, cu_seqlens)


def hgrn2_backward(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients (dq, dgate_logits, dv, dlower_bound, dinitial_state) of `hgrn2_forward`."""
    from models.kernels.triton import vector_launch

    return vector_launch.hgrn2_backward(
        q, gate_logits, v, lower_bound, initial_state, cu_seqlens, states, do, dfinal_state
    )


def cosine_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position_offset: Tensor,
) -> tuple[Tensor, Tensor]:
    """o (B, T, H, V) and the final state (N, H, 2K, V) float32 of `cosine_attention`.

    theta: (H, K) radians a step; position_offset: integers, (1,) or (N,). Nothing is kept for
    `cosine_backward`, which reads the inputs again.
    """
    from models.kernels.triton import phase_launch

    return phase_launch.cosine_forward(q, k, v, theta, initial_state, cu_seqlens, position_offset)


def cosine_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position_offset: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients (dq, dk, dv, dtheta, dinitial_state) of `cosine_forward`."""
    from models.kernels.triton import phase_launch

    return phase_launch.cosine_backward(
        q, k, v, theta, initial_state, cu_seqlens, position_offset, do, dfinal_state
    )


def empty_states(q: Tensor, v: Tensor, decay: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """An uninitialised third result of `forward` (or, with a lower bound (H, K) as decay, of
    `hgrn2_forward`), from shapes alone: what fake tensors need."""
    if decay is not None and decay.ndim in (2, 4):
        from models.kernels.triton import decode, vector_launch

        if q.shape[1] <= decode.PREFILL:
            return q.new_empty(0, dtype=torch.float32)
        return vector_launch.empty_states(q, v, cu_seqlens)
    from models.kernels.triton import scalar_launch

    return scalar_launch.empty_states(q, v, cu_seqlens)


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    decay: Tensor | None = None,
    cache_indices: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """One token: updates `state` in place (rows `cache_indices` of it, if given), or writes it to
    `after`, and returns o.

    q, k: (B, H, K); v, o: (B, H, V); decay: None, (H,), (B, H) or (B, H, K); state: float32,
    (B, H, K, V), or (S, H, K, V) with cache_indices (B,).
    """
    from models.kernels.triton.decode import step as launch

    return launch(q, k, v, state, decay, cache_indices, after)


def hgrn2_step(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    state: Tensor,
    lower_bound: Tensor,
    cache_indices: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """`step` with HGRN2's gate in registers; gate_logits (B, H, K), lower_bound (H, K)."""
    from models.kernels.triton.decode import hgrn2_step as launch

    return launch(q, gate_logits, v, state, lower_bound, cache_indices, after)
