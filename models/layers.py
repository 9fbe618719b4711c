"""What the architectures share: norms, gated channel mixers, rotations, the Toeplitz encoding.

A model is built of a token mixer, a norm, a gated channel mixer, and a stem, which runs once a call
before the blocks; which ones, its architecture says (`models.architecture`). Data flow of one call,
with T tokens of B sequences:

1. `Span` says where the tokens lie in their sequences (positions, packing, carried state or not).
2. The stem maps the embedded tokens (B, T, d) and prepares what all layers share.
3. Each block adds token_mixer(norm(x)), then channel_mixer(norm(x)).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.architectures.tnl import GatedOptions
from models.config import ModelConfig
from models.kernels.sequence import first_position

Shared = tuple[Tensor, ...]
"""What the stem prepares for one layer's token mixer."""
LayerState = dict[str, Tensor]
"""Named state tensors of one layer; the first dimension of each is the sequence."""


class Span(NamedTuple):
    """Where the tokens of one call lie in their sequences."""

    positions: Tensor
    """Position of every token within its sequence, from 0: (1, T) when all rows are alike,
    otherwise (B, T); packed: (1, T)."""
    offset: Tensor | None = None
    """Tokens each sequence had before this call, (N,); None when nothing is carried."""
    cu_seqlens: Tensor | None = None
    """Packed sequences: int32 boundaries (N + 1,), with B = 1; None when rows are sequences."""
    sequence: Tensor | None = None
    """Packed: the sequence of every token, (T,)."""
    keep_state: bool = False
    """The caller wants the state after the last token."""
    visible: Tensor | None = None
    """Which tokens of the call a token sees, where they are trees: (B, T, T), or packed (N, L, L)
    by their places in their sequences, of which the longest has L; None: those before it in its
    sequence."""


class Trees(NamedTuple):
    """Continuations of each sequence, with beginnings in common, in one row (see `TokenMixer`)."""

    depth: Tensor
    """Tokens between each token and the end of what came before the call, (B, T), from 0."""
    visible: Tensor
    """Whether a token (second dimension) continues another or is it, (B, T, T); of packed
    sequences (N, L, L)."""


def make_span(
    tokens: Tensor,
    offset: Tensor | None,
    cu_seqlens: Tensor | None,
    keep_state: bool,
    trees: Trees | None = None,
) -> Span:
    """The span of `tokens` (B, T) that follow `offset` earlier tokens of every sequence."""
    if trees is not None and cu_seqlens is None:
        positions = trees.depth if offset is None else offset[:, None] + trees.depth
        return Span(positions, offset, visible=trees.visible)
    index = torch.arange(tokens.shape[1], device=tokens.device)  # (T,)
    index = index + first_position(tokens.shape[1])
    if cu_seqlens is None:
        positions = index[None] if offset is None else offset[:, None] + index  # (1 or B, T)
        return Span(positions, offset, keep_state=keep_state)
    starts = cu_seqlens.to(torch.int64)
    sequence = torch.searchsorted(starts[1:], index, right=True)  # (T,)
    if trees is not None:
        return Span(trees.depth, None, cu_seqlens, sequence, visible=trees.visible)
    positions = index - starts[sequence]
    if offset is not None:
        positions = positions + offset[sequence]
    return Span(positions[None], offset, cu_seqlens, sequence, keep_state)


class _Normalize(torch.autograd.Function):
    """y = x r, r = 1 / sqrt(mean(x^2) + eps); dx = r (dy - y mean(dy y)).

    Four passes over the rows for forward and backward together, where PyTorch's composition for
    the CPU takes about three times as many.
    """

    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        scale = (norm.square() / x.shape[-1] + eps).rsqrt()
        y = (x * scale).to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        y, scale = ctx.saved_tensors
        along = (grad * y).sum(-1, keepdim=True, dtype=scale.dtype) / -y.shape[-1]
        return (torch.addcmul(grad, y, along.to(y.dtype)) * scale).to(y.dtype), None


