"""GLA, Mamba-2, Gated DeltaNet and Kimi Delta Attention for transformers, in plain PyTorch.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t e_t^T,   o_t = S_t^T q_t        per head

with e_t = v_t, or by the delta rule e_t = beta_t (v_t - S^T k_t) of the decayed state S: mixers
whose decay depends on the token (arXiv 2312.06635, 2405.21060, 2412.06464, 2510.26692). Where q, k
and v pass through a short convolution, its last inputs are part of the cache. Rows may be padded on
either side: a masked token is no input of the convolution, changes no state, and what it gives out
means nothing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modeling_linscale_parts import Norm
from .modeling_linscale_recurrence import linear_attention, normalize

LENGTH_EPS = 1e-6
"""Added to the squared length of the delta rule's queries and keys."""


def widen(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DecayGate(nn.Module):
    """log decay = -exp(log_rate) softplus(x + bias), one `log_rate` a head."""

    def __init__(self, heads: int, channels: int, rates: tuple[float, float]) -> None:
        super().__init__()
        self.heads, self.rates = heads, rates
        self.log_rate = nn.Parameter(torch.empty(heads))
        self.bias = nn.Parameter(torch.empty(heads * channels))

    def fresh(self) -> dict[str, Tensor]:
        """Parameters before training: rates uniform, steps log-uniform from 0.001 to 0.1."""
        low, high = self.rates
        rate = torch.empty(self.log_rate.shape).uniform_(low, high).clamp(min=1e-4).log()
        step = torch.empty(self.bias.shape).uniform_(math.log(1e-3), math.log(0.1)).exp()
        return {"log_rate": rate, "bias": step + torch.log(-torch.expm1(-step))}

    def steps(self, x: Tensor) -> Tensor:
        """softplus(x + bias), (B, T, H, C), in float32 or wider."""
        return F.softplus(widen(x) + self.bias).unflatten(-1, (self.heads, -1))

    def forward(self, x: Tensor) -> Tensor:
        """Log decays, (B, T, H, C)."""
        return -self.log_rate.exp()[:, None] * self.steps(x)


class ShortConvolution(nn.Module):
    """y_t = sum_{j < k} w_j x_{t - k + 1 + j} (+ b), channel by channel, over tokens that are."""

    def __init__(self, channels: int, size: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def fresh(self) -> dict[str, Tensor]:
        """Parameters before training."""
        bound = self.weight.shape[1] ** -0.5
        return {n: torch.empty(p.shape).uniform_(-bound, bound) for n, p in self.named_parameters()}

    def forward(self, x: Tensor, present: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Convolves.

        Args:
            x: (B, T, C).
            present: (B, T) bool, False at padding.
            before: (B, k - 1, C), the last inputs so far; None: zeros.

        Returns:
            y (B, T, C), and the inputs (B, k - 1, C) that the next tokens need.
        """
        size, (batch, length, channels) = self.weight.shape[1], x.shape
        if before is None:
            before = x.new_zeros(batch, size - 1, channels)
        # Tokens that are go to the front, in their order, so that they follow each other.
        order = (~present).to(torch.int8).sort(dim=1, stable=True).indices[..., None]
        front = x.gather(1, order.expand(-1, -1, channels))
        padded = torch.cat((before.to(x.dtype), front), 1)  # (B, k - 1 + T, C)
        y = padded[:, :length] * self.weight[:, 0]
        for j in range(1, size):
            y = y + padded[:, j : j + length] * self.weight[:, j]
        y = y if self.bias is None else y + self.bias
        last = present.sum(1)[:, None] + torch.arange(size - 1, device=x.device)
        after = padded.gather(1, last[..., None].expand(-1, -1, channels))
        back = torch.empty_like(y).scatter(1, order.expand(-1, -1, channels), y)
        return back, after


class LowRank(nn.Module):
    """x W_down W_up (+ b)."""

    def __init__(self, dim: int, rank: int, out: int, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank, bias=False)
        self.up = nn.Linear(rank, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class GatedMixer(nn.Module):
    """Base of the four; `settings["gated"]` has the sizes that the options come to.

    `forward(x, positions, shared, state)` mixes x (B, T, d), normed, at positions (B, T), -1 at
    padding; nothing is shared. The state is `kv` (B, H, K, V), and `conv` where there is a
    convolution.
    """

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = settings["gated"]
        self.dim, self.heads, self.eps = settings["dim"], settings["heads"], settings["norm_eps"]
        self.keys, self.values = self.sizes["keys"], self.sizes["values"]

    def _split(self, x: Tensor, widths: tuple[int, ...]) -> list[Tensor]:
        """Parts of the last dimension, (B, T, H, .) each."""
        return [part.unflatten(-1, (self.heads, -1)) for part in x.split(widths, -1)]


class GLAMixer(GatedMixer):
    """Gated linear attention: a decay a key channel, sigmoid(.)^(1 / temperature)."""

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__(settings, layer)
        dim, keys, rank = self.dim, self.heads * self.keys, self.sizes["rank"]
        self.widths = (keys, keys, dim)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.rate_down = nn.Linear(dim, rank, bias=False)
        self.rate_up = nn.Linear(rank, keys)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.norm = Norm(self.values, self.eps)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, shared: Any, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        present = (positions >= 0)[..., None, None]
        q, k, v = self._split(self.qkv(x), self.widths)
        logits = widen(self.rate_up(self.rate_down(x))).unflatten(-1, (self.heads, -1))
        decay = F.logsigmoid(logits) / self.sizes["temperature"] * present
        o, kv = linear_attention(q * self.keys**-0.5, k * present, v, decay, state.get("kv"))
        return self.out(self.norm(o).flatten(-2) * F.silu(self.gate(x))), {"kv": kv}


class Mamba2Mixer(GatedMixer):
    """State-space duality: keys and queries of a group, a step a head for both write and decay."""

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__(settings, layer)
        dim, wide, shared = self.dim, self.heads * self.values, self.sizes["groups"] * self.keys
        self.widths = (wide, shared, shared)
        self.xbc = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = ShortConvolution(sum(self.widths), self.sizes["convolution"], bias=True)
        self.rate = nn.Linear(dim, self.heads, bias=False)
        self.decay = DecayGate(self.heads, 1, (1, 16))
        self.skip = Skip(self.heads)
        self.gate = nn.Linear(dim, wide, bias=False)
        self.norm = Norm(wide, self.eps)
        self.out = nn.Linear(wide, dim, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, shared: Any, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        there = positions >= 0
        present = there[..., None, None]
        mixed, conv = self.conv(self.xbc(x), there, state.get("conv"))
        values, k, q = F.silu(mixed).split(self.widths, -1)
        values = values.unflatten(-1, (self.heads, -1))
        k, q = (self._expand(y) for y in (k, q))
        logits = self.rate(x)
        v = values * self.decay.steps(logits).to(values.dtype)
        decay = self.decay(logits) * present
        o, kv = linear_attention(q, k * present, v, decay, state.get("kv"))
        o = (o + self.skip(values)).flatten(-2)
        return self.out(self.norm(o * F.silu(self.gate(x)))), {"kv": kv, "conv": conv}

    def _expand(self, x: Tensor) -> Tensor:
        """(B, T, G K) to (B, T, H, K): every head has the numbers of its group."""
        return x.unflatten(-1, (self.sizes["groups"], -1)).repeat_interleave(
            self.heads // self.sizes["groups"], dim=-2
        )


class Skip(nn.Module):
    """x (B, T, H, V) times one number a head."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads))

    def fresh(self) -> dict[str, Tensor]:
        """Parameters before training."""
        return {"weight": torch.ones(self.weight.shape)}

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None].to(x.dtype)


class DeltaMixer(GatedMixer):
    """The delta rule, with a decay a head (Gated DeltaNet) or a key channel (KDA)."""

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__(settings, layer)
        dim, keys, wide = self.dim, self.heads * self.keys, self.heads * self.values
        self.widths = (keys, keys, wide)
        self.qkv = nn.Linear(dim, sum(self.widths), bias=False)
        self.conv = ShortConvolution(sum(self.widths), self.sizes["convolution"], bias=False)
        self.beta = nn.Linear(dim, self.heads, bias=False)
        self.norm = Norm(self.values, self.eps)
        self.out = nn.Linear(wide, dim, bias=False)
        self.by_channel = settings["arch"] == "kda"
        if self.by_channel:
            self.rate = LowRank(dim, self.values, keys, bias=False)
            self.decay = DecayGate(self.heads, self.keys, (1, 16))
            self.gate = LowRank(dim, self.values, wide, bias=True)
        else:
            self.rate = nn.Linear(dim, self.heads, bias=False)
            self.decay = DecayGate(self.heads, 1, (0, 16))
            self.gate = nn.Linear(dim, wide, bias=False)

    def forward(
        self, x: Tensor, positions: Tensor, shared: Any, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        there = positions >= 0
        present = there[..., None, None]
        mixed, conv = self.conv(self.qkv(x), there, state.get("conv"))
        q, k, v = self._split(F.silu(mixed), self.widths)
        # The mean square is the squared length over K.
        q, k = (normalize(y, LENGTH_EPS / self.keys) for y in (q, k))
        q, k = q / self.keys, k * self.keys**-0.5
        beta = self.sizes["largest_beta"] * torch.sigmoid(widen(self.beta(x)))[..., None]
        decay = self.decay(self.rate(x)) * present
        o, kv = linear_attention(q, k * present, v, decay, state.get("kv"), beta * present)
        gate = torch.sigmoid(self.gate(x)) if self.by_channel else F.silu(self.gate(x))
        return self.out(self.norm(o).flatten(-2) * gate), {"kv": kv, "conv": conv}


GATED: dict[str, type[GatedMixer]] = {
    "gla": GLAMixer,
    "mamba2": Mamba2Mixer,
    "gated_deltanet": DeltaMixer,
    "kda": DeltaMixer,
}
FRESH = (DecayGate, ShortConvolution, Skip)
"""Modules that know what their parameters are before training."""
