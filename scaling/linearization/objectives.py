"""The objectives of runs that start from a teacher.

    transfer            attention outputs: feature maps and window factors learn
    matrices            mixing matrices: token mixers without their outputs learn
    hidden              block outputs: everything in the blocks learns
    full                next-token loss, all weights
    lora                next-token loss, low-rank additions to q, k, v and o
    distillation        divergence from the teacher's next-token distribution, all weights
    lora-distillation   the same, low-rank additions

The first three (`Alignment`) take the mean over layers of a loss of their own
(`models.linearize.transfer`, `models.linearize.distill`), at a constant rate before the run's
schedule starts. `matrices`, `hidden` and both distillations need the teacher as a second model.

A resume checkpoint holds low-rank additions apart; a milestone holds them merged, so that it is an
ordinary model for whoever reads it.

This module does not import torch, so that planning a run that asks `cost` is quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from models.accounting import parameters
from scaling.config.parts import OptimConfig
from scaling.linearization import costs
from scaling.plan.costs import Cost
from scaling.training.objective import Objective, Training, objective_of

if TYPE_CHECKING:
    from torch import Tensor

    from models.language_model import LanguageModel
    from scaling.data.loader import Batch
    from scaling.data.prepared import PreparedData
    from scaling.record.record import RunRecord


class FromTeacher(Objective):
    """What the objectives of a run that starts from a teacher have in common."""

    asks_teacher = False
    """Whether the teacher is needed as a second model."""

    def initialise(
        self,
        module: Training,
        record: RunRecord,
        prepared: PreparedData,
        validation: list[Batch],
    ) -> None:
        from scaling.linearization.start import begin

        every = [objective_of(self.config, stage.objective) for stage in self.config.objectives]
        alignments = {o.name: o.layer_losses for o in every if isinstance(o, Alignment)}
        begin(module, self.config, record, prepared, validation, alignments)

    def on_start(self, module: Training, record: RunRecord, prepared: PreparedData) -> None:
        from scaling.linearization.start import lend

        if self.asks_teacher and module.teacher is None:
            lend(module, self.config, record, prepared)

    def on_end(self, module: Training, record: RunRecord, validation: list[Batch]) -> None:
        from scaling.linearization.start import measure_parts

        if module.segment.milestone:
            measure_parts(module, self.config, record, validation)

    def before_batch(self, net: LanguageModel, step: int) -> None:
        if self.config.linearize.window_dropout:
            from scaling.linearization.window_dropout import drop

            drop(net, self.config, step)

    def accept(self, net: LanguageModel, weights: Mapping[str, Tensor]) -> None:
        from scaling.linearization.low_rank import match

        match(net, weights, self.config.linearize)

    def weights(self, net: LanguageModel) -> dict[str, Tensor]:
        from scaling.linearization.low_rank import merged_weights

        return merged_weights(net)


class Full(FromTeacher):
    """Next-token loss on all weights."""

    def learns(self, net: LanguageModel) -> None:
        if self.config.prelude_steps:  # which has frozen some
            net.requires_grad_(True)


class LowRank(FromTeacher):
    """Next-token loss on low-rank additions to q, k, v and o."""

    def learns(self, net: LanguageModel) -> None:
        from scaling.linearization.low_rank import add

        add(net, self.config.linearize)

    def cost(self) -> Cost:
        return costs.low_rank(self.config)


class _Distilled(FromTeacher):
    """Divergence from the teacher's next-token distribution, in nats per token."""

    asks_teacher = True

    def loss(
        self,
        net: LanguageModel,
        batch: Batch,
        *,
        share: Tensor | None = None,
        teacher: LanguageModel | None = None,
    ) -> Tensor:
        from models.linearize.distill import distillation_loss

        assert teacher is not None
        tokens, packing = inputs(batch)
        targets = batch[1].reshape(tokens.shape)
        part = self.config.linearize
        loss = distillation_loss(
            net, teacher, tokens, targets, *packing, temperature=part.temperature, hard=part.hard
        )
        return loss if share is None else loss * share

    def cost(self) -> Cost:
        return costs.distilled(self.config, super().cost())


class Distillation(_Distilled, Full):
    """Divergence from the teacher's distribution, all weights."""


class LowRankDistillation(_Distilled, LowRank):
    """Divergence from the teacher's distribution, low-rank additions."""


