"""Forward and backward of linear attention with per-channel decay, and of HGRN2's gated form.

    forward    scan_states, read_states                                  2 launches
    backward   scan_states (reverse), read_states (reverse), gradients   3 launches
               and, for HGRN2's lower bound, the sum of its per-tile gradients

States are stored before every `CHUNK` tokens, in bfloat16 for 16-bit inputs (the carried state
stays float32); the backward stores as many state gradients. Bytes a token and head at K = V = 128,
bfloat16, C = 128, HGRN2: forward 2048, backward 4352, of which q, x, v, o and their gradients, each
moved once, are 2816. Intermediate scores, decays and keys never leave a multiprocessor.

There is one path for all decays, exact for any of them (see `vector_tiles`): no floor, no clamp.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from models.chunk_sizes import STATE_INTERVAL
from models.kernels.call import Call, Gradients
from models.kernels.triton.common import (
    architecture,
    check_inputs,
    dot_precision,
    segment_entries,
    strides,
    tuned,
)
from models.kernels.triton.vector_gradients import gradients
from models.kernels.triton.vector_read import read_states
from models.kernels.triton.vector_states import scan_states

CHUNK = STATE_INTERVAL["cuda"]
"""Tokens between stored states."""


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the stored chunk states for inputs of `dtype`."""
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


def empty_states(call: Call) -> Tensor:
    """Room for the states before every chunk, (entries, H, K, V)."""
    entries = segment_entries(call.q.shape[1], call.sequences, CHUNK, call.packed)
    shape = (entries, *call.state_shape[1:])
    return torch.empty(shape, dtype=state_dtype(call.q.dtype), device=call.q.device)


