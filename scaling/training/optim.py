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
from torch import Tensor, nn

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
    """Set the learning rate of the next step.

    On a CUDA device it is rounded to float32, which is what a captured step can hold, so that steps
    are the same captured or not.
    """
    for group in optimizer.param_groups:
        own = rate * group.get(RATE_FACTOR, 1.0)
        if group["params"] and group["params"][0].is_cuda:
            own = torch.tensor(own, dtype=torch.float32).item()
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Let the learning rates be tensors, and the optimizer one that a CUDA graph can hold."""
    for group in optimizer.param_groups:
        device = group["params"][0].device if group["params"] else torch.device("cpu")
        # The kernels read float32 on a CUDA device, and any number on a CPU.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        group["lr"] = torch.tensor(float(group["lr"]), dtype=dtype, device=device)
        group["capturable"] = device.type == "cuda"


def plain_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`state_dict` as if no graph held the optimizer: checkpoints do not tell."""
    state = optimizer.state_dict()
    plain = {"capturable": False}
    groups = [g | plain | {"lr": float(g["lr"])} for g in state["param_groups"]]
    return state | {"param_groups": groups}