class Alignment(FromTeacher):
    """Mean over the layers of a loss between student and teacher."""

    of_text = False
    name: str
    """In `scaling.config.objectives`."""

    def layer_losses(
        self, net: LanguageModel, teacher: LanguageModel | None, batch: Batch
    ) -> Tensor:
        """Loss of each layer that is aligned, (layers,).

        Args:
            net: the student.
            teacher: not needed by attention transfer, which has it in the student's weights.
            batch: of the run's data.
        """
        raise NotImplementedError

    def loss(
        self,
        net: LanguageModel,
        batch: Batch,
        *,
        share: Tensor | None = None,
        teacher: LanguageModel | None = None,
    ) -> Tensor:
        return self.layer_losses(net, teacher, batch).mean()

    @property
    def optim(self) -> OptimConfig:
        return replace(self.config.optim, weight_decay=0.0, clip_norm=None)

    def on_end(self, module: Training, record: RunRecord, validation: list[Batch]) -> None:
        from scaling.linearization.start import end_alignment

        end_alignment(self.name, self.layer_losses, module, self.config, record, validation)
        super().on_end(module, record, validation)


class Transfer(Alignment):
    """Attention transfer, stage 1 of LoLCATs (arXiv 2410.10254)."""

    name = "transfer"

    def learns(self, net: LanguageModel) -> None:
        from models.linearize.transfer import freeze_for_transfer

        freeze_for_transfer(net)

    def cost(self) -> Cost:
        learning = parameters(self.config.model)["feature_map"]
        return Cost(flops=costs.transfer(self.config), parameters=learning)

    def layer_losses(
        self, net: LanguageModel, teacher: LanguageModel | None, batch: Batch
    ) -> Tensor:
        from models.linearize.transfer import attention_transfer_loss

        tokens, packing = inputs(batch)
        part = self.config.linearize
        return attention_transfer_loss(
            net, tokens, *packing, cross_entropy=part.cross_entropy, far=part.far_error,
            at=part.transfer_error,
        )  # fmt: skip


class _ByName(Alignment):
    """Parameters learn by their names: all that the loss reaches."""

    asks_teacher = True

    def is_learned(self, name: str) -> bool:
        """Whether the parameter of a name learns."""
        raise NotImplementedError

    def learns(self, net: LanguageModel) -> None:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(self.is_learned(name))

    def _cost(self, flops: float) -> Cost:
        from models.language_model import build

        named = build(self.config.model, device="meta").named_parameters()
        return Cost(
            flops=flops,
            parameters=sum(p.numel() for name, p in named if self.is_learned(name)),
            teacher_parameters=costs.teacher_parameters(self.config),
        )


class Matrices(_ByName):
    """Mixing matrices against attention matrices, stage 1 of MOHAWK (arXiv 2408.10189)."""

    name = "matrices"

    def is_learned(self, name: str) -> bool:
        """Mixers up to where values are mixed; cosFormer2's Toeplitz encoding is not reached."""
        part, _, rest = name.partition(".")
        if part == "stem":
            return not rest.startswith("tpe.")
        layer, _, inside = rest.partition(".")
        if part != "blocks" or int(layer) in self.config.model.softmax_layers:
            return False
        mixes = inside.startswith("mixer.") and not inside.startswith(("mixer.out.", "mixer.gate."))
        return mixes or inside.startswith("mixer_norm.")

    def cost(self) -> Cost:
        return self._cost(costs.matrices(self.config))

    def layer_losses(
        self, net: LanguageModel, teacher: LanguageModel | None, batch: Batch
    ) -> Tensor:
        import torch

        from models.linearize.distill import matrix_losses

        assert teacher is not None
        tokens, _ = inputs(batch)
        return torch.stack([loss for _, loss in matrix_losses(net, teacher, tokens)])


class Hidden(_ByName):
    """Outputs of whole blocks on the teacher's hidden states, stage 2 of MOHAWK."""

    name = "hidden"

    def is_learned(self, name: str) -> bool:
        """Everything in the blocks, and the stem without cosFormer2's Toeplitz encoding."""
        part, _, rest = name.partition(".")
        return part == "blocks" or (part == "stem" and not rest.startswith("tpe."))

    def cost(self) -> Cost:
        return self._cost(costs.hidden(self.config))

    def layer_losses(
        self, net: LanguageModel, teacher: LanguageModel | None, batch: Batch
    ) -> Tensor:
        import torch

        from models.linearize.distill import hidden_losses

        assert teacher is not None
        tokens, packing = inputs(batch)
        return torch.stack([loss for _, loss in hidden_losses(net, teacher, tokens, *packing)])


def inputs(batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Tokens, and the boundaries of packed rows, which become one."""
    tokens, _, *packing = batch
    return (tokens.reshape(1, -1) if packing else tokens), packing
