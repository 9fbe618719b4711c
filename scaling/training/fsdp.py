"""FSDP2: weights, gradients and optimizer shared out over devices, block by block.

    mesh       (replicas, sharding degree) from `parallel`; one dimension when there is one copy
    block      one group: gathered before its forward and backward pass, freed after each
    the rest   embedding, stem, last norm and head: the root group

1. The model is built on the meta device, so that nothing is allocated, and sharded there.
2. Every rank then makes room for its shares alone, and draws the weights matrix by matrix: all
   ranks draw the same numbers as a single process does from the same seed, and each keeps its own
   rows. At no time does a rank hold more than one whole matrix.
3. In training, blocks are gathered in the compute dtype and gradients are summed in float32; the
   shares that the optimizer updates are float32 masters.

With `precision="bf16"` autocast is on as it is on one device. What it would cast anyway, the
matrices of a block, crosses the network in bf16. Norm weights, angles and decays, a second small
group of the block, stay float32, as does the root group: a norm weight near 1 would be off by up to
0.4 %. So a run is the same run under every strategy, up to the order of additions.

FSDP: arXiv 2304.11277; `torch.distributed.fsdp.fully_shard` is its second form, by parameter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from models.language_model import LanguageModel, init_module
from models.linearize.lora import LoRALinear
from scaling.config.run import ParallelConfig


def device_mesh(parallel: ParallelConfig, device: str) -> DeviceMesh:
    """The mesh of a run's ranks, which must have joined their process group.

    Args:
        parallel: of the run; `shard` ranks hold one copy of the model between them.
        device: `cpu` or `cuda`.
    """
    world = parallel.world_size
    shard = world if parallel.shard is None else parallel.shard
    if shard == world:
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    names = ("replicate", "shard")
    return init_device_mesh(device, (world // shard, shard), mesh_dim_names=names)


def shard(model: LanguageModel, mesh: DeviceMesh, *, bf16: bool) -> None:
    """Share the parameters of a model on the meta device out over `mesh`, and make room for them.

    Names of parameters stay as they are. `loss` and `forward` gather what they need.
    """
    # Inputs keep their dtype: autocast decides what is computed in bf16.
    full = MixedPrecisionPolicy(cast_forward_inputs=False)
    narrow = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks:
        if bf16 and (wide := _not_cast_by_autocast(block)):
            # They stay gathered: what one returns may be a view of its parameter, and is read after
            # its own forward pass has ended.
            fully_shard(wide, mesh=mesh, mp_policy=full, reshard_after_forward=False)
        fully_shard(block, mesh=mesh, mp_policy=narrow if bf16 else full)
    fully_shard(model, mesh=mesh, mp_policy=full)
    register_fsdp_forward_method(model, "loss")
    model.to_empty(device=mesh.device_type)


def _not_cast_by_autocast(block: nn.Module) -> list[nn.Module]:
    """Modules whose own parameters are used in float32 under autocast: norms, angles, decays."""
    cast_too = (nn.Linear, nn.ParameterList)  # low-rank additions are a list of a linear layer
    return [
        module
        for module in block.modules()
        if list(module.parameters(recurse=False)) and not isinstance(module, cast_too)
    ]


@torch.no_grad()
def init_weights(model: LanguageModel) -> None:
    """Give a sharded model the weights that `LanguageModel.init_weights` gives a whole one.

    Low-rank additions come last, as where they are put on a whole model.
    """
    for module in model.modules():
        with _drawn(module):
            init_module(module, model.config.std)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            with _drawn(module, "down"), _drawn(module.up):
                module.reset_lora()


@contextmanager
def _drawn(module: nn.Module, *names: str) -> Iterator[None]:
    """The module's own parameters are whole; at the end the shares take their parts of them.

    Args:
        module: sharded.
        names: of the parameters; none: all.
    """
    own = dict(module.named_parameters(recurse=False))
    shares = {name: own[name] for name in names or own}
    for name, share in shares.items():
        whole = torch.empty(share.shape, dtype=share.dtype)
        module._parameters[name] = nn.Parameter(whole, requires_grad=share.requires_grad)
    yield
    for name, share in shares.items():
        drawn = cast(Tensor, module._parameters[name])
        cast(DTensor, share.data).copy_(share_of(drawn.data, cast(DTensor, share)))
        module._parameters[name] = share


def share_of(whole: Tensor, like: DTensor) -> DTensor:
    """This rank's share of a tensor that every rank has, laid out as `like`. No communication."""
    whole = whole.to(like.device)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def is_sharded(model: nn.Module) -> bool:
    """Whether the model went through `shard`."""
    return isinstance(model, FSDPModule)


def release(model: nn.Module) -> None:
    """Free what a forward pass without a backward pass has left gathered.

    Without this, groups that stay gathered after their forward pass would go on with stale weights
    after their shares have changed.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights by name: on rank 0 of a sharded model in host memory, on other ranks empty.

    Gathers one matrix at a time; all ranks must call it. A model that is not sharded gives its
    state dict.
    """
    if not is_sharded(model):
        return model.state_dict()
    weights: dict[str, Tensor] = {}
    for name, share in model.state_dict().items():
        whole = share.full_tensor() if isinstance(share, DTensor) else share
        if dist.get_rank() == 0:
            weights[name] = whole.cpu()
    return weights


@torch.no_grad()
def load_whole(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Put weights by name, whole on every rank, into a sharded model.

    Raises:
        KeyError, RuntimeError: names or shapes differ.
    """
    shares = model.state_dict()
    if weights.keys() != shares.keys():
        raise KeyError(*sorted(weights.keys() ^ shares.keys()))
    for name, share in shares.items():
        if isinstance(share, DTensor):
            share.copy_(share_of(weights[name], share))
        else:
            share.copy_(weights[name])


def shares_of_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer, whole or in shares, for one of sharded parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def share(index: int, value: Tensor) -> Tensor:
        if value.ndim == 0 or isinstance(value, DTensor):
            return value
        return share_of(value, parameters[index].data)

    shares = {
        index: {name: share(index, value) for name, value in moments.items()}
        for index, moments in state["state"].items()
    }
    return state | {"state": shares}
