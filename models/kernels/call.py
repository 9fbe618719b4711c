"""One call of linear attention: what every function between `api` and the kernels passes on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Gradients = tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""dq, dk, dv, ddecay and dinitial_state of a call; None for what is absent, or not asked for."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Call(NamedTuple):
    """The arguments of one call, forward and backward, in the order of the operators.

    A named tuple, and not a dataclass, because it unpacks into an operator's arguments and
    `torch.compile` traces it.
    """

    q: Tensor
    """(B, T, H, K)."""
    k: Tensor
    """(B, T, H, K): keys, or HGRN2's gate logits."""
    v: Tensor
    """(B, T, H, V)."""
    decay: Tensor | None = None
    """Log decays: None, (H,), (B, T, H) or (B, T, H, K); HGRN2's lower bounds, (H, K); with
    `position_offset` the angles of the cosine form, (H, K)."""
    initial_state: Tensor | None = None
    """(N, H, K, V), of the cosine form (N, H, 2K, V); None is zero."""
    cu_seqlens: Tensor | None = None
    """Offsets of N packed sequences, (N + 1,); None: the B rows are the N sequences."""
    position_offset: Tensor | None = None
    """Cosine form alone: the position of the first token, (1,) or (N,)."""

    @property
    def mode(self) -> str:
        """How states decay, from the shapes: `none`, `head`, `head_t`, `vector` (per channel),
        `gate` (HGRN2's) or `phase` (the cosine form). The rows of `launch.KERNELS`, and what the
        tuning tables call them."""
        if self.position_offset is not None:
            return "phase"
        if self.decay is None:
            return "none"
        modes = {1: "head", 2: "gate", 3: "head_t", 4: "vector"}
        if self.decay.ndim not in modes:
            raise ValueError(f"decay has shape {tuple(self.decay.shape)}: 1 to 4 dimensions.")
        return modes[self.decay.ndim]

    @property
    def packed(self) -> bool:
        """Whether sequences lie behind one another in one row."""
        return self.cu_seqlens is not None

    @property
    def sequences(self) -> int:
        """N."""
        return self.q.shape[0] if self.cu_seqlens is None else self.cu_seqlens.shape[0] - 1

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of the states before the first and after the last token, (N, H, K or 2K, V)."""
        rows = self.q.shape[3] * (1 if self.position_offset is None else 2)
        return self.sequences, self.q.shape[2], rows, self.v.shape[3]


def check(call: Call, key: str = "k", key_copies: int = 1) -> None:
    """Raise ValueError, naming the argument, its value and the remedy, unless all fits.

    `key` is the name of the argument in k's place; states have `key_copies` rows a key channel.
    HGRN2's bounds and the cosine's angles are for `check_channels`.
    """
    q, k, v, decay, initial_state, cu_seqlens, _ = call
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


def check_channels(q: Tensor, **vectors: Tensor) -> None:
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
