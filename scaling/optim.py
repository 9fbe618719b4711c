"""AdamW with parameter groups.

Matrices decay, vectors do not: norms, biases, decay slopes and every other parameter with fewer
than two dimensions are left free. The embedding decays as well: it is tied to the output
projection, so it is a weight matrix like the others. So do two-dimensional tables of angles or
lower bounds; there is one rule.

The update is PyTorch's fused kernel (CPU and CUDA), Loshchilov and Hutter, arXiv 1711.05101:

    theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta)
"""

from __future__ import annotations

import torch
from torch import nn

from scaling.config import OptimConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups, with and without weight decay, in the model's order."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """The optimizer of a run; its learning rate is set before every step from the schedule."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
