"""AdamW with parameter groups.

Matrices decay, vectors do not: norms, biases, decay slopes and every other parameter with fewer
than two dimensions are left free. The embedding decays as well: it is tied to the output
projection, so it is a weight matrix like the others. So do two-dimensional tables of angles or
lower bounds; there is one rule. Under muP (`models.width`) matrices whose fan-in grows with the
width are a group of their own, with a smaller rate and as much larger a decay.

The update is PyTorch's fused kernel (CPU and CUDA), Loshchilov and Hutter, arXiv 1711.05101:

    theta <- theta - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay theta)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models import width
from models.language_model import LanguageModel
from scaling.config.run import OptimConfig

RATE_FACTOR = "rate_factor"
"""Key of a parameter group: factor on the learning rate. 1 where it is missing."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters with and without weight decay, in the model's order.

    Under muP the first group is followed by one for each other factor on the learning rate.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rates = width.rates(model)
    free = [p for p in parameters if p.ndim < 2]
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for p in parameters:
        if p.ndim >= 2:
            groups.setdefault(rates.get(p, 1.0), []).append(p)
    decayed: list[dict[str, Any]] = [
        {"params": members, "weight_decay": weight_decay / factor, RATE_FACTOR: factor}
        for factor, members in groups.items()
    ]
    del decayed[0][RATE_FACTOR]
    return [*decayed, {"params": free, "weight_decay": 0.0}]


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """The optimizer of a run; `set_rate` sets its learning rate before every step."""
    wider = width.multiplier(model.config) if isinstance(model, LanguageModel) else 1.0
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps / wider,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE_FACTOR, 1.0)