def normalize(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, statistics in float32 or wider."""
    if x.is_cuda or torch.compiler.is_compiling():  # one kernel there
        return F.rms_norm(x, x.shape[-1:], None, eps)
    return _Normalize.apply(x, eps)  # pyright: ignore[reportReturnType]


def operand(x: Tensor) -> Tensor:
    """x in the dtype that matrix products take within autocast, where there is one.

    Of what several products follow: each would make a copy of its own, and keep it.
    """
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def factors(self) -> Tensor:
        """What the normed channels are multiplied by, (d,)."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.eps) * self.factors().to(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """x / sqrt(mean(x^2) + eps) * (1 + weight) over the last dimension."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)

    def factors(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        return 1 + self.weight.to(wide)


class SRMSNorm(nn.Module):
    """Simple RMSNorm, x / sqrt(mean(x^2) + eps): no weight (arXiv 2405.17381, section 3)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.eps)


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula (arXiv 1606.08415, section 2)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "silu": F.silu,
    "none": None,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "relu": F.relu,
}
"""Of `models.config.Activation`."""


class GLU(nn.Module):
    """Channel mixer [U * act(V)] W_down with U = x W_up and V = x W_gate.

    act is SiLU in LLaMA (SwiGLU, arXiv 2406.16690 eq. 7) and the identity in the linear models
    (SGLU, eqs. 10, 14, 18), unless `config.glu_activation` names another.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.gate_activation]
        self.up = nn.Linear(config.dim, config.glu_dim, bias=config.glu_bias)
        self.gate = nn.Linear(config.dim, config.glu_dim, bias=config.glu_bias)
        self.down = nn.Linear(config.glu_dim, config.dim, bias=config.glu_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)  # (..., g)
        if self.activation is not None:
            gate = self.activation(gate)
        return self.down(self.up(x) * gate)


class LowRankGate(nn.Module):
    """Output gate sigmoid(x W_down W_up) of rank t (arXiv 2406.16690 eqs. 9 and 17).

    The equation prints the block input X; the normed input is used, as in all public code.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rank = config.options_as(GatedOptions).gate_dim(config)
        self.down = nn.Linear(config.dim, rank, bias=False)
        self.up = nn.Linear(rank, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.up(self.down(x)))


def angle_dtype(dtype: torch.dtype) -> torch.dtype:
    """Angles and rotations are computed in float32, or in float64 for a float64 model."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class FullPrecision(nn.Module):
    """Keeps its own tensors in float32 or wider when a model is cast to a 16-bit type.

    For angles, decays and bounds, which act through thousands of steps: an angle rounded to
    bfloat16 is off by radians after a thousand tokens.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FullPrecision:
        def keep_wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            narrowed = moved.is_floating_point() and moved.dtype.itemsize < 4
            return tensor.to(moved.device) if narrowed else moved

        return super()._apply(keep_wide, recurse)


class TokenMixer(nn.Module):
    """Base of the token mixers: (B, T, d) to (B, T, d), causal, with a carried state.

    A subclass is built as `Mixer(config, layer)` and defines `forward`, `step` and
    `initial_state`. `shared` is what the architecture's stem returned for this layer.
    """

    growing: bool = False
    """The state may grow with the tokens seen, so that `reserve` must be asked for room."""

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        """Mix T tokens at once.

        Args:
            x: (B, T, d), normed.
            span: positions and packing.
            shared: from the stem, for this layer.
            state: state before the first token, N sequences; None: empty.

        Returns:
            output (B, T, d) and the state after the last token ({} unless `span.keep_state`, for
            mixers whose state is not a by-product).
        """
        raise NotImplementedError

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        """Mix one token: x (B, d) at `positions` (B,); `state` may be updated in place."""
        raise NotImplementedError

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        """The state of `batch_size` sequences without tokens."""
        raise NotImplementedError

    def keeps_tokens(self, length: int) -> bool:
        """Whether the state of `length` tokens holds every one of them by itself.

        Then padding behind a sequence does it no harm (the next tokens overwrite it), and `Trees`
        can be read, whose tokens see what they continue.
        """
        return False

    def take_attention(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """Start from a softmax attention's weights (`models.linearize.initialise`), in place.

        For architectures that say `starts_from="attention"`; called without gradients.

        Args:
            q, k, v: projections, (d, d) each, rows by head.
            out: output projection, (d, d).
        """
        raise NotImplementedError

    def reserve(self, state: LayerState, capacity: int) -> LayerState:
        """Room for `capacity` tokens a sequence; a recurrent state needs none."""
        return state


class Stem(nn.Module):
    """What runs once a call before the blocks; this base leaves x alone and shares nothing."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def forward(
        self, x: Tensor, span: Span, state: LayerState | None
    ) -> tuple[Tensor, list[Shared], LayerState]:
        """x (B, T, d) to (x, what each layer's mixer gets as `shared`, state)."""
        return x, [()] * self.config.layers, {}

    def step(
        self, x: Tensor, positions: Tensor, state: LayerState
    ) -> tuple[Tensor, list[Shared], LayerState]:
        """One token of every sequence: x (B, d) at `positions` (B,)."""
        return x, [()] * self.config.layers, state

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        """The state of `batch_size` sequences without tokens."""
        return {}
