"""Forward and backward of the delta rule on CUDA devices, for every decay.

    forward    delta_pairs, delta_scan                                        2 launches
    backward   delta_pairs, delta_errors, delta_reverse, delta_gradients      4 launches
               and the sums of what blocks of channels give beta and a head's decay

The forward pass keeps the state before every `CHUNK` tokens, in bfloat16 for 16-bit inputs; the
backward pass forms again what pairs of tokens and the tokens' errors are, from them. Products of
16-bit inputs take bfloat16 operands, float16 having too little range for states, and accumulate in
float32; the triangular system is solved in float32 (`delta_tiles.resolvent`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from models.chunk_sizes import STATE_INTERVAL
from models.kernels.delta.call import DeltaCall, DeltaGradients
from models.kernels.triton.common import (
    architecture,
    block,
    check_inputs,
    dot_precision,
    segment_entries,
    strides,
    tuned,
)
from models.kernels.triton.delta_decode import MODES
from models.kernels.triton.delta_gradients import delta_gradients
from models.kernels.triton.delta_pairs import delta_pairs
from models.kernels.triton.delta_scan import delta_errors, delta_reverse, delta_scan

CHUNK = STATE_INTERVAL["cuda"]
"""Tokens between kept states."""


def tile(call: DeltaCall, arch: str) -> int:
    """Tokens in a tile: 64 where matrix instructions read shared memory (sm_90, sm_100), else 32,
    and fewer where a tile of all key channels would not fit registers."""
    most = 64 if arch in ("sm_90", "sm_100") else 32
    row = block(max(call.q.shape[3], call.v.shape[3])) * call.q.dtype.itemsize
    return max(16, min(most, most * 256 // row))


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of stored states, errors and pairs for inputs of `dtype`."""
    return torch.float32 if dtype == torch.float32 else torch.bfloat16


def empty_states(call: DeltaCall) -> Tensor:
    """Room for the states before every chunk, (entries, H, K, V)."""
    entries = segment_entries(call.q.shape[1], call.sequences, CHUNK, call.packed)
    shape = (entries, *call.state_shape[1:])
    return torch.empty(shape, dtype=working_dtype(call.q.dtype), device=call.q.device)


class _Pairs(NamedTuple):
    """What `delta_pairs` writes, and what `delta_scan` takes for q, k and the decay."""

    scores: Tensor
    solved: Tensor
    q: Tensor
    k: Tensor
    writing: Tensor
    decay: Tensor


