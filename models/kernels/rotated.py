"""The cosine form on the CPU, in PyTorch: `chunked` on rotated queries and keys (`lrpe`)."""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels import chunked
from models.kernels.call import Call, Gradients
from models.kernels.chunked import CHUNK, empty_states
from models.kernels.lrpe import lrpe

__all__ = ["backward", "empty_states", "forward"]


def forward(call: Call, chunk: int = CHUNK) -> tuple[Tensor, Tensor, Tensor]:
    """As `models.kernels.chunked.forward`."""
    return chunked.forward(_turn(call), chunk)


def backward(
    call: Call,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    chunk: int = CHUNK,
) -> Gradients:
    """As `models.kernels.chunked.backward`; in the decay's place is the gradient of the angles."""
    linear = _turn(call)
    dq, dk, dv, _, dinitial = chunked.backward(linear, states, do, dfinal_state, False, chunk)
    theta = call.decay
    assert theta is not None
    # Through x cos and x sin, x = q and k.
    dtype = torch.promote_types(theta.dtype, torch.float32)
    places = _positions(call).to(dtype)[..., None, None]
    angle = places * theta.to(dtype)
    cosine, sine = angle.cos(), angle.sin()
    back: list[Tensor] = []
    dangle = torch.zeros((), dtype=dtype)
    for x, dx in ((call.q, dq), (call.k, dk)):
        first, second = dx.chunk(2, -1)
        back.append(first * cosine.to(x.dtype) + second * sine.to(x.dtype))
        dangle = dangle + (second * x).to(dtype) * cosine - (first * x).to(dtype) * sine
    dtheta = (dangle * places).sum((0, 1)).to(theta.dtype) if decay_gradient else None
    return back[0], back[1], dv, dtheta, dinitial


def _positions(call: Call) -> Tensor:
    """Of the tokens, counted in every sequence from its offset, (T,) or (B, T)."""
    offset = call.position_offset
    assert offset is not None
    positions = torch.arange(call.q.shape[1])
    if call.cu_seqlens is None:
        return positions + offset[:, None]
    sequence = torch.searchsorted(call.cu_seqlens[1:].long(), positions, right=True)
    positions = positions - call.cu_seqlens[sequence]
    return positions + (offset[sequence] if len(offset) > 1 else offset)


def _turn(call: Call) -> Call:
    """Linear attention without decay on turned queries and keys, (B, T, H, 2K)."""
    assert call.decay is not None
    places = _positions(call)
    q, k = (lrpe(x, call.decay, places) for x in (call.q, call.k))
    return Call(q, k, call.v, None, call.initial_state, call.cu_seqlens)
