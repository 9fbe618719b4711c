"""Feature maps phi, whose product phi(q).phi(k) stands in for exp(q.k / sqrt(K)).

| name     | phi(x)                                                 | source                       |
|----------|--------------------------------------------------------|------------------------------|
| supra    | relu(W x + b), W over the channels of all heads        | SUPRA, arXiv 2405.06640      |
| t2r      | relu(W x + b), W a head                                | T2R, arXiv 2103.13076        |
| hedgehog | [softmax(W x), softmax(-W x)], W a head                | Hedgehog, arXiv 2402.04347   |
| relu     | relu(x)                                                | as T2R's, without W          |
| elu      | 1 + elu(x)                                             | arXiv 2006.16236             |
| taylor   | [1, x / K^(1/4), x (x) x / sqrt(2 K)]: 1 + s + s^2 / 2 | Based, arXiv 2402.18668      |
|          | with s = q.k / sqrt(K)                                 |                              |
| identity | x                                                      |                              |
| none     | no features: the product is 0                          | LoLCATs' window alone        |

Every map takes (..., H, K) to (..., H, F). Those that a denominator needs to be positive are at
least 1e-12, as in the LoLCATs authors' code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linearize.options import Linearized

FLOOR = 1e-12


class ProjectedMap(nn.Module):
    """SUPRA's relu(W x + b), with W over the concatenated heads."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(heads * head_dim, heads * head_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.project(x.flatten(-2))).view(x.shape)


class HeadwiseMap(nn.Module):
    """Base of the maps with a matrix of their own for every head."""

    def __init__(self, heads: int, head_dim: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, head_dim, columns))

    def reset_parameters(self) -> None:
        # The authors' start, with the fan that PyTorch sees in three dimensions: K times columns.
        nn.init.kaiming_uniform_(self.weight)

    def project(self, x: Tensor) -> Tensor:
        return torch.einsum("...hk,hkf->...hf", x, self.weight.to(x.dtype))


class T2RMap(HeadwiseMap):
    """T2R's relu(W x + b)."""

    def __init__(self, heads: int, head_dim: int, columns: int) -> None:
        super().__init__(heads, head_dim, columns)
        self.bias = nn.Parameter(torch.empty(heads * columns))  # 1-D: no weight decay

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return F.relu(x + self.bias.view(x.shape[-2:])).clamp(min=FLOOR)


class HedgehogMap(HeadwiseMap):
    """Hedgehog's softmax over the features of W x and of -W x."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return torch.cat((x.softmax(-1), (-x).softmax(-1)), dim=-1).clamp(min=FLOOR)


class ReLUMap(nn.Module):
    """max(x, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).clamp(min=FLOOR)


class ELUMap(nn.Module):
    """1 + elu(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 + F.elu(x)).clamp(min=FLOOR)


class TaylorMap(nn.Module):
    """The second-order Taylor expansion of exp(q.k / sqrt(K)); 1 + K + K^2 features."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * x.shape[-1] ** -0.25
        squares = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
        return torch.cat((torch.ones_like(x[..., :1]), x, squares), dim=-1)


class NoMap(nn.Module):
    """No features, (..., H, 0)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :0]


def feature_map(options: Linearized, heads: int, head_dim: int) -> nn.Module:
    """A map of (..., heads, head_dim) to (..., heads, options.features(head_dim))."""
    columns = options.columns(head_dim)
    match options.feature_map:
        case "supra":
            return ProjectedMap(heads, head_dim)
        case "t2r":
            return T2RMap(heads, head_dim, columns)
        case "hedgehog":
            return HedgehogMap(heads, head_dim, columns)
        case "relu":
            return ReLUMap()
        case "elu":
            return ELUMap()
        case "taylor":
            return TaylorMap()
        case "identity":
            return nn.Identity()
        case "none":
            return NoMap()


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """(..., G, K) to (..., heads, K): each key-value head serves heads / G query heads in a row."""
    return x if x.shape[-2] == heads else x.repeat_interleave(heads // x.shape[-2], dim=-2)
