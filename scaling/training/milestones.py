"""The end of a segment: validate, keep the weights, and move on to what is trained next.

1. Each fixed validation block gets its mean loss; their mean and sample standard deviation are the
   milestone's. With several ranks each takes every W-th batch; a block's loss is computed by one
   rank alone.
2. The weights are saved, then one validation line goes to metrics.jsonl and one line to
   milestones.jsonl.
3. Only then does the resume point move past the segment. Killed before that, the run drops the
   lines, trains the last steps of the segment again and writes the same lines.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from models.kernels.sequence import split_over
from scaling.data.loader import Batch
from scaling.record.checkpoints import Checkpoints
from scaling.record.record import RunRecord
from scaling.training import fsdp
from scaling.training.callbacks import Journal, StepCallback
from scaling.training.loss import block_means
from scaling.training.module import TrainingModule
from scaling.training.saving import save


class SegmentEnd(StepCallback):
    """Runs after the last step of a segment."""

    def __init__(
        self,
        journal: Journal,
        record: RunRecord,
        checkpoints: Checkpoints,
        validation: list[Batch],
    ) -> None:
        super().__init__(journal)
        self._record, self._checkpoints, self._validation = record, checkpoints, validation

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        journal = self.journal
        if journal.halted or journal.step < journal.segment.last:
            return
        if trainer.is_global_zero:
            module.objective.on_end(module, self._record, self._validation)
        if journal.segment.milestone:
            losses = block_losses(trainer, module, self._validation)
            if not losses.isfinite().all():
                journal.diverged = (
                    f"the validation loss became {losses.mean().item()} at step {journal.step} of "
                    f"segment {journal.segment.name} ({journal.tokens} tokens)"
                )
                return
            weights = module.weights()
            if trainer.is_global_zero:
                self._write_milestone(module, weights, losses)
        last = journal.index + 1 == len(journal.segments)
        if not (journal.segment.is_branch or last):
            if trainer.is_global_zero or module.sharded:
                save(journal, self._record, self._checkpoints, module, trainer.optimizers[0])
        elif trainer.is_global_zero:
            self._record.sync_metrics()
            self._checkpoints.finish_segment(journal.index, journal.wall_now)
        trainer.strategy.barrier("segment end")

    def _write_milestone(
        self, module: TrainingModule, weights: dict[str, Any], losses: Tensor
    ) -> None:
        journal, segment = self.journal, self.journal.segment
        loss = losses.mean().item()
        bpb = journal.bits_per_byte(loss)
        config = self._record.config
        if config.budget.milestone_precision == "bf16":
            weights = _rounded(weights)
        content = weights | {"config": config.to_json()}
        name, digest = self._checkpoints.save_milestone(journal.tokens, content)
        tokens, flops = journal.tokens, self._record.flops
        where = {"step": journal.step, "tokens": tokens, "flops": flops(tokens)}
        self._record.append_metrics(
            {
                "segment": segment.name,
                **where,
                "wall": round(journal.wall_now, 3),
                "split": "validation",
                "loss": loss,
                "bpb": bpb,
                "lr": journal.rate,
                "grad_norm": None,
                "tokens_per_second": None,
                "mfu": None,
            }
        )
        recent = max(8, math.ceil(0.05 * journal.step))
        line: dict[str, Any] = where | {
            "flops_paper": flops(tokens, "paper"),
            "train_loss": journal.mean_loss(recent) if module.objective.of_text else None,
            "val_loss": loss,
            "val_loss_std": losses.std().item() if len(losses) > 1 else None,
            "val_blocks": len(losses),
            "val_bpb": bpb,
            "decayed": segment.is_branch or self._is_end_of_cosine(),
            "checkpoint": f"checkpoints/{name}",
            "sha256": digest,
        }
        self._record.append_milestone(line)
        self._record.log(
            f"milestone {journal.tokens:,} tokens | validation loss {loss:.4f} ({bpb:.4f} bpb) "
            f"over {len(losses)} blocks"
        )

    def _is_end_of_cosine(self) -> bool:
        journal = self.journal
        cosine = journal.config.schedule.kind == "cosine" and not journal.segment.is_prelude
        return cosine and journal.step == journal.config.steps


def _rounded(weights: dict[str, Any]) -> dict[str, Any]:
    """Weights of a milestone with float32 tensors in bf16."""
    model = {
        name: value.to(torch.bfloat16) if value.dtype == torch.float32 else value
        for name, value in weights["model"].items()
    }
    return weights | {"model": model}


def block_losses(trainer: pl.Trainer, module: TrainingModule, batches: list[Batch]) -> Tensor:
    """Mean loss of every validation block in nats per token, float64 (blocks,)."""
    sizes = [len(batch[0]) for batch in batches]
    losses = torch.zeros(sum(sizes), dtype=torch.float64, device=module.device)
    module.net.eval()
    world = trainer.world_size
    starts = list(itertools.accumulate(sizes, initial=0))
    # Every rank computes whole sequences here.
    with torch.no_grad(), trainer.precision_plugin.forward_context(), split_over(None):
        # Ranks that share a model out go through it together, so that all take as many batches;
        # what a rank computes beyond the last batch is the last one again, and is left out.
        for start in range(0, len(batches), world):
            number = start + trainer.global_rank
            batch = batches[min(number, len(batches) - 1)]
            if number >= len(batches) and not module.sharded:
                break
            of_block = block_means(module.net, tuple(t.to(module.device) for t in batch))  # (b,)
            if number < len(batches):
                losses[starts[number] : starts[number + 1]] = of_block
    fsdp.release(module.net)
    module.net.train()
    if trainer.world_size > 1:
        total = trainer.strategy.reduce(losses, reduce_op="sum")
        assert isinstance(total, Tensor)
        losses = total
    return losses.cpu()
