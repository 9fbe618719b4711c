"""Activation checkpointing: what the backward pass computes again instead of keeping.

    none        everything that a gradient needs is kept
    selective   outputs of matrix products and token mixers are kept, the element-wise rest of a
                block is computed again
    block       only the input of each block is kept (Chen et al., arXiv 1604.06174)

The numbers do not change: the same kernels run again on the same inputs.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from models.kernels import attention as attention  # registers torch.ops.linscale
from models.kernels import operators as operators

Mode = Literal["none", "selective", "block"]

_ATEN, _OURS = torch.ops.aten, torch.ops.linscale
KEPT = frozenset(
    {
        _ATEN.mm.default,
        _ATEN.addmm.default,
        _ATEN.bmm.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
        _OURS.causal_softmax.default,
        _OURS.linear_attention.default,
        _OURS.hgrn2_attention.default,
        _OURS.cosine_attention.default,
        _OURS.delta_attention.default,
    }
)
"""Operators whose outputs `selective` keeps."""


def checkpoint_blocks(blocks: nn.ModuleList, mode: Mode) -> None:
    """Change the forward pass of each block, in place; names of parameters stay."""
    if mode == "none":
        return
    # No block draws random numbers, so that there is no random state to put back.
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, **options)


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    """Keep or compute again, for one operator."""
    kept = operator in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
