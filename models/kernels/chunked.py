"""Linear attention with decay, and HGRN2's, on the CPU.

1. `layout` folds the tokens of a batch, or of packed sequences, into chunks, in float32 (float64
   for float64 input) whatever the dtype of the tensors; 2. `passes` does the work on chunks;
3. results are unfolded into new contiguous tensors of the inputs' dtypes.

Plain PyTorch without autograd: `operators` wraps it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.chunk_sizes import STATE_INTERVAL
from models.kernels import intra_scalar
from models.kernels.call import Call, Gradients
from models.kernels.intra_scalar import Weights
from models.kernels.layout import Layout, chunk_bound, layout
from models.kernels.passes import backward_pass, forward_pass

CHUNK = STATE_INTERVAL["cpu"]
"""Tokens in a chunk. At d = 64, 32 and 64 take the same time within 5 %, and 128 up to 30 % more;
64 stores half the states of 32."""


def forward(call: Call, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence of `models.kernels.reference`; HGRN2's with f = b + (1 - b) sigmoid(x) for
    logits x in k's place and bounds b, k = 1 - f and the decay log f.

    Returns:
        o, (B, T, H, V) in v's dtype; the final state, (N, H, K, V); and for `backward` the state
        before each chunk, of `states_shape`. States are in the working dtype.

    Raises:
        ValueError: a decay above 0, or cu_seqlens that do not rise from 0 to T.
    """
    q, k, v, decay, initial_state, cu_seqlens, _ = call
    gated = call.mode == "gate"
    if not gated:
        check_decay(decay)
    dtype = torch.promote_types(q.dtype, torch.float32)
    cut = layout(q.shape[1], cu_seqlens, chunk)
    if gated:
        _, key, factor = _gate(cut, k, _bound(decay), dtype)
    else:
        key, factor = cut.fold(k, dtype), fold_decay(cut, decay, dtype)
    o, final_state, states = forward_pass(
        cut, cut.fold(q, dtype), key, cut.fold(v, dtype), factor, initial_state,
        states_shape(call, chunk)[0],
    )  # fmt: skip
    return cut.unfold(o, v.dtype), final_state, states


def backward(
    call: Call,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    chunk: int = CHUNK,
) -> Gradients:
    """Gradients from those of o and of the final state.

    Args:
        call, chunk: as in `forward`.
        states: what `forward` returned.
        do: (B, T, H, V).
        dfinal_state: (N, H, K, V); None is zero.
        decay_gradient: compute the decay's gradient.

    Returns:
        dq, dk, dv, ddecay (None without a decay, or when not asked for) and dinitial_state (None
        without an initial state), each of its input's shape and dtype.
    """
    q, k, v, decay, initial_state, cu_seqlens, _ = call
    if call.mode == "gate":
        return _gate_backward(call, states, do, dfinal_state, chunk)
    dtype = states.dtype
    cut = layout(q.shape[1], cu_seqlens, chunk)
    dq, dk, dv, rate, dinitial_state = backward_pass(
        cut,
        cut.fold(q, dtype),
        cut.fold(k, dtype),
        cut.fold(v, dtype),
        fold_decay(cut, decay, dtype, diagonal=-1 if decay_gradient else 0),
        states,
        cut.fold(do, dtype),
        dfinal_state,
        decay_gradient,
    )
    return (
        cut.unfold(dq, q.dtype),
        cut.unfold(dk, k.dtype),
        cut.unfold(dv, v.dtype),
        None if rate is None or decay is None else decay_gradient_of(cut, decay, rate),
        None if initial_state is None else dinitial_state.to(initial_state.dtype),
    )


