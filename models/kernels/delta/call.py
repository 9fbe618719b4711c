"""One call of the delta rule: what every function between `api` and the kernels passes on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from models.kernels import call as linear

DeltaGradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]
"""dq, dk, dv, dbeta, ddecay and dinitial_state of a call; None for what is absent, or not asked
for."""


class DeltaCall(NamedTuple):
    """The arguments of one call, forward and backward, in the order of the operators."""

    q: Tensor
    """(B, T, H, K)."""
    k: Tensor
    """(B, T, H, K)."""
    v: Tensor
    """(B, T, H, V)."""
    beta: Tensor
    """(B, T, H)."""
    decay: Tensor | None = None
    """Log decays: None, (B, T, H) or (B, T, H, K)."""
    initial_state: Tensor | None = None
    """(N, H, K, V); None is zero."""
    cu_seqlens: Tensor | None = None
    """Offsets of N packed sequences, (N + 1,); None: the B rows are the N sequences."""

    @property
    def mode(self) -> str:
        """How states decay, from the shapes: `delta` (not at all), `delta_head` or
        `delta_channel`: rows of `models.kernels.launch.KERNELS`, and of the tuning tables."""
        if self.decay is None:
            return "delta"
        return "delta_head" if self.decay.ndim == 3 else "delta_channel"

    @property
    def packed(self) -> bool:
        """Whether sequences lie behind one another in one row."""
        return self.cu_seqlens is not None

    @property
    def sequences(self) -> int:
        """N."""
        return self.without_beta.sequences

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(N, H, K, V)."""
        return self.without_beta.state_shape

    @property
    def without_beta(self) -> linear.Call:
        """The arguments that linear attention has too."""
        return linear.Call(self.q, self.k, self.v, self.decay, self.initial_state, self.cu_seqlens)


def check(call: DeltaCall) -> None:
    """Raise ValueError, naming the argument, its value and the remedy, unless all fits."""
    linear.check(call.without_beta)
    q, beta, decay = call.q, call.beta, call.decay
    if decay is not None and decay.ndim < 3:
        raise ValueError(
            f"decay has shape {tuple(decay.shape)}: the delta rule takes one number a token and "
            f"head, {tuple(q.shape[:3])}, or a channel, {tuple(q.shape)}; expand a decay a head "
            "over the tokens."
        )
    if beta.shape != q.shape[:3]:
        raise ValueError(
            f"beta has shape {tuple(beta.shape)}: it must have one number a token and head, "
            f"{tuple(q.shape[:3])}."
        )
    if beta.dtype not in linear.DTYPES:
        raise ValueError(f"beta has dtype {beta.dtype}: convert it to the dtype of q, {q.dtype}.")
    if beta.device != q.device:
        raise ValueError(f"beta is on {beta.device} and q on {q.device}: move them to one device.")