class _Launches:
    """The launches of one call, and the arguments that all of its kernels share."""

    def __init__(self, call: Call) -> None:
        check_inputs(call)
        self.call = call
        self.q, self.k, self.v, decay, self.initial, self.cu_seqlens, _ = call
        self.batch, self.tokens, self.heads, self.K = self.q.shape
        self.V, self.sequences = self.v.shape[-1], call.sequences
        self.gated = call.mode == "gate"
        assert decay is not None
        self.gate, self.low = (self.k, decay) if self.gated else (decay, None)
        self.arch = architecture(self.q.device)
        self.entries = segment_entries(self.tokens, self.sequences, CHUNK, call.packed)
        self.empty = self.sequences == 0 or self.heads == 0
        self.constants = {
            "K": self.K,
            "V": self.V,
            "C": CHUNK,
            "GATE": self.gated,
            "PACKED": call.packed,
            "DOT": tl.float32 if self.q.dtype == torch.float32 else tl.bfloat16,
            "PRECISION": dot_precision(self.q.dtype, self.arch),
        }

    def config(self, kernel: str) -> dict[str, int]:
        """Launch constants from the tuning table; its BT, tokens in a tile, becomes LEVELS."""
        config = dict(tuned("vector", kernel, self.call, self.arch))
        config["LEVELS"] = config.pop("BT").bit_length() - 1
        return config

    def tiles(self, config: dict[str, int]) -> int:
        """Tiles of the whole call, for the grid."""
        return self.entries * (CHUNK >> config["LEVELS"])

    def pointer(self, tensor: Tensor | None) -> Tensor:
        """The tensor, or one that stands for an absent pointer."""
        return self.q if tensor is None else tensor

    @property
    def low_strides(self) -> tuple[int, int]:
        return (0, 0) if self.low is None else (self.low.stride(0), self.low.stride(1))

    @property
    def counts(self) -> tuple[int, int, int]:
        return self.tokens, self.sequences, self.heads

    def scan(self, w: Tensor, start: Tensor | None, end: Tensor | None, reverse: bool) -> Tensor:
        """Chunk states (entries, H, K, V); `start` is the state to begin with, `end` receives the
        one left over."""
        config = self.config("scan_reverse" if reverse else "scan")
        states = empty_states(self.call)
        blocks = -(-self.K // config["BK"]) * -(-self.V // config["BV"])
        read = self.q if reverse else self.k  # the other is not, nor what is absent
        scan_states[(self.sequences * self.heads * blocks,)](
            read, read, self.gate, read if self.low is None else self.low, w,
            read if start is None else start, states, read if end is None else end,
            read if self.cu_seqlens is None else self.cu_seqlens,
            *read.stride(), *read.stride(), *self.gate.stride(), *self.low_strides,
            *w.stride(), *strides(start, 4), *self.counts,
            REVERSE=reverse, START=start is not None, END=end is not None,
            **self.constants, **config,
        )  # fmt: skip
        return states

    def read(self, w: Tensor, states: Tensor, reverse: bool) -> Tensor:
        """o (B, T, H, V) from w = v and states, or dv from w = do and state gradients."""
        config = self.config("read_reverse" if reverse else "read")
        out = torch.empty(
            (self.batch, self.tokens, self.heads, self.V), dtype=w.dtype, device=w.device
        )
        read_states[(self.tiles(config) * self.heads * -(-self.V // config["BV"]),)](
            self.q, self.k, self.gate, self.pointer(self.low), w, states, out,
            self.pointer(self.cu_seqlens),
            *self.q.stride(), *self.k.stride(), *self.gate.stride(), *self.low_strides,
            *w.stride(), *self.counts,
            REVERSE=reverse, **self.constants, **config,
        )  # fmt: skip
        return out

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """o, the final state and the states before every chunk."""
        shape, device = self.call.state_shape, self.q.device
        final = torch.empty(shape, dtype=torch.float32, device=device)
        if self.empty:
            return torch.empty_like(self.v), final, empty_states(self.call)
        with torch.cuda.device_of(self.q):
            states = self.scan(self.v, self.initial, final, reverse=False)
            return self.read(self.v, states, reverse=False), final, states

    def backward(self, states: Tensor, do: Tensor, dfinal_state: Tensor | None) -> Gradients:
        """dq; dk, or of the gate's logits; dv; ddecay, or of the lower bound; dinitial_state.

        Empty `states` (of a forward pass token by token) are computed here.
        """
        device = self.q.device
        dq = torch.empty(self.q.shape, dtype=self.q.dtype, device=device)
        dk = None if self.gated else torch.empty_like(dq)
        dgate = torch.empty(self.gate.shape, dtype=self.gate.dtype, device=device)
        dinitial = None
        if self.initial is not None:
            dinitial = torch.empty(self.call.state_shape, dtype=torch.float32, device=device)
        if self.empty:
            dv = torch.empty_like(self.v)
            dlow = None if self.low is None else torch.zeros_like(self.low)
            return (dq, dgate, dv, dlow, dinitial) if dk is None else (dq, dk, dv, dgate, dinitial)
        config = self.config("gradients")
        tiles = self.tiles(config)
        dlow = None
        if self.low is not None:
            dlow = torch.empty((tiles, self.heads, self.K), dtype=torch.float32, device=device)
        with torch.cuda.device_of(self.q):
            if states.numel() == 0:
                states = self.scan(self.v, self.initial, None, reverse=False)
            dstates = self.scan(do, dfinal_state, dinitial, reverse=True)
            dv = self.read(do, dstates, reverse=True)
            gradients[(tiles * self.heads * -(-self.K // config["BK"]),)](
                self.q, self.k, self.gate, self.pointer(self.low), self.v, do, states, dstates,
                dq, self.pointer(dk), dgate, self.pointer(dlow), self.pointer(self.cu_seqlens),
                *self.q.stride(), *self.k.stride(), *self.gate.stride(), *self.low_strides,
                *self.v.stride(), *do.stride(), *self.counts,
                **self.constants, **config,
            )  # fmt: skip
        if dinitial is not None and self.initial is not None:
            dinitial = dinitial.to(self.initial.dtype)
        if dk is not None:
            return dq, dk, dv, dgate, dinitial
        assert dlow is not None
        assert self.low is not None
        return dq, dgate, dv, dlow.sum(0).to(self.low.dtype), dinitial


def forward(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), final state (N, H, K, V) float32, and the states `backward` reads.

    Args:
        call: bfloat16, float16 or float32. Log decays (B, T, H, K) in nats a step, at most 0, -inf
            allowed, any float dtype; or HGRN2's lower bounds b in [0, 1), (H, K), with logits x in
            k's place: f = b + (1 - b) sigmoid(x), k = 1 - f and the decay log f, in registers.

    Raises:
        ValueError: device, dtype or shape outside what the kernels support.
    """
    return _Launches(call).forward()


def backward(
    call: Call,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
) -> Gradients:
    """dq, dk (of the logits), dv, ddecay (of the lower bound; None if it is not asked for: it
    saves nothing) and dinitial_state (None without one), of their inputs' dtypes."""
    dq, dk, dv, ddecay, dinitial = _Launches(call).backward(states, do, dfinal_state)
    return dq, dk, dv, ddecay if decay_gradient else None, dinitial
