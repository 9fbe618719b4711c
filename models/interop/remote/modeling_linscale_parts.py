"""Parts of exported transformers and of what is made from them, in plain PyTorch: feature maps,
norms with weights, rotary angles, and caches of keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .modeling_linscale_recurrence import normalize

FLOOR = 1e-12
_POSITIVE = ("t2r", "hedgehog", "relu", "elu")
ACTIVATIONS: dict[str, nn.Module] = {
    "silu": nn.SiLU(),
    "none": nn.Identity(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
}


class FeatureMap(nn.Module):
    """phi, from (..., H, K) to (..., H, F)."""

    def __init__(self, options: dict[str, Any], heads: int, size: int) -> None:
        super().__init__()
        self.kind = options["feature_map"]
        columns = options["feature_size"] or (size // 2 if self.kind == "hedgehog" else size)
        if self.kind == "supra":
            self.project = nn.Linear(heads * size, heads * size)
        elif self.kind in ("t2r", "hedgehog"):
            self.weight = nn.Parameter(torch.empty(heads, size, columns))
            if self.kind == "t2r":
                self.bias = nn.Parameter(torch.empty(heads * columns))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return x[..., :0]
        if self.kind == "supra":
            return F.relu(self.project(x.flatten(-2))).view(x.shape)
        if self.kind in ("t2r", "hedgehog"):
            x = torch.einsum("...hk,hkf->...hf", x, self.weight.to(x.dtype))
        if self.kind == "t2r":
            x = F.relu(x + self.bias.view(x.shape[-2:]))
        elif self.kind == "hedgehog":
            x = torch.cat((x.softmax(-1), (-x).softmax(-1)), dim=-1)
        elif self.kind == "relu":
            x = F.relu(x)
        elif self.kind == "elu":
            x = 1 + F.elu(x)
        elif self.kind == "taylor":
            x = x * x.shape[-1] ** -0.25
            squares = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
            x = torch.cat((torch.ones_like(x[..., :1]), x, squares), dim=-1)
        return x.clamp(min=FLOOR) if self.kind in _POSITIVE else x


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + weight), the offset being 0 or 1."""

    def __init__(self, dim: int, eps: float, offset: bool = False) -> None:
        super().__init__()
        self.eps, self.offset = eps, offset
        self.weight = nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.offset:
            weight = 1 + weight.to(torch.promote_types(weight.dtype, torch.float32))
        return normalize(x, self.eps) * weight.to(x.dtype)


def make_norm(settings: dict[str, Any], dim: int) -> Norm:
    """A norm of the model's kind."""
    return Norm(dim, settings["norm_eps"], settings["norm_offset"])


def append(state: dict[str, Tensor], k: Tensor, v: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Keys, values and positions of a cache with those of new tokens after them."""
    new = {"k": k, "v": v, "position": positions}
    if "k" not in state:
        return new
    return {name: torch.cat((state[name], added), 1) for name, added in new.items()}


def never_empty(seen: Tensor) -> Tensor:
    """The mask, with rows that see nothing, which are padding, seeing all: no division by zero."""
    return seen | ~seen.any(-1, keepdim=True)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (c, c + K/2) of x (B, T, H, K)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def rotary_angles(
    rotary: dict[str, Any], positions: Tensor, dtype: torch.dtype
) -> dict[str, tuple[Tensor, ...]]:
    """By a configuration's `rotary`, for each use of the rotary encoding: cosines and sines,
    (B, T, 1, K / 2), of positions (B, T), and the factor on queries, (B, T, 1, 1)."""
    where, found = positions.to(dtype)[..., None, None], {}
    for use, table in rotary["uses"].items():
        turns, scales = (
            torch.tensor(table[name], dtype=dtype, device=positions.device)
            for name in ("frequencies", "scales")
        )
        turned = where * turns  # (B, T, 1, K / 2)
        found[use] = turned.cos() * scales, turned.sin() * scales
    stretches = torch.floor(where.clamp(min=0) / rotary["query_length"])
    scale = rotary["query_scale"] * (1 + rotary["query_growth"] * stretches.log1p())
    return {use: (*angles, scale) for use, angles in found.items()}
