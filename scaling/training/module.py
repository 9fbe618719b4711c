"""The LightningModule: one language model, its optimizer, and the loss of a batch.

1. `training_step` takes the loss of a micro-batch by the segment's objective, next-token loss
   unless the run says otherwise (`scaling.training.objective`). Lightning accumulates gradients
   and, with several devices, averages them. Where only some targets count, micro-batches have
   unequal numbers of them. Then a micro-batch divides its sum by the number of its tokens, which
   all have alike, and when the last gradient of the step has been added,

       gradient and loss  /=  share of the targets of the global batch that count

   which makes them those of the whole batch at once, however it was split.
2. Before each optimizer step the learning rate is set from `scaling.config.schedule` and gradients
   are clipped by their global norm, which is kept for the record. With `parallel.cuda_graph` a step
   is one function (`scaling.training.captured`), which Lightning calls as its optimizer step.
3. `state` and `restore` move everything that training depends on to and from plain containers.

Nothing goes through Lightning's logger: `scaling.training.callbacks.Recorder` reads `loss_sum` and
`grad_norm` once an optimizer step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from models.checkpointing import checkpoint_blocks
from models.language_model import LanguageModel, build
from scaling.config.run import RunConfig
from scaling.config.schedule import Segment, changes, learning_rate, segments
from scaling.data.loader import Batch
from scaling.plan.accelerator import accelerator
from scaling.record import sharded_state
from scaling.system.randomness import random_state, seed_all, set_random_state
from scaling.training import fsdp
from scaling.training.captured import CapturedStep
from scaling.training.loss import count_targets
from scaling.training.objective import Objective, objective_of
from scaling.training.optim import adamw, plain_state, set_rate
from scaling.training.parallel import accumulation


class TrainingModule(pl.LightningModule):
    """Trains the language model of one run, segment by segment."""

    def __init__(self, config: RunConfig) -> None:
        """Build the model with the weights of the run's seed."""
        super().__init__()
        self.config = config
        seed_all(config.seed)
        self.net: LanguageModel = build_model(config)
        first = segments(config)[0]
        self.segment: Segment = first
        self.objective: Objective = objective_of(config, first.objective)
        """Of the segment."""
        self._teacher: tuple[LanguageModel, ...] = ()  # a tuple: it is no part of this module
        self.optimizer_state: dict[str, Any] | None = None
        self.step = 0
        """Optimizer steps along the path, from initialisation."""
        self.loss_sum = torch.zeros(())
        """Sum of the micro-batch losses of the step under way."""
        self.grad_norm = torch.zeros(())
        """Global gradient norm of the last step, before clipping."""
        self._unequal = config.data.masked and accumulation(config) * config.parallel.world_size > 1
        self._counted: list[Tensor] = []
        """Of the micro-batches of the step under way, the share of the targets that count."""
        self.captured: CapturedStep | None = None
        """The step as a whole, where `parallel.cuda_graph` asks for it."""
        self.shows_gradients = False
        """Whether somebody looks at the gradients of the step under way before they are clipped."""

    @property
    def teacher(self) -> LanguageModel | None:
        """The model that the net learns from, where an objective needs a second one."""
        return self._teacher[0] if self._teacher else None

    def lend(self, teacher: LanguageModel) -> None:
        """Take a teacher for the objectives that need one; it is never trained."""
        self._teacher = (teacher.requires_grad_(False).eval(),)

    @property
    def sharded(self) -> bool:
        """Whether ranks hold shares of the model, so that they must save and load together."""
        return fsdp.is_sharded(self.net)

    def configure_model(self) -> None:
        """Lightning asks for this hook under FSDP2; the model is built and sharded by then."""

    def start(self, segment: Segment, step: int) -> None:
        """Train `segment` next, from `step` on, with the optimizer state given to `restore`."""
        self.segment, self.step = segment, step
        self.objective = objective_of(self.config, segment.objective)
        self.objective.learns(self.net)
        if step in changes(self.config):
            self.optimizer_state = None  # other parameters learn from here on

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Loss of a micro-batch, a scalar: of the next token, in nats, by default."""
        if self.captured is not None:
            self.captured.take(batch)
            return None
        self.objective.before_batch(self.net, self.step)
        return self.loss_of(batch)

    def loss_of(self, batch: Batch) -> Tensor:
        """Loss of a micro-batch, a scalar, which is also added to that of the step."""
        share = self._count(batch) if self._unequal and self.objective.of_text else None
        loss = self.objective.loss(self.net, batch, share=share, teacher=self.teacher)
        self.loss_sum += loss.detach()
        return loss

    def _count(self, batch: Batch) -> Tensor:
        """Note a micro-batch's share of targets that count, a scalar."""
        self._counted.append(count_targets(batch).double() / batch[1].numel())
        return self._counted[-1].float()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, with the moments of the checkpoint that training goes on from."""
        optimizer = adamw(self.net, self.objective.optim)
        if self.optimizer_state is not None:
            state = self.optimizer_state
            if self.sharded:
                state = fsdp.shares_of_optimizer(state, optimizer)
            optimizer.load_state_dict(state)
            self.optimizer_state = None
        return optimizer

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        return learning_rate(self.config, self.segment, self.step)

    def on_train_start(self) -> None:
        self._counted = []
        if self.teacher is not None:
            self.teacher.to(self.device)
        self.loss_sum = torch.zeros((), device=self.device)
        if self.config.parallel.cuda_graph:
            self.captured = CapturedStep(
                self,
                self.trainer.optimizers[0],
                accumulation(self.config),
                self.trainer.precision_plugin.forward_context,
            )

    def on_train_end(self) -> None:
        if self.captured is not None:
            self.captured = None
            self.net.zero_grad(set_to_none=True)

    def on_after_backward(self) -> None:
        """After the last micro-batch of a step, weigh all targets of the global batch alike."""
        if len(self._counted) == self.trainer.accumulate_grad_batches:
            self.weigh()

    def weigh(self) -> None:
        """Divide gradients and loss by the share of the targets of the step that count."""
        if not self._counted:
            return
        mine = torch.stack(self._counted).mean()
        share = self.trainer.strategy.reduce(mine, reduce_op="mean")
        assert isinstance(share, Tensor)
        self._counted = []
        share = torch.where(share == 0, 1.0, share)  # then loss and gradients are 0
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad /= share
        self.loss_sum /= share

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's, unless the step is one function: then all of it, after the last batch."""
        if self.captured is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        assert optimizer_closure is not None
        optimizer_closure()  # takes the batch
        self.captured.run(self._show if self.shows_gradients else None)

    def _show(self) -> None:
        """Let callbacks see the gradients, as Lightning does before its own step."""
        for callback in self.trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            callback.on_before_optimizer_step(self.trainer, self, self.trainer.optimizers[0])

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Lightning's, unless the step is one function, which sets its gradients to 0 itself."""
        if self.captured is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, keep their norm, and set the rate of the step."""
        self.grad_norm = self.clip(optimizer)
        self.set_rate(optimizer)

    def set_rate(self, optimizer: torch.optim.Optimizer) -> None:
        """Set the rate of the step after `step`."""
        set_rate(optimizer, self.rate)

    def clip(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the gradients; returns their global norm before that, a scalar.

        Where a step that is no number is skipped, the optimizer is told so, without the host's
        knowing.
        """
        limit = self.objective.optim.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(
            self.net.parameters(), float("inf") if limit is None else limit
        )
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.config.divergence.policy != "skip":
            return whole
        if not isinstance(norm, DTensor):
            # What the fused kernel knows from scaled gradients: nothing is done where it is 1.
            setattr(optimizer, "found_inf", whole.isfinite().logical_not().float())  # noqa: B010
        elif not whole.isfinite():
            optimizer.zero_grad(set_to_none=True)  # the step that follows has nothing to do
        return whole

    def state(self, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
        """Weights, optimizer and random states, as plain containers of tensors.

        Of a sharded model these are the shares of this rank, under `shares`
        (`scaling.record.sharded_state`), and what all ranks have alike.

        Args:
            optimizer: the one of `configure_optimizers`; None before the first step.
        """
        content = {"step": self.step, "random": random_state()}
        if self.sharded:
            return content | sharded_state.collect(self.net, optimizer)
        state = None if optimizer is None else plain_state(optimizer)
        return content | {"model": self.net.state_dict(), "optimizer": state}

    def weights(self) -> dict[str, Any]:
        """What a milestone keeps. All ranks of a sharded model must call it; rank 0 gets it."""
        return {"step": self.step, "model": self.objective.weights(self.net)}

    def restore(self, content: dict[str, Any], objective: Objective) -> None:
        """Take over a checkpoint of `state` to go on by an objective; the optimizer follows when it
        is built.

        Any strategy goes on from a checkpoint of any other, with any number of ranks.
        """
        if "folder" in content:
            self.optimizer_state = sharded_state.load(content, self.net)
        else:
            if self.sharded:
                fsdp.load_whole(self.net, content["model"])
            else:
                objective.accept(self.net, content["model"])
                self.net.load_state_dict(content["model"])
            self.optimizer_state = content["optimizer"]
        fsdp.release(self.net)
        set_random_state(content["random"])


def build_model(config: RunConfig) -> LanguageModel:
    """The model as `parallel` wants it: checkpointed, compiled, sharded, with fresh weights."""
    parallel = config.parallel
    sharded = parallel.strategy == "fsdp"
    net = build(config.model, device="meta" if sharded else None)
    # Here already: FSDP shares out what is there when the net is built.
    objective_of(config, segments(config)[0].objective).learns(net)
    mode = parallel.activation_checkpointing
    assert mode != "auto", "decided by `scaling.training.parallel.decide`"
    checkpoint_blocks(net.blocks, mode)
    if parallel.compile:
        for block in net.blocks:
            block.compile()  # in place: parameter names stay as they are
    if sharded:
        mesh = fsdp.device_mesh(parallel, accelerator(config))
        fsdp.shard(net, mesh, bf16=parallel.bf16)
        fsdp.init_weights(net)
    return net
