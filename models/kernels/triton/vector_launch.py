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

CHUNK = 128
"""Tokens between stored states."""


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of the stored chunk states for inputs of `dtype`."""
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


def empty_states(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Room for the states before every chunk, (entries, H, K, V)."""
    batch, tokens, heads, key_dim = q.shape
    sequences = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    entries = segment_entries(tokens, sequences, CHUNK, cu_seqlens is not None)
    shape = (entries, heads, key_dim, v.shape[-1])
    return torch.empty(shape, dtype=state_dtype(q.dtype), device=q.device)


class _Call:
    """The arguments that all kernels of one call share."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        gate: Tensor,
        low: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
    ) -> None:
        shape = check_inputs(q, k, v, initial_state, cu_seqlens)
        self.batch, self.tokens, self.heads, self.K, self.V, self.sequences = shape
        if gate.shape != q.shape:
            raise ValueError(
                f"decay (or gate) has shape {tuple(gate.shape)}, expected q's, {tuple(q.shape)}."
            )
        if low is not None and low.shape != q.shape[2:]:
            raise ValueError(
                f"lower_bound has shape {tuple(low.shape)}, expected (H, K) = {tuple(q.shape[2:])}."
            )
        self.q, self.k, self.v, self.gate, self.low = q, k, v, gate, low
        self.gated = low is not None
        self.cu_seqlens = cu_seqlens
        self.arch = architecture(q.device)
        packed = cu_seqlens is not None
        self.entries = segment_entries(self.tokens, self.sequences, CHUNK, packed)
        self.empty = self.sequences == 0 or self.heads == 0
        self.constants = {
            "K": self.K,
            "V": self.V,
            "C": CHUNK,
            "GATE": self.gated,
            "PACKED": packed,
            "DOT": tl.float32 if q.dtype == torch.float32 else tl.bfloat16,
            "PRECISION": dot_precision(q.dtype, self.arch),
        }

    def config(self, kernel: str) -> dict[str, int]:
        """Launch constants from the tuning table; its BT, tokens in a tile, becomes LEVELS."""
        mode = "gate" if self.gated else "vector"
        packed = self.cu_seqlens is not None
        config = dict(
            tuned("vector", kernel, mode, self.q.dtype, self.K, self.V, self.arch, packed)
        )
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
        states = empty_states(self.q, self.v, self.cu_seqlens)
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

    def forward(self, initial_state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        final = torch.empty(
            (self.sequences, self.heads, self.K, self.V),
            dtype=torch.float32,
            device=self.q.device,
        )
        if self.empty:
            return torch.empty_like(self.v), final, empty_states(self.q, self.v, self.cu_seqlens)
        with torch.cuda.device_of(self.q):
            states = self.scan(self.v, initial_state, final, reverse=False)
            return self.read(self.v, states, reverse=False), final, states

    def backward(
        self, initial_state: Tensor | None, states: Tensor, do: Tensor, dfinal_state: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]:
        """dq, dk (None when gated), dv, dgate, dlow (None unless gated), dinitial_state.

        Empty `states` (of a forward pass token by token) are computed here.
        """
        dq = torch.empty(self.q.shape, dtype=self.q.dtype, device=self.q.device)
        dk = None if self.gated else torch.empty_like(dq)
        dgate = torch.empty(self.gate.shape, dtype=self.gate.dtype, device=self.q.device)
        dinitial = None
        if initial_state is not None:
            shape = (self.sequences, self.heads, self.K, self.V)
            dinitial = torch.empty(shape, dtype=torch.float32, device=self.q.device)
        if self.empty:
            dlow = None if self.low is None else torch.zeros_like(self.low)
            return dq, dk, torch.empty_like(self.v), dgate, dlow, dinitial
        config = self.config("gradients")
        tiles = self.tiles(config)
        dlow = None
        if self.low is not None:
            dlow = torch.empty(
                (tiles, self.heads, self.K), dtype=torch.float32, device=self.q.device
            )
        with torch.cuda.device_of(self.q):
            if states.numel() == 0:
                states = self.scan(self.v, initial_state, None, reverse=False)
            dstates = self.scan(do, dfinal_state, dinitial, reverse=True)
            dv = self.read(do, dstates, reverse=True)
            gradients[(tiles * self.heads * -(-self.K // config["BK"]),)](
                self.q, self.k, self.gate, self.pointer(self.low), self.v, do, states, dstates,
                dq, self.pointer(dk), dgate, self.pointer(dlow), self.pointer(self.cu_seqlens),
                *self.q.stride(), *self.k.stride(), *self.gate.stride(), *self.low_strides,
                *self.v.stride(), *do.stride(), *self.counts,
                **self.constants, **config,
            )  # fmt: skip
        if dlow is not None and self.low is not None:
            dlow = dlow.sum(0).to(self.low.dtype)
        if dinitial is not None and initial_state is not None:
            dinitial = dinitial.to(initial_state.dtype)
        return dq, dk, dv, dgate, dlow, dinitial


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), final state (N, H, K, V) float32, and the states `backward` reads.

    Args:
        q, k, v: (B, T, H, K), (B, T, H, K), (B, T, H, V); bfloat16, float16 or float32.
        decay: log decay in nats a step, at most 0, -inf allowed, (B, T, H, K), any float dtype.
        initial_state: (N, H, K, V).
        cu_seqlens: offsets of N packed sequences, (N + 1,).

    Raises:
        ValueError: device, dtype or shape outside what the kernels support.
    """
    return _Call(q, k, v, decay, None, initial_state, cu_seqlens).forward(initial_state)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """dq, dk, dv, ddecay and dinitial_state (None without one), of their inputs' dtypes."""
    call = _Call(q, k, v, decay, None, initial_state, cu_seqlens)
    dq, dk, dv, ddecay, _, dinitial = call.backward(initial_state, states, do, dfinal_state)
    assert dk is not None
    return dq, dk, dv, ddecay, dinitial


def hgrn2_forward(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`forward` with f = b + (1 - b) sigmoid(x), k = 1 - f and decay log f, all in registers.

    Args:
        q, v: as in `forward`; gate_logits: x, (B, T, H, K), q's dtype.
        lower_bound: b in [0, 1), (H, K).
    """
    call = _Call(q, gate_logits, v, gate_logits, lower_bound, initial_state, cu_seqlens)
    return call.forward(initial_state)


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
    """dq, dgate_logits, dv, dlower_bound and dinitial_state (None without one)."""
    call = _Call(q, gate_logits, v, gate_logits, lower_bound, initial_state, cu_seqlens)
    dq, _, dv, dx, dlow, dinitial = call.backward(initial_state, states, do, dfinal_state)
    assert dlow is not None
    return dq, dx, dv, dlow, dinitial