def _gate_backward(
    call: Call, states: Tensor, do: Tensor, dfinal_state: Tensor | None, chunk: int
) -> Gradients:
    """dq, dx, dv, db and dinitial_state of HGRN2.

    Through f, whose gradient is df = ddecay / f - dk: dx = (1 - b) sigmoid(x) sigmoid(-x) df and
    db = sum over tokens of sigmoid(-x) df. ddecay is good to one rounding of the largest in its
    chunk, not of itself; so f below 8 roundings of 1, which needs a bound b below that, counts as
    that in 1 / f: db then misses part of such tokens instead of being noise. dx does not.
    """
    q, x, v, decay, initial_state, cu_seqlens, _ = call
    bound = _bound(decay)
    dtype = states.dtype
    cut = layout(q.shape[1], cu_seqlens, chunk)
    gate, k, factor = _gate(cut, x, bound, dtype)
    dq, dk, dv, ddecay, dinitial_state = backward_pass(
        cut,
        cut.fold(q, dtype),
        k,
        cut.fold(v, dtype),
        factor,
        states,
        cut.fold(do, dtype),
        dfinal_state,
        decay_gradient=True,
    )
    assert ddecay is not None
    # gate / f is of order 1 even where both underflow.
    ratio = gate / factor.clamp_(min=torch.finfo(dtype).tiny)
    dx = ratio.mul_(ddecay).addcmul_(gate, dk, value=-1).mul_(k)
    dfactor = ddecay.div_(factor.clamp_(min=8 * torch.finfo(dtype).eps)).sub_(dk)
    dbound = dfactor.mul_(1 - gate)
    return (
        cut.unfold(dq, q.dtype),
        cut.unfold(dx, x.dtype),
        cut.unfold(dv, v.dtype),
        cut.unfold(dbound, dtype).sum((0, 1)).to(bound.dtype),
        None if initial_state is None else dinitial_state.to(initial_state.dtype),
    )


def empty_states(call: Call) -> Tensor:
    """An uninitialised third result of `forward`, from shapes alone: what fake tensors need."""
    dtype = torch.promote_types(call.q.dtype, torch.float32)
    return call.q.new_empty(states_shape(call), dtype=dtype)


def states_shape(call: Call, chunk: int = CHUNK) -> tuple[int, ...]:
    """Shape of the states that `forward` saves, from the shapes of its arguments alone: packed
    sequences may leave the last few unused."""
    batch, length = call.q.shape[:2]
    chunks = chunk_bound(length, chunk, call.sequences if call.packed else None)
    return chunks, batch, *call.state_shape[1:]


def _bound(decay: Tensor | None) -> Tensor:
    """HGRN2's lower bound, which lies in the decay's place."""
    assert decay is not None
    return decay


def check_decay(decay: Tensor | None) -> None:
    """Raise ValueError if a log decay is above 0."""
    if decay is not None and decay.numel() and decay.max() > 0:
        raise ValueError(
            f"decay={decay.max().item():.4g} at its largest: log decays are at most 0, where "
            "nothing is forgotten; pass -abs(slope) or logsigmoid(x)."
        )


def fold_decay(
    cut: Layout, decay: Tensor | None, dtype: torch.dtype, diagonal: int = 0
) -> Tensor | Weights:
    """A log decay of any shape as `passes` takes it."""
    if decay is not None and decay.ndim == 4:
        return cut.fold(decay, dtype).exp_()
    return intra_scalar.weights(cut, decay, dtype, diagonal)


def _gate(
    cut: Layout, gate_logits: Tensor, lower_bound: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(x), keys and factors of HGRN2, (M, B, H, C, K) each.

    1 - f is formed from sigmoid(-x), not as a difference. Padding is +inf: key 0, factor 1.
    """
    x = cut.fold(gate_logits, dtype, pad=torch.inf)
    bound = lower_bound.to(dtype)[:, None, :]  # (H, 1, K)
    gate = x.sigmoid()
    return gate, x.neg_().sigmoid_().mul_(1 - bound), torch.addcmul(bound, 1 - bound, gate)


def decay_gradient_of(cut: Layout, decay: Tensor, rate: Tensor) -> Tensor:
    """The gradient of a decay of any shape from that of each token, (M, B, H, C, K or 1). Where
    the decay is -inf the factor is 0 and so is its derivative."""
    ddecay = cut.unfold(rate, rate.dtype)  # (B, T, H, K or 1)
    if decay.ndim < 4:
        ddecay = ddecay.squeeze(-1)
    if decay.ndim == 1:
        ddecay = ddecay.sum((0, 1))
    if decay.numel() and decay.min() == -torch.inf:
        ddecay.masked_fill_(decay == -torch.inf, 0.0)
    return ddecay.to(decay.dtype)
