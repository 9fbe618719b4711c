"""Norms of gradients and parameters by group, in metrics.jsonl: with every fifth line and the last
of a segment.

    embedding    the embedding, which is the head as well where the two are tied
    mixer        token mixers with the norms inside them, and the stem
    channel      channel mixers
    norm         norms before mixers, before channel mixers and before the head
    head         the output projection, where it is not tied

Gradients are those of the global batch before clipping, so that the squares of their norms add up
to that of `grad_norm`; parameters are those after the update. Frozen parameters count nowhere, and
a group with no others is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from scaling.training.callbacks import StepCallback
from scaling.training.module import TrainingModule

LINES = 5
"""Lines of metrics.jsonl from one with norms to the next; the last line of a segment has them."""


class Norms(StepCallback):
    """Leaves the norms of a step in the journal; comes before `Recorder`."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        self.journal.norms = {}
        pl_module.shows_gradients = self._is_due(trainer, pl_module, self.journal.step + 1)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(pl_module, TrainingModule)
        if self._is_due(trainer, pl_module, self.journal.step + 1):
            grads = {
                group: norm(p.grad for p in members if p.grad is not None)
                for group, members in groups(pl_module.net).items()
            }
            self.journal.norms = {f"grad_norm_{group}": value for group, value in grads.items()}

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        if self._is_due(trainer, module, self.journal.step):
            self.journal.norms |= {
                f"param_norm_{group}": norm(p.detach() for p in members)
                for group, members in groups(module.net).items()
            }

    def _is_due(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> bool:
        journal = self.journal
        due = step % (LINES * journal.record_every) == 0 or step == journal.segment.last
        # Ranks that share a model out compute its norms together.
        return due and (trainer.is_global_zero or module.sharded)


def groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trained parameters of a language model by group."""
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(_group(name), []).append(parameter)
    return found


def _group(name: str) -> str:
    """The group of a parameter, by its name in `models.language_model.LanguageModel`."""
    place, *_ = parts = name.split(".")
    if place in ("embedding", "head", "norm"):
        return place
    if place == "blocks" and parts[2] != "mixer":
        return "norm" if parts[2].endswith("norm") else "channel"
    return "mixer"


def norm(tensors: Iterable[Tensor]) -> float:
    """Norm of all tensors together; all ranks must ask for that of a sharded model."""
    total = torch.nn.utils.get_total_norm(tensors)
    return float(total.full_tensor() if isinstance(total, DTensor) else total)
