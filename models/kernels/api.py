"""What models call: linear attention with decay on the CPU and on CUDA devices.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

Shapes, dtypes and devices are checked here, in Python, before anything runs; `operators` then
chooses the kernel by the device. All of it compiles (`torch.compile(fullgraph=True)`), forward and
backward. The two models whose keys are made on the spot have forms of their own:
`hgrn2_attention` (keys and decays from gate logits) and `cosine_attention` (rotated queries and
keys).

Where sequences are split over ranks (`models.kernels.sequence`), the calls go to
`models.kernels.parallel`.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from models.kernels import operators, sequence

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    _check(q, k, v, decay, initial_state, cu_seqlens)
    if (group := _split(cu_seqlens)) is not None:
        from models.kernels.parallel import linear_attention_parallel

        return linear_attention_parallel(q, k, v, decay, initial_state, group)
    o, final_state, _ = operators.linear_attention(q, k, v, decay, initial_state, cu_seqlens)
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
    _check(q, gate_logits, v, None, initial_state, cu_seqlens, key="gate_logits")
    _check_channels(q, lower_bound=lower_bound)
    if (group := _split(cu_seqlens)) is not None:
        from models.kernels.parallel import linear_attention_parallel

        k, decay = hgrn2_gate(gate_logits, lower_bound)
        return linear_attention_parallel(q, k.to(q.dtype), v, decay, initial_state, group)
    o, final_state, _ = operators.hgrn2_attention(
        q, gate_logits, v, lower_bound, initial_state, cu_seqlens
    )
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
    _check(q, k, v, None, initial_state, cu_seqlens, key_copies=2)
    _check_channels(q, theta=theta)
    if isinstance(position_offset, Tensor):
        sequences = q.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
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
        from models.kernels.parallel import cosine_attention_parallel

        if isinstance(position_offset, Tensor):
            raise ValueError("position_offset is a tensor: give one int when sequences are split.")
        return cosine_attention_parallel(q, k, v, theta, initial_state, position_offset, group)
    if q.device.type == "cuda":
        if not isinstance(position_offset, Tensor):
            position_offset = torch.full((1,), position_offset, device=q.device)
        return operators.cosine_attention(
            q, k, v, theta, initial_state, cu_seqlens, position_offset
        )
    positions = torch.arange(q.shape[1], device=q.device)
    if isinstance(position_offset, Tensor):
        position_offset = position_offset.reshape(-1)
    if cu_seqlens is not None:
        sequence = torch.searchsorted(cu_seqlens[1:].to(positions.dtype), positions, right=True)
        positions = positions - cu_seqlens[sequence]
        if isinstance(position_offset, Tensor) and len(position_offset) > 1:
            position_offset = position_offset[sequence]
    elif isinstance(position_offset, Tensor):
        position_offset = position_offset[:, None]
    positions = positions + position_offset
    q, k = rotate(q, theta, positions), rotate(k, theta, positions)
    return linear_attention(q, k, v, None, initial_state, cu_seqlens)


def _split(cu_seqlens: Tensor | None) -> dist.ProcessGroup | None:
    """The ranks that sequences are split over, if they are."""
    group = sequence.active()
    if group is not None and cu_seqlens is not None:
        raise ValueError("cu_seqlens is given: packed sequences cannot be split over ranks.")
    return group


def rotate(x: Tensor, theta: Tensor, positions: Tensor) -> Tensor:
    """[x cos(theta t), x sin(theta t)], (..., T, H, 2K), for x (..., T, H, K) at `positions`
    (..., T).

    Angles are in float32 or wider: at t = 8192 a float32 angle is good to 5e-4 radians.
    """
    dtype = torch.promote_types(theta.dtype, torch.float32)
    angle = positions[..., None, None].to(dtype) * theta.to(dtype)  # (..., T, H, K)
    return torch.cat([x * angle.cos().to(x.dtype), x * angle.sin().to(x.dtype)], -1)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    key: str = "k",
    key_copies: int = 1,
) -> None:
    """Raise ValueError, naming the argument, its value and the remedy, unless all fits. `key` is
    the name of the argument in k's place; states have `key_copies` rows a key channel."""
    if q.ndim != 4:
        raise ValueError(
            f"q has shape {tuple(q.shape)}: it must be (batch, tokens, heads, key channels)."
        )
    batch, length, heads, key_dim = q.shape
    if k.shape != q.shape:
        raise ValueError(
            f"{key} has shape {tuple(k.shape)}: it must have the shape of q, {tuple(q.shape)}."
        )
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v has shape {tuple(v.shape)}: it must be (batch, tokens, heads, value channels) with "
            f"the first three of q, {tuple(q.shape[:3])}."
        )
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise ValueError(
            f"q, {key} and v have dtypes {q.dtype}, {k.dtype} and {v.dtype}: convert them to one "
            f"of {', '.join(str(d) for d in DTYPES)}, the same for all three."
        )
    if decay is not None:
        shapes = {(heads,), (batch, length, heads), (batch, length, heads, key_dim)}
        if tuple(decay.shape) not in shapes:
            raise ValueError(
                f"decay has shape {tuple(decay.shape)}: for q of shape {tuple(q.shape)} it must be "
                f"{(heads,)}, {(batch, length, heads)} or {(batch, length, heads, key_dim)}."
            )
        if decay.dtype not in DTYPES:
            raise ValueError(f"decay has dtype {decay.dtype}: convert it to {torch.float32}.")
    if cu_seqlens is None:
        sequences = batch
    else:
        if cu_seqlens.ndim != 1 or len(cu_seqlens) < 2 or cu_seqlens.dtype.is_floating_point:
            raise ValueError(
                f"cu_seqlens has shape {tuple(cu_seqlens.shape)} and dtype {cu_seqlens.dtype}: it "
                "must hold the integer offsets of N >= 1 packed sequences, shape (N + 1,)."
            )
        if batch != 1:
            raise ValueError(
                f"cu_seqlens is given with a batch of {batch}: packed sequences lie in one row; "
                "reshape q, k and v to a batch of 1."
            )
        sequences = len(cu_seqlens) - 1
    if initial_state is not None:
        expected = (sequences, heads, key_copies * key_dim, v.shape[-1])
        if tuple(initial_state.shape) != expected:
            raise ValueError(
                f"initial_state has shape {tuple(initial_state.shape)}: it must be (sequences, "
                f"heads, key channels, value channels), {expected}."
            )
    for name, x in {key: k, "v": v, "decay": decay, "initial_state": initial_state}.items():
        if x is not None and x.device != q.device:
            raise ValueError(
                f"{name} is on {x.device} and q on {q.device}: move them to one device."
            )
    if q.device.type == "cuda" and q.dtype == torch.float64:
        raise ValueError(
            "q has dtype torch.float64 on a CUDA device: the Triton kernels take float32, bfloat16 "
            "and float16. Convert it, or move the tensors to the CPU for float64."
        )


def _check_channels(q: Tensor, **vectors: Tensor) -> None:
    """Raise ValueError unless each vector has one entry a head and key channel, on q's device."""
    for name, x in vectors.items():
        if tuple(x.shape) != tuple(q.shape[2:]):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}: it must have one entry a head and key "
                f"channel, {tuple(q.shape[2:])}."
            )
        if x.device != q.device:
            raise ValueError(
                f"{name} is on {x.device} and q on {q.device}: move them to one device."
            )
