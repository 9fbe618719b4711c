"""The rotation of LRPE (arXiv 2307.09270) and of the cosine form."""

from __future__ import annotations

import torch
from torch import Tensor


def lrpe(x: Tensor, theta: Tensor, positions: Tensor) -> Tensor:
    """[x cos(theta t), x sin(theta t)]: the last dimension doubles.

    Angles are in float32 or wider: at t = 8192 a float32 angle is good to 5e-4 radians.

    Args:
        x: (..., H, K).
        theta: angles in radians a position, (H, K).
        positions: t, broadcastable to x's leading dimensions.
    """
    dtype = torch.promote_types(theta.dtype, torch.float32)
    angle = positions.to(dtype)[..., None, None] * theta.to(dtype)  # (..., H, K)
    return torch.cat((x * angle.cos().to(x.dtype), x * angle.sin().to(x.dtype)), dim=-1)