class _Launches:
    """The launches of one call, and the arguments that its kernels share."""

    def __init__(self, call: DeltaCall) -> None:
        check_inputs(call.without_beta)
        self.call = call
        self.q, self.k, self.v, self.beta, decay, self.initial, cu_seqlens = call
        self.batch, self.tokens, self.heads, self.K = self.q.shape
        self.V, self.sequences = self.v.shape[-1], call.sequences
        self.arch = architecture(self.q.device)
        self.entries = segment_entries(self.tokens, self.sequences, CHUNK, call.packed)
        self.empty = self.sequences == 0 or self.heads == 0
        self.bt = tile(call, self.arch)
        self.tiles = self.entries * (CHUNK // self.bt)
        self.decay = self.q if decay is None else decay  # stands for an absent pointer
        stride = (0, 0, 0, 0) if decay is None else decay.stride()
        self.decay_strides = (*stride, 0)[:4]
        self.cu_seqlens = self.q if cu_seqlens is None else cu_seqlens
        self.counts = self.tokens, self.sequences, self.heads
        self.dtype = working_dtype(self.q.dtype)
        self.constants = {
            "K": self.K,
            "C": CHUNK,
            "BT": self.bt,
            "MODE": MODES[call.mode],
            "PACKED": call.packed,
            "DOT": tl.float32 if self.q.dtype == torch.float32 else tl.bfloat16,
            "PRECISION": dot_precision(self.q.dtype, self.arch),
        }
        self.all_keys = {"V": self.V, "BK": block(self.K)}
        self.levels = {"LEVELS": self.bt.bit_length() - 1}

    def config(self, kernel: str) -> dict[str, int]:
        """Launch constants from the tuning table."""
        return tuned("delta", kernel, self.call, self.arch)

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.q.device)

    def pairs(self) -> _Pairs:
        """The first launch of either pass."""
        shape = (self.tiles, self.heads, self.bt, self.bt)
        scores, solved = (self.new(*shape, dtype=self.dtype) for _ in range(2))
        found = _Pairs(scores, solved, self.q, self.k, self.k, self.decay)
        if self.call.mode == "delta_channel":
            q, k, writing = (self.new(*self.q.shape, dtype=self.dtype) for _ in range(3))
            totals = self.new(self.tiles, self.heads, self.K)
            found = _Pairs(scores, solved, q, k, writing, totals)
        delta_pairs[(self.tiles * self.heads,)](
            self.q, self.k, self.beta, self.decay, *found, self.cu_seqlens,
            *self.q.stride(), *self.k.stride(), *self.beta.stride(), *self.decay_strides,
            *self.counts, SOLVE=dot_precision(torch.float32, self.arch),
            **self.constants, **self.levels, **self.config("pairs"),
        )  # fmt: skip
        return found

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """o, the final state and the states before every chunk."""
        if not self.empty:
            with torch.cuda.device_of(self.q):
                return self.scan(self.pairs())
        final = self.new(*self.call.state_shape)
        return torch.empty_like(self.v), final, empty_states(self.call)

    def scan(self, found: _Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """The second launch of the forward pass, and its results."""
        states = empty_states(self.call)
        final = self.new(*self.call.state_shape)
        o = self.new(self.batch, self.tokens, self.heads, self.V, dtype=self.v.dtype)
        config = self.config("scan")
        delta_scan[(self.sequences * self.heads * -(-self.V // config["BV"]),)](
            found.q, found.k, found.writing, self.v, self.beta, found.decay,
            found.scores, found.solved,
            self.q if self.initial is None else self.initial, states, final, o, self.cu_seqlens,
            *found.q.stride(), *found.k.stride(), *self.v.stride(), *self.beta.stride(),
            *self.decay_strides[:3], *strides(self.initial, 4), *self.counts,
            START=self.initial is not None, **self.constants, **self.all_keys, **config,
        )  # fmt: skip
        return o, final, states

    def errors(self, states: Tensor, pairs: _Pairs) -> tuple[Tensor, Tensor]:
        """What every token found missing, (B, T, H, V), and the state before every tile."""
        found = self.new(self.batch, self.tokens, self.heads, self.V, dtype=self.dtype)
        tile_states = self.new(self.tiles, self.heads, self.K, self.V, dtype=self.dtype)
        config = self.config("errors")
        delta_errors[(self.entries * self.heads * -(-self.V // config["BV"]),)](
            pairs.k, pairs.writing, self.v, self.beta, pairs.decay, pairs.solved, states,
            tile_states, found, self.cu_seqlens,
            *pairs.k.stride(), *self.v.stride(), *self.beta.stride(), *self.decay_strides[:3],
            *self.counts, **self.constants, **self.all_keys, **config,
        )  # fmt: skip
        return found, tile_states

    def reverse(
        self, do: Tensor, end: Tensor | None, errors: Tensor, pairs: _Pairs
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """dv, dbeta, the state's gradient after every tile, and that of the initial state."""
        config = self.config("reverse")
        blocks = -(-self.V // config["BV"])
        dstates = self.new(self.tiles, self.heads, self.K, self.V, dtype=self.dtype)
        dv = self.new(self.batch, self.tokens, self.heads, self.V, dtype=self.v.dtype)
        dbeta = self.new(blocks, self.batch, self.tokens, self.heads)
        start = None if self.initial is None else self.new(*self.call.state_shape)
        delta_reverse[(self.sequences * self.heads * blocks,)](
            pairs.q, pairs.k, pairs.writing, self.beta, pairs.decay, do, errors, pairs.scores,
            pairs.solved,
            self.q if end is None else end, dstates, self.q if start is None else start,
            dv, dbeta, self.cu_seqlens,
            *pairs.q.stride(), *pairs.k.stride(), *self.beta.stride(), *self.decay_strides[:3],
            *do.stride(), *strides(end, 4), *self.counts,
            START=end is not None, END=start is not None,
            **self.constants, **self.all_keys, **config,
        )  # fmt: skip
        return dv, dbeta.sum(0).to(self.beta.dtype), dstates, start

    def backward(self, states: Tensor, do: Tensor, dfinal_state: Tensor | None) -> DeltaGradients:
        """All gradients; empty `states` (of a forward pass token by token) are computed here."""
        dq, dk = (self.new(*self.q.shape, dtype=self.q.dtype) for _ in range(2))
        decay, config = self.call.decay, self.config("gradients")
        blocks = -(-self.K // config["BK"])
        ddecay = None
        if decay is not None:
            each = decay.ndim == 4
            shape = decay.shape if each else (blocks, *decay.shape)
            ddecay = self.new(*shape, dtype=decay.dtype if each else torch.float32)
        if self.empty:
            start = None if self.initial is None else torch.empty_like(self.initial)
            given = None if decay is None else torch.empty_like(decay)
            return dq, dk, torch.empty_like(self.v), torch.empty_like(self.beta), given, start
        with torch.cuda.device_of(self.q):
            pairs = self.pairs()
            if states.numel() == 0:
                states = self.scan(pairs)[2]
            errors, tile_states = self.errors(states, pairs)
            dv, dbeta, dstates, start = self.reverse(do, dfinal_state, errors, pairs)
            del pairs
            delta_gradients[(self.tiles * self.heads * blocks,)](
                self.q, self.k, self.beta, self.decay, do, dv, errors, tile_states, dstates,
                dq, dk, self.q if ddecay is None else ddecay, self.cu_seqlens,
                *self.q.stride(), *self.k.stride(), *self.beta.stride(), *self.decay_strides,
                *do.stride(), *self.counts, V=self.V,
                **self.constants, **self.levels, **config,
            )  # fmt: skip
        if ddecay is not None and decay is not None and decay.ndim == 3:
            ddecay = ddecay.sum(0).to(decay.dtype)
        if start is not None and self.initial is not None:
            start = start.to(self.initial.dtype)
        return dq, dk, dv, dbeta, ddecay, start


def forward(call: DeltaCall) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), final state (N, H, K, V) float32, and the states `backward` reads.

    Args:
        call: bfloat16, float16 or float32; log decays in nats a step, at most 0, -inf allowed.

    Raises:
        ValueError: device, dtype or shape outside what the kernels support.
    """
    return _Launches(call).forward()


def backward(
    call: DeltaCall,
    states: Tensor,
    do: Tensor,
    dfinal_state: Tensor | None,
    decay_gradient: bool = True,
) -> DeltaGradients:
    """dq, dk, dv, dbeta, ddecay (None if it is not asked for: it saves little) and dinitial_state
    (None without one), of their inputs' dtypes."""
    *first, ddecay, start = _Launches(call).backward(states, do, dfinal_state)
    return *first, ddecay if decay_gradient else None, start
