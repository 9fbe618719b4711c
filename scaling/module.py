"""The LightningModule: one language model, its optimizer, and the loss of a batch.

1. `training_step` averages the per-token loss of a micro-batch; Lightning accumulates gradients
   and, with several devices, averages them.
2. Before each optimizer step the learning rate is set from `scaling.schedule` and gradients are
   clipped by their global norm, which is kept for the record.
3. `state` and `restore` move everything that training depends on to and from plain containers.

Nothing goes through Lightning's logger: `scaling.callbacks.Recorder` reads `loss_sum` and
`grad_norm` once an optimizer step.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from models.language_model import LanguageModel, build
from scaling.config import RunConfig
from scaling.optim import adamw
from scaling.randomness import random_state, seed_all, set_random_state
from scaling.schedule import Segment, learning_rate


class TrainingModule(pl.LightningModule):
    """Trains the language model of one run, segment by segment."""

    def __init__(self, config: RunConfig) -> None:
        """Build the model with the weights of the run's seed."""
        super().__init__()
        self.config = config
        seed_all(config.seed)
        self.net: LanguageModel = build(config.model)
        if config.parallel.compile:
            for block in self.net.blocks:
                block.compile()  # in place: parameter names stay as they are
        self.segment: Segment | None = None
        self.optimizer_state: dict[str, Any] | None = None
        self.step = 0
        """Optimizer steps along the path, from initialisation."""
        self.loss_sum = torch.zeros(())
        """Sum of the micro-batch losses of the step under way."""
        self.grad_norm = torch.zeros(())
        """Global gradient norm of the last step, before clipping."""

    def start(self, segment: Segment, step: int) -> None:
        """Train `segment` next, from `step` on, with the optimizer state given to `restore`."""
        self.segment, self.step = segment, step

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Mean loss in nats per token of tokens and targets, (b, T) each."""
        tokens, targets = batch
        loss = self.net.loss(tokens, targets).mean()
        self.loss_sum += loss.detach()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with the moments of the checkpoint that training goes on from."""
        optimizer = adamw(self.net, self.config.optim)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
            self.optimizer_state = None
        return optimizer

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        assert self.segment is not None
        return learning_rate(self.config, self.segment, self.step)

    def on_train_start(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, keep their norm, and set the rate of the step."""
        limit = self.config.optim.clip_norm
        self.grad_norm = torch.nn.utils.clip_grad_norm_(
            self.net.parameters(), float("inf") if limit is None else limit
        )
        for group in optimizer.param_groups:
            group["lr"] = self.rate

    def state(self, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
        """Weights, optimizer and random states, as plain containers of tensors.

        Args:
            optimizer: the one of `configure_optimizers`; None before the first step.
        """
        return self.weights() | {
            "optimizer": None if optimizer is None else optimizer.state_dict(),
            "random": random_state(),
        }

    def weights(self) -> dict[str, Any]:
        """What a milestone keeps."""
        weights = self.net.state_dict()
        return {"config": self.config.to_json(), "step": self.step, "model": weights}

    def restore(self, content: dict[str, Any]) -> None:
        """Take over a checkpoint of `state`; the optimizer follows when it is built."""
        self.net.load_state_dict(content["model"])
        self.optimizer_state = content["optimizer"]
        set_random_state(content["random"])
