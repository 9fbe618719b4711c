"""What models call: linear attention with decay on the CPU and on CUDA devices.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

Shapes, dtypes and devices are checked here (`call.check`), in Python, before anything runs;
`operators` then runs the kernel that `launch` names for the call. All of it compiles
(`torch.compile(fullgraph=True)`), forward and backward. The two models whose keys are made on the
spot have forms of their own: `hgrn2_attention` (keys and decays from gate logits) and
`cosine_attention` (rotated queries and keys).

Where sequences are split over ranks (`models.kernels.sequence`), the calls go to
`models.kernels.parallel`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.kernels import operators, sequence
from models.kernels.call import Call, check, check_channels
from models.kernels.parallel import cosine_attention_parallel, linear_attention_parallel


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Linear attention with decay over whole sequences; differentiable in every float argument.

    Args:
        q: queries, (B, T, H, K), unscaled: fold 1/sqrt(K) or its like into them.
        k: keys, (B, T, H, K).
        v: values, (B, T, H, V). q, k and v share one dtype.
        decay: log decay in nats a step, at most 0, -inf forgets everything before its token. None
            (no decay), (H,) a head, (B, T, H) a token and head, (B, T, H, K) also a key channel.
        initial_state: state before the first token of each sequence, (N, H, K, V); None is zero.
        cu_seqlens: offsets of N packed sequences, (N + 1,), rising from 0 to T; B is then 1. None:
            each row of the batch is one sequence, N = B.

    Returns:
        o, (B, T, H, V) in v's dtype, and the state after each sequence, (N, H, K, V) in float32
        (float64 for float64 input).

    Raises:
        ValueError: a shape, dtype, device or value that does not fit; the message says which.
    """
    call = Call(q, k, v, decay, initial_state, cu_seqlens)
    check(call)
    if (group := _split(cu_seqlens)) is not None:
        return linear_attention_parallel(q, k, v, decay, initial_state, group)
    o, final_state, _ = operators.linear_attention(*call)
    return o, final_state


def linear_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence, for decoding. Differentiable on the CPU alone.

    Args:
        q: query, (B, H, K).
        k: key, (B, H, K).
        v: value, (B, H, V).
        state: state before the token, (B, H, K, V); not modified.
        decay: log decay in nats, None, (H,), (B, H) or (B, H, K).

    Returns:
        o, (B, H, V) in v's dtype, and the state after the token, in `state`'s dtype.
    """
    expected = (*q.shape, v.shape[-1])
    if q.ndim != 3 or k.shape != q.shape or tuple(state.shape) != expected:
        raise ValueError(
            f"q, k, v and state have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} "
            f"and {tuple(state.shape)}: they must be (batch, heads, key channels) twice, (batch, "
            "heads, value channels) and (batch, heads, key channels, value channels)."
        )
    if q.device.type == "cuda":
        return operators.linear_attention_step(q, k, v, state, decay)
    if decay is not None and decay.ndim == 1:
        decay = decay.expand(q.shape[:2])
    factor = None if decay is None else decay.to(state.dtype).exp()
    if factor is not None:
        state = state * (factor[..., None, None] if factor.ndim == 2 else factor[..., None])
    state = state + k.to(state.dtype)[..., :, None] * v.to(state.dtype)[..., None, :]
    o = (q.to(state.dtype)[..., None, :] @ state).squeeze(-2)
    return o.to(v.dtype), state


def hgrn2_attention(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """HGRN2's recurrence from gate logits x (arXiv 2404.07904).

        f = lb + (1 - lb) sigmoid(x)        k = 1 - f        decay = log f

    Args:
        q: queries, (B, T, H, K).
        gate_logits: x, (B, T, H, K).
        v: values, (B, T, H, V).
        lower_bound: lb in [0, 1), (H, K).
        initial_state, cu_seqlens: as in `linear_attention`.

    Returns:
        As `linear_attention`.
    """
    call = Call(q, gate_logits, v, None, initial_state, cu_seqlens)
    check(call, key="gate_logits")
    check_channels(q, lower_bound=lower_bound)
    if (group := _split(cu_seqlens)) is not None:
        k, decay = hgrn2_gate(gate_logits, lower_bound)
        return linear_attention_parallel(q, k.to(q.dtype), v, decay, initial_state, group)
    o, final_state, _ = operators.hgrn2_attention(*call._replace(decay=lower_bound))
    return o, final_state


def hgrn2_attention_step(
    q: Tensor, gate_logits: Tensor, v: Tensor, lower_bound: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of HGRN2's recurrence, for decoding. Differentiable on the CPU alone.

    Args:
        q: query, (B, H, K).
        gate_logits: x, (B, H, K).
        v: value, (B, H, V).
        lower_bound: lb in [0, 1), (H, K).
        state: state before the token, (B, H, K, V); not modified.

    Returns:
        As `linear_attention_step`.
    """
    if q.device.type == "cuda":
        return operators.hgrn2_attention_step(q, gate_logits, v, lower_bound, state)
    k, decay = hgrn2_gate(gate_logits, lower_bound)  # (B, H, K)
    return linear_attention_step(q, k.to(q.dtype), v, state, decay)


