"""The resume state of a sharded model as a folder that any number of ranks can read.

    resume-trunk-<step>.dcp/
        .metadata           which part of which tensor lies where (PyTorch's distributed checkpoint)
        __<rank>_0.distcp   the shares of one rank
        common.pt           what all ranks have alike: configuration, step, random states

Tensors go by name, `model.<parameter>` and `<moment>.<parameter>`, so that a reader needs neither
the layout nor the number of ranks of the writer: ranks of another number read the rows that they
need, and a single process reads whole tensors.

Files that the run's manifest does not name are refused (`scaling.record.checkpoints`), and
`.metadata`, a pickle, is read as data (`scaling.record.sharded_reader`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from scaling.record.checkpoint_files import CheckpointError
from scaling.record.sharded_reader import TensorReader

COMMON = "common.pt"


def collect(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """The shares of this rank under `shares`, and the plain part of the optimizer's state."""
    shares: dict[str, Tensor] = {f"model.{n}": t for n, t in model.state_dict().items()}
    if optimizer is None:
        return {"shares": shares, "optimizer": None}
    name_of = {id(p): n for n, p in model.named_parameters()}
    names = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()
    plain: dict[int, dict[str, Tensor]] = {}
    moments: dict[str, list[str]] = {}
    for index, values in state["state"].items():
        plain[index] = {m: t for m, t in values.items() if not t.ndim}
        moments[names[index]] = [m for m, t in values.items() if t.ndim]
        shares |= {f"{m}.{names[index]}": values[m] for m in moments[names[index]]}
    state = state | {"state": plain, "names": names, "moments": moments}
    return {"shares": shares, "optimizer": state}


def save(shares: dict[str, Tensor], folder: Path, group: dist.ProcessGroup) -> None:
    """Write the shares of all ranks into an empty folder, together.

    Args:
        shares: of `collect`.
        folder: where.
        group: all ranks, for messages in host memory.

    Raises:
        OSError: a rank could not write.
    """
    try:
        save_distributed(dict(shares), checkpoint_id=folder, process_group=group)
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, OSError):
                raise failure from None
        raise RuntimeError(str(error)) from error


def load(content: dict[str, Any], model: nn.Module) -> dict[str, Any] | None:
    """Read weights into `model`, sharded or not, in place.

    Args:
        content: what `common.pt` holds, and `folder`.

    Returns:
        The optimizer's state dict, laid out as the model; None before the first step.

    Raises:
        RuntimeError: a tensor is missing or has another shape.
    """
    wanted: dict[str, Any] = {f"model.{n}": t for n, t in model.state_dict().items()}
    state = content["optimizer"]
    if state is not None:
        parameters = dict(model.named_parameters())
        whole: dict[int, dict[str, Tensor]] = {}
        for index, plain in state["state"].items():
            name = state["names"][index]
            like = parameters[name].detach()
            moments = {m: torch.zeros_like(like) for m in state["moments"][name]}
            wanted |= {f"{m}.{name}": t for m, t in moments.items()}
            whole[index] = plain | moments
        state = {"param_groups": state["param_groups"], "state": whole}
    try:
        load_distributed(
            wanted,
            storage_reader=TensorReader(content["folder"]),
            no_dist=not dist.is_initialized(),
        )
    except CheckpointException as error:
        for failure, _ in error.failures.values():
            if isinstance(failure, CheckpointError):
                raise failure from None
        raise RuntimeError(str(error)) from error
    return state
