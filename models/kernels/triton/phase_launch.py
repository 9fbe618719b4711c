"""Forward and backward of `cosine_attention` with the rotation inside the kernels.

Launches: forward phase_read (and boundary states where batch x heads are few); backward phase_read
in reverse for dv, phase_inputs for dq, dk and dtheta (and boundary gradients).
"""

from __future__ import annotations

import torch
from torch import Tensor

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


class _Call:
    """Arguments that all launches of one call share."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        theta: Tensor,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        position_offset: int | Tensor,
        segment: int | None,
    ) -> None:
        shape = check_inputs(q, k, v, None, cu_seqlens)
        self.batch, self.tokens, self.heads, self.K, self.V, self.sequences = shape
        if theta.shape != q.shape[2:]:
            raise ValueError(
                f"theta has shape {tuple(theta.shape)}, expected (H, K) = {tuple(q.shape[2:])}."
            )
        self.state_shape = (self.sequences, self.heads, 2 * self.K, self.V)
        if initial_state is not None and initial_state.shape != self.state_shape:
            raise ValueError(
                f"initial_state has shape {tuple(initial_state.shape)}, expected (N, H, 2K, V) = "
                f"{self.state_shape}."
            )
        if not isinstance(position_offset, Tensor):
            # Made on the device: copying a number there would wait for it.
            position_offset = torch.full((1,), position_offset, device=q.device, dtype=torch.int64)
        self.offset = position_offset.reshape(-1)
        if self.offset.numel() not in (1, self.sequences):
            raise ValueError(
                f"position_offset has {self.offset.numel()} elements: give one, or one for each of "
                f"the {self.sequences} sequences."
            )
        self.q, self.k, self.v, self.theta = q, k, v, theta
        self.initial, self.cu_seqlens = initial_state, cu_seqlens
        self.packed = cu_seqlens is not None
        self.arch = architecture(q.device)
        if segment is None:
            tiles = -(-self.V // self.config("phase_read")["BV"])
            rows = 1 if self.packed else self.batch
            programs = rows * self.heads * tiles
            segment = segment_length(self.tokens, programs, multiprocessors(q.device))
        self.segment = segment
        self.segmented = segment < self.tokens
        self.entries = segment_entries(self.tokens, self.sequences, segment, self.packed)
        self.angles = (theta.stride(0), theta.stride(1), int(self.offset.numel() > 1))

    def config(self, kernel: str) -> dict[str, int]:
        return tuned(
            "scalar", kernel, "phase", self.q.dtype, self.K, self.V, self.arch, self.packed
        )

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
        shape = (self.entries, *self.state_shape[1:])
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


def cosine_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    position_offset: int | Tensor = 0,
    segment: int | None = None,
) -> tuple[Tensor, Tensor]:
    """o (B, T, H, V) and the final state (N, H, 2K, V) float32, cosine half first.

    Args:
        q, k, v: (B, T, H, K), (B, T, H, K), (B, T, H, V); bfloat16, float16 or float32.
        theta: angles in radians a step, (H, K).
        initial_state: (N, H, 2K, V).
        cu_seqlens: offsets of N packed sequences, (N + 1,).
        position_offset: position of the first token: a number, or integers of shape () or (N,).
        segment: tokens a program walks, a multiple of 128; None: from the shapes.

    Raises:
        ValueError: device, dtype or shape outside what the kernels support.
    """
    call = _Call(q, k, v, theta, initial_state, cu_seqlens, position_offset, segment)
    final = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    if call.sequences == 0 or call.heads == 0:
        return torch.empty(v.shape, dtype=v.dtype, device=v.device), final
    with torch.cuda.device_of(q):
        states = call.states(k, v, initial_state, reverse=False)
        return call.read(q, k, v, initial_state, states, final, reverse=False), final


def cosine_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    position_offset: int | Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """dq, dk, dv, dtheta (H, K) and dinitial_state (None without an initial state)."""
    call = _Call(q, k, v, theta, initial_state, cu_seqlens, position_offset, segment)
    dinitial = None
    if initial_state is not None:
        dinitial = torch.empty(call.state_shape, dtype=torch.float32, device=q.device)
    if call.sequences == 0 or call.heads == 0:
        return q.clone(), k.clone(), v.clone(), torch.zeros_like(theta), dinitial
    do = do.to(v.dtype)
    with torch.cuda.device_of(q):
        states = call.states(k, v, initial_state, reverse=False)
        dstates = call.states(q, do, dfinal_state, reverse=True)
        dv = call.read(k, q, do, dfinal_state, dstates, dinitial, reverse=True)
        dq, dk, dtheta = call.inputs(do, states, dfinal_state, dstates)
    return dq, dk, dv, dtheta, dinitial
