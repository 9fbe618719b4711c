"""Forward and backward of the cosine form with the rotation inside the kernels.

Launches: forward phase_read (and boundary states where batch x heads are few); backward phase_read
in reverse for dv, phase_inputs for dq, dk and dtheta (and boundary gradients).
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.kernels.call import Call, Gradients
from models.kernels.triton.common import (
    architecture,
    block,
    check_inputs,
    dot_precision,
    multiprocessors,
    segment_entries,
    strides,
    tuned,
)
from models.kernels.triton.scalar_launch import segment_length
from models.kernels.triton.scalar_phase import phase_inputs, phase_read
from models.kernels.triton.scalar_states import boundary_states


class _Launches:
    """The launches of one call, and the arguments that they share."""

    def __init__(self, call: Call, segment: int | None) -> None:
        check_inputs(call)
        self.call = call
        self.q, self.k, self.v, theta, self.initial, self.cu_seqlens, offset = call
        assert theta is not None
        assert offset is not None
        self.theta, self.offset = theta, offset.reshape(-1)
        self.batch, self.tokens, self.heads, self.K = self.q.shape
        self.V, self.sequences = self.v.shape[-1], call.sequences
        self.packed = call.packed
        self.empty = self.sequences == 0 or self.heads == 0
        self.arch = architecture(self.q.device)
        if segment is None:
            tiles = -(-self.V // self.config("phase_read")["BV"])
            rows = 1 if self.packed else self.batch
            programs = rows * self.heads * tiles
            segment = segment_length(self.tokens, programs, multiprocessors(self.q.device))
        self.segment = segment
        self.segmented = segment < self.tokens
        self.entries = segment_entries(self.tokens, self.sequences, segment, self.packed)
        self.angles = (theta.stride(0), theta.stride(1), int(self.offset.numel() > 1))

    def config(self, kernel: str) -> dict[str, int]:
        return tuned("scalar", kernel, self.call, self.arch)

    @property
    def constants(self) -> dict[str, object]:
        precision = dot_precision(self.q.dtype, self.arch)
        return {"K": self.K, "V": self.V, "PACKED": self.packed, "PRECISION": precision}

    def pointer(self, tensor: Tensor | None) -> Tensor:
        """The tensor, or one that stands for an absent pointer."""
        return self.q if tensor is None else tensor

    def states(self, y: Tensor, z: Tensor, edge: Tensor | None, reverse: bool) -> Tensor | None:
        """States before (reverse: gradients after) every segment, None when nothing is cut."""
        if not self.segmented:
            return None
        config = self.config("states")
        shape = (self.entries, *self.call.state_shape[1:])
        states = torch.empty(shape, dtype=torch.float32, device=y.device)
        tiles = 2 * -(-self.K // config["BK"]) * -(-self.V // config["BV"])
        boundary_states[(self.sequences * self.heads * tiles,)](
            y, z, y, self.theta, self.offset, self.pointer(edge), states,
            self.pointer(self.cu_seqlens), *y.stride(), *z.stride(), 0, 0, 0, *self.angles,
            *strides(edge, 4), self.tokens, self.segment, self.heads, MODE=0,
            EDGE=edge is not None, REVERSE=reverse, PHASE=True, **self.constants, **config,
        )  # fmt: skip
        return states

    def read(
        self, x: Tensor, y: Tensor, z: Tensor, edge: Tensor | None, states: Tensor | None,
        final: Tensor | None, reverse: bool,
    ) -> Tensor:  # fmt: skip
        """o, or dv."""
        config = self.config("phase_read")
        out = torch.empty(z.shape, dtype=z.dtype, device=z.device)
        phase_read[(self.entries * self.heads * -(-self.V // config["BV"]),)](
            x, y, z, out, self.theta, self.offset, self.pointer(edge), self.pointer(states),
            self.pointer(final), self.pointer(self.cu_seqlens),
            *x.stride(), *y.stride(), *z.stride(), *self.angles, *strides(edge, 4),
            self.tokens, self.sequences, self.segment, self.heads, BK=block(self.K),
            REVERSE=reverse, SEGMENTED=self.segmented, EDGE=edge is not None,
            FINAL=final is not None, **self.constants, **config,
        )  # fmt: skip
        return out

    def inputs(
        self, do: Tensor, states: Tensor | None, dfinal: Tensor | None, dstates: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """dq, dk and dtheta."""
        config = self.config("phase_inputs")
        dq, dk = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (self.q, self.k))
        shape = (2, self.entries, self.heads, self.K)
        dtheta = torch.empty(shape, dtype=torch.float32, device=do.device)
        phase_inputs[(self.entries * self.heads * 2 * -(-self.K // config["BT"]),)](
            self.q, self.k, self.v, do, dq, dk, dtheta, self.theta, self.offset,
            self.pointer(self.initial), self.pointer(states), self.pointer(dfinal),
            self.pointer(dstates), self.pointer(self.cu_seqlens),
            *self.q.stride(), *self.k.stride(), *self.v.stride(), *do.stride(), *self.angles,
            *strides(self.initial, 4), *strides(dfinal, 4),
            self.tokens, self.sequences, self.segment, self.heads, self.entries,
            BV=block(self.V), SEGMENTED=self.segmented, INITIAL=self.initial is not None,
            DFINAL=dfinal is not None, **self.constants, **config,
        )  # fmt: skip
        return dq, dk, dtheta.sum((0, 1)).to(self.theta.dtype)


def empty_states(call: Call) -> Tensor:
    """Nothing is kept: `backward` reads the inputs again."""
    return torch.empty(0, dtype=torch.float32, device=call.q.device)


def forward(call: Call, segment: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the final state (N, H, 2K, V) float32, cosine half first, and nothing kept.

    Args:
        call: bfloat16, float16 or float32, with angles (H, K) for a decay and a position offset.
        segment: tokens a program walks, a multiple of 128; None: from the shapes.

    Raises:
        ValueError: device, dtype or shape outside what the kernels support.
    """
    launches = _Launches(call, segment)
    q, k, v, initial = call.q, call.k, call.v, call.initial_state
    final = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    if launches.empty:
        return torch.empty(v.shape, dtype=v.dtype, device=v.device), final, empty_states(call)
    with torch.cuda.device_of(q):
        states = launches.states(k, v, initial, reverse=False)
        o = launches.read(q, k, v, initial, states, final, reverse=False)
        return o, final, empty_states(call)


def backward(
    call: Call,
    states: Tensor | None,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
    segment: int | None = None,
) -> Gradients:
    """dq, dk, dv, dtheta (H, K; None if it is not asked for: it saves nothing) and dinitial_state
    (None without an initial state). `states` is not read."""
    launches = _Launches(call, segment)
    q, k, v, initial = call.q, call.k, call.v, call.initial_state
    dinitial = None
    if initial is not None:
        dinitial = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    if launches.empty:
        dtheta = torch.zeros_like(launches.theta) if decay_gradient else None
        return q.clone(), k.clone(), v.clone(), dtheta, dinitial
    do = do.to(v.dtype)
    with torch.cuda.device_of(q):
        cut = launches.states(k, v, initial, reverse=False)
        dcut = launches.states(q, do, dfinal_state, reverse=True)
        dv = launches.read(k, q, do, dfinal_state, dcut, dinitial, reverse=True)
        dq, dk, dtheta = launches.inputs(do, cut, dfinal_state, dcut)
    if dinitial is not None and initial is not None:
        dinitial = dinitial.to(initial.dtype)
    return dq, dk, dv, dtheta if decay_gradient else None, dinitial
