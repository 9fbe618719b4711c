"""What happens when a loss spikes or is no longer a number: the policies of `DivergenceConfig`.

`stop`     A loss or gradient norm that is not finite ends the run as `diverged`. Such a run is a
           result, and fits leave it out visibly.
`skip`     An update whose gradient norm is not finite is left out (`scaling.training.module` drops
           its gradients; moments and weights stay) and counted. The schedule goes on.
`rewind`   Such an update, or a spike, puts the run back to its last checkpoint; the data from there
           to the spike, its batch included, are passed over:

               spike:  loss > mean + spike_sigmas * std   of the last `window` losses

           as in PaLM (Chowdhery et al., arXiv 2204.02311, section 5.1), where batches around a
           spike were skipped by hand.

Every rewind is a line of `rewinds.jsonl` in the run's directory. What is passed over follows from
those lines, and whether there is a spike from losses that the checkpoint holds, so that a run which
is killed before, during or after a rewind ends with the numbers of one that was not. For the same
reason `rewind` needs checkpoints at fixed token counts and makes no others: a run that is stopped
goes on from the last of those.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl

from linscale.json_reader import Fields
from scaling.config.parts import DivergenceConfig
from scaling.record.record import RunRecord
from scaling.training.callbacks import Journal, Reading, StepCallback
from scaling.training.module import TrainingModule


@dataclass(frozen=True, kw_only=True)
class Rewind:
    """One return to a checkpoint."""

    segment: int
    """Number of the segment."""
    step: int
    """Step at which the spike was seen, along the segment's path."""
    to: int
    """Step of the checkpoint."""
    skip: int
    """Batches that are passed over from there on."""
    reason: str


class DivergenceGuard(StepCallback):
    """Looks at loss and gradient norm of every step, once they have been read.

    That may be a step later, which is then as if it had not been made. It comes before `Recorder`
    and `TokenCheckpoint`, so what is on disk is from before.
    """

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        journal = self.journal
        for number, reading in enumerate(journal.fresh, start=1):
            losses = list(journal.losses)
            self._judge(reading, losses[: len(losses) - len(journal.fresh) + number])
            if journal.halted:
                journal.back_to(reading)
                trainer.should_stop = True
                return

    def _judge(self, reading: Reading, losses: list[float]) -> None:
        """Say in the journal if a step ends the run or sends it back; `losses` end with its own."""
        journal, config = self.journal, self.journal.config.divergence
        problem = not_finite(reading)
        if config.policy == "skip" and not math.isfinite(reading.grad_norm):
            journal.skipped += 1
            if journal.skipped <= config.limit:
                return
            problem += f"; {config.limit} updates were skipped before (divergence.limit)"
        if config.policy == "rewind":
            problem = problem or spike(losses, config)
            if problem and journal.rewinds < config.limit:
                journal.rewinding = problem
                return
            if problem:
                problem += f"; the run was rewound {config.limit} times before (divergence.limit)"
        if problem:
            tokens = reading.step * journal.config.tokens_per_step
            journal.diverged = (
                f"{problem} at step {reading.step} of segment {journal.segment.name} "
                f"({tokens} tokens, learning rate {reading.rate:.3g}); a lower optim.lr, a "
                "longer schedule.warmup_tokens or gradient clipping usually helps"
            )


def not_finite(reading: Reading) -> str:
    """Which of loss and gradient norm is no number; empty if both are."""
    for what, value in (("loss", reading.loss), ("gradient norm", reading.grad_norm)):
        if not math.isfinite(value):
            return f"the {what} became {value}"
    return ""


def spike(losses: Sequence[float], config: DivergenceConfig) -> str:
    """In what way the last loss is a spike; empty if it is none."""
    *before, last = losses[-config.window - 1 :]
    if len(before) < config.window:
        return ""
    mean = math.fsum(before) / len(before)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in before) / (len(before) - 1))
    limit = mean + config.spike_sigmas * std
    return f"the loss jumped to {last:.4f} (mean {mean:.4f}, std {std:.4f})" if last > limit else ""


def _read(line: dict[str, Any]) -> Rewind:
    """A line of rewinds.jsonl; raises BadRecord where it is none."""
    values = Fields(line, "rewinds.jsonl")
    counts = {name: values.whole(name, 0) for name in ("segment", "step", "to", "skip")}
    return Rewind(**counts, reason=values.word("reason", ""))


def find_rewinds(record: RunRecord, index: int) -> list[Rewind]:
    """The rewinds on the path of segment number `index`: its own, and the trunk's before it."""
    return [
        rewind
        for rewind in map(_read, record.rewinds())
        if rewind.segment == index
        or (rewind.segment < index and not record.segments[rewind.segment].is_branch)
    ]


def write_rewind(journal: Journal, record: RunRecord, to: int) -> None:
    """Record that the segment under way goes back to step `to`."""
    rewind = Rewind(
        segment=journal.index,
        step=journal.step,
        to=to,
        skip=journal.step - to,
        reason=journal.rewinding,
    )
    record.append_rewind(asdict(rewind))
    record.log(
        f"rewind: {rewind.reason} at step {rewind.step} of segment {journal.segment.name}; back to "
        f"step {to}, and {rewind.skip} batches are passed over"
    )