def hgrn2_gate(gate_logits: Tensor, lower_bound: Tensor) -> tuple[Tensor, Tensor]:
    """Keys 1 - f and log decays log f of HGRN2, in float32 or wider, for logits (..., H, K).

    Neither is a difference of nearly equal numbers: k = (1 - lb) sigmoid(-x), and log f is
    log1p(-k) where f is near 1 and log(f) where it is small. f is at least the smallest normal
    number, where its logarithm is -87 nats.
    """
    x = gate_logits.to(torch.promote_types(gate_logits.dtype, torch.float32))
    bound = lower_bound.to(x.dtype)
    k = (1 - bound) * torch.sigmoid(-x)
    f = (bound + (1 - bound) * torch.sigmoid(x)).clamp_min(torch.finfo(x.dtype).tiny)
    return k, torch.where(k < 0.5, torch.log1p(-k.clamp(max=0.5)), f.log())


def cosine_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    position_offset: int | Tensor = 0,
) -> tuple[Tensor, Tensor]:
    """Linear attention without decay, weighted by the cosine of the distance (LRPE, cosFormer2).

        q~_t = [q_t cos(theta t), q_t sin(theta t)],  k~ alike:
        q~_t . k~_s = sum_c q_tc k_sc cos(theta_c (t - s))

    (arXiv 2406.16690, eq. 17; arXiv 2307.09270 for LRPE.) The position t counts from 0 in every
    sequence, plus `position_offset`; a state carries absolute phases, so whoever carries it on
    passes the number of tokens before it.

    Args:
        q: queries, (B, T, H, K).
        k: keys, (B, T, H, K).
        v: values, (B, T, H, V).
        theta: angles in radians a step, (H, K).
        initial_state: (N, H, 2K, V); None is zero.
        cu_seqlens: as in `linear_attention`.
        position_offset: position of the first token, of all sequences or of each, (N,).

    Returns:
        o, (B, T, H, V), and the state after each sequence, (N, H, 2K, V).
    """
    call = Call(q, k, v, None, initial_state, cu_seqlens)
    check(call, key_copies=2)
    check_channels(q, theta=theta)
    if isinstance(position_offset, Tensor):
        sequences = call.sequences
        if tuple(position_offset.shape) not in {(), (1,), (sequences,)}:
            raise ValueError(
                f"position_offset has shape {tuple(position_offset.shape)}: give one number, or "
                f"one for each of the {sequences} sequences."
            )
        if position_offset.is_floating_point() or position_offset.device != q.device:
            raise ValueError(
                f"position_offset has dtype {position_offset.dtype} and is on "
                f"{position_offset.device}: it must hold integers, on {q.device} as q."
            )
    if (group := _split(cu_seqlens)) is not None:
        if isinstance(position_offset, Tensor):
            raise ValueError("position_offset is a tensor: give one int when sequences are split.")
        return cosine_attention_parallel(q, k, v, theta, initial_state, position_offset, group)
    if not isinstance(position_offset, Tensor):
        position_offset = torch.full((1,), position_offset, device=q.device)
    call = call._replace(decay=theta, position_offset=position_offset.reshape(-1))
    o, final_state, _ = operators.cosine_attention(*call)
    return o, final_state


def _split(cu_seqlens: Tensor | None) -> dist.ProcessGroup | None:
    """The ranks that sequences are split over, if they are."""
    group = sequence.active()
    if group is not None and cu_seqlens is not None:
        raise ValueError("cu_seqlens is given: packed sequences cannot be split over ranks.")
    return group
