"""What a stretch of training minimises, which parameters learn, and what happens around it.

`Objective` is next-token loss on all weights, and what every other objective is derived from
(`scaling.linearization.objectives`). `scaling.config.objectives` finds them by name; a segment of a
run names one. An objective keeps nothing but the run's configuration.

This module does not import torch, so that planning a run that asks `cost` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from scaling.config.objectives import load
from scaling.config.run import OptimConfig, RunConfig
from scaling.plan.costs import Cost, ordinary_cost

if TYPE_CHECKING:
    from torch import Tensor

    from models.language_model import LanguageModel
    from scaling.config.schedule import Segment
    from scaling.data.loader import Batch
    from scaling.data.prepared import PreparedData
    from scaling.record.record import RunRecord


class Training(Protocol):
    """What an objective may touch of what trains (`scaling.training.module.TrainingModule`)."""

    net: LanguageModel
    segment: Segment
    step: int
    """Optimizer steps along the path, from initialisation."""

    @property
    def sharded(self) -> bool:
        """Whether ranks hold shares of the model."""
        ...

    @property
    def teacher(self) -> LanguageModel | None:
        """The model that the net learns from."""
        ...

    def lend(self, teacher: LanguageModel) -> None:
        """Give it one."""


class Objective:
    """Next-token loss on the text, in nats per token; all weights learn."""

    of_text = True
    """Whether the loss is a mean over the targets of the text, so that it has bits per byte and
    every target of a global batch weighs alike. Otherwise every position does."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def loss(
        self,
        net: LanguageModel,
        batch: Batch,
        *,
        share: Tensor | None = None,
        teacher: LanguageModel | None = None,
    ) -> Tensor:
        """Loss of a micro-batch, a scalar: the mean over its targets that count.

        Args:
            net: the model that is trained.
            batch: see `scaling.data.loader.Batch`.
            share: of the targets, how many count, where the micro-batches of a step have unequal
                numbers of them; the result is then the mean times `share`.
            teacher: the model that the net learns from, where `on_start` has lent one.
        """
        from scaling.training.loss import mean_loss, token_losses

        return mean_loss(net, batch) if share is None else token_losses(net, batch).mean()

    def before_batch(self, net: LanguageModel, step: int) -> None:
        """Before the loss of each micro-batch of the step after `step`; a function of the run's
        configuration and the step alone, so that a run that was stopped goes on as it would have.
        """

    def learns(self, net: LanguageModel) -> None:
        """Let those parameters learn that the objective trains, and freeze the others.

        Called when a net is built for a run that begins with the objective, and at the start of
        each of its segments. May add parameters, drawn from torch's global random state.
        """

    @property
    def optim(self) -> OptimConfig:
        """The optimizer."""
        return self.config.optim

    def cost(self) -> Cost:
        """FLOPs of a token, and parameters that learn."""
        return ordinary_cost(self.config)

    def accept(self, net: LanguageModel, weights: Mapping[str, Tensor]) -> None:
        """Give the net the parameters that a checkpoint has weights for, before they are loaded."""

    def weights(self, net: LanguageModel) -> dict[str, Tensor]:
        """The weights by name that a milestone keeps: those of an ordinary model.

        All ranks of a sharded model must call it; rank 0 gets them.
        """
        from scaling.training.fsdp import whole_weights

        return whole_weights(net)

    def initialise(
        self,
        module: Training,
        record: RunRecord,
        prepared: PreparedData,
        validation: list[Batch],
    ) -> None:
        """At the start of a run, before its first checkpoint: what fresh weights are not enough
        for. Called on the main process, and on all ranks of a sharded model."""

    def on_start(self, module: Training, record: RunRecord, prepared: PreparedData) -> None:
        """Whenever training starts or goes on with a segment, before weights are loaded; may draw
        random numbers."""

    def on_end(self, module: Training, record: RunRecord, validation: list[Batch]) -> None:
        """After the last step of a segment, on the main process."""


def objective_of(config: RunConfig, name: str) -> Objective:
    """The objective of a name (`scaling.config.objectives`) for a run."""
    return load(name)(config)
