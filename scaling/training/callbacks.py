"""What happens after every optimizer step: count, guard, record, save, show.

The callbacks run in this order. `Clock` goes first: it adds the step to the `Journal`,
which the others read.

1. `Clock`            step, mean loss over micro-batches and ranks, request to stop
                      (`scaling.training.clock`)
2. `DivergenceGuard`  stop, skip or rewind where the run diverges (`scaling.training.guard`)
3. `Norms`            of gradients and parameters by group (`scaling.training.norms`)
4. `Recorder`         metrics.jsonl, status.json with its heartbeat, log.txt
5. `TokenCheckpoint`  resume checkpoints by time or tokens, and at once when asked to stop
                      (`scaling.training.saving`)
6. `Progress`         a progress bar with the time left

Losses and gradient norms are read one step later, so that a device need not be waited for; those
of a step that is recorded or saved, and all before it, are read at that step.

Only rank 0 writes. What is written to metrics.jsonl depends on the step alone, never on the clock
or on where a run was interrupted (`wall` and the speeds apart).
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl

from scaling.config.run import RunConfig
from scaling.config.schedule import Segment
from scaling.data.loader import Loader
from scaling.record.early import asked_to_stop
from scaling.record.environment import memory_peak
from scaling.record.record import RunRecord
from scaling.system.claims import StopEvent
from scaling.system.words import duration
from scaling.training.module import TrainingModule
from scaling.training.objective import objective_of

STATUS_SECONDS = 2.0
"""Between two heartbeats in status.json."""
LOG_SECONDS = 10.0
"""Between two lines of log.txt."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is known of a step once the device has done it."""

    step: int
    loss: float
    grad_norm: float
    rate: float
    """Its learning rate."""


@dataclass(kw_only=True)
class Journal:
    """What is known of a run while it trains, apart from weights and optimizer."""

    config: RunConfig
    segments: tuple[Segment, ...]
    record_every: int
    """Steps between two lines of metrics.jsonl."""
    bytes_per_token: float
    peak_flops: float | None
    """Dense peak of all devices together, for MFU; None where it is not known."""
    index: int = 0
    """Number of the current segment."""
    step: int = 0
    """Steps along the path of the current segment."""
    wall: float = 0.0
    """Seconds trained over all segments and sessions, at the start of this session's segment."""
    losses: deque[float] = field(default_factory=deque)
    """Losses of the last steps along the path, enough for a record and for a milestone."""
    fresh: list[Reading] = field(default_factory=list)
    """Steps whose losses have been read at this step, the last ones of `losses`; none if the step
    before has been read by then and this one is read later."""
    grad_norm: float = 0.0
    """Of the last step that has been read."""
    norms: dict[str, float] = field(default_factory=dict)
    """Of gradients and parameters by group, at a recorded step."""
    rate: float = 0.0
    """Learning rate of the last step that has been read."""
    stop_event: StopEvent | None = None
    stopping: bool = False
    """Whether a stop was asked for."""
    save_at: float = math.inf
    """Clock at which a checkpoint is due that goes by time."""
    saving: bool = False
    """Whether one is."""
    early: str = ""
    """Why the run is to stop for good (`scaling.record.early`); known to rank 0 alone."""
    diverged: str = ""
    """Why the run diverged; empty if it did not."""
    rewinding: str = ""
    """Why the run goes back to its last checkpoint; empty if it does not."""
    skipped: int = 0
    """Updates left out along the path."""
    rewinds: int = 0
    """Returns to a checkpoint along the path."""
    passed_over: int = 0
    """Batches along the path that are not trained on because of rewinds."""
    started: float = field(default_factory=time.perf_counter)
    """Clock when the current segment started in this session."""

    @property
    def segment(self) -> Segment:
        """The current segment."""
        return self.segments[self.index]

    @property
    def halted(self) -> bool:
        """Whether the last step is not to be recorded or saved."""
        return bool(self.diverged or self.rewinding)

    @property
    def remarks(self) -> str:
        """What a reader of the result should know; usually empty."""
        counts = {"updates skipped": self.skipped, "rewinds": self.rewinds}
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    @property
    def tokens(self) -> int:
        """Tokens along the path."""
        return self.step * self.config.tokens_per_step

    @property
    def trained_tokens(self) -> int:
        """Tokens over all segments so far."""
        before = sum(s.last - s.first for s in self.segments[: self.index])
        return (before + self.step - self.segment.first) * self.config.tokens_per_step

    @property
    def remaining_tokens(self) -> int:
        """Tokens still to train over all segments."""
        total = sum(s.last - s.first for s in self.segments) * self.config.tokens_per_step
        return total - self.trained_tokens

    @property
    def wall_now(self) -> float:
        """Seconds trained over all segments and sessions."""
        return self.wall + time.perf_counter() - self.started

    def is_recorded(self, step: int) -> bool:
        """Whether step `step` of the segment has a line in metrics.jsonl."""
        return step % self.record_every == 0 or step == self.segment.last

    def is_read_at_once(self, step: int) -> bool:
        """Whether the values of step `step` are needed at that step; all ranks agree on it."""
        budget = self.config.budget
        saved = self.config.passes(step, budget.checkpoint_every_tokens) or self.config.keeps(step)
        return self.stopping or self.saving or saved or self.is_recorded(step)

    @property
    def kept_losses(self) -> int:
        """How many losses are kept: 5 % of the run, at least 8 and one record's worth."""
        divergence = self.config.divergence
        window = divergence.window + 1 if divergence.policy == "rewind" else 0
        return max(8, math.ceil(0.05 * self.config.steps), self.record_every, window)

    def add(self, reading: Reading) -> None:
        """Take what has been read of a step."""
        self.fresh.append(reading)
        self.grad_norm, self.rate = reading.grad_norm, reading.rate
        self.losses.append(reading.loss)
        while len(self.losses) > self.kept_losses:
            self.losses.popleft()

    def back_to(self, reading: Reading) -> None:
        """End with a step that was read just now: those after it are as if they had not been."""
        for later in self.fresh[self.fresh.index(reading) + 1 :]:
            assert later.step > reading.step
            self.losses.pop()
        self.step = reading.step
        self.grad_norm, self.rate = reading.grad_norm, reading.rate

    def mean_loss(self, steps: int) -> float | None:
        """Mean training loss of the last steps, without skipped ones; None if all were."""
        last = [loss for loss in list(self.losses)[-steps:] if math.isfinite(loss)]
        return math.fsum(last) / len(last) if last else None

    def bits_per_byte(self, loss: float) -> float:
        """A loss in nats per token as bits per byte of text."""
        return loss / (math.log(2) * self.bytes_per_token)

    def training_bpb(self, loss: float) -> float | None:
        """The same for a training loss; None where the objective's is not one of the text."""
        of_text = objective_of(self.config, self.segment.objective).of_text
        return self.bits_per_byte(loss) if of_text else None

    def begin(
        self, index: int, step: int, wall: float, losses: list[float], skipped: int = 0
    ) -> None:
        """Start a segment, or go on with it."""
        self.skipped, self.rewinding = skipped, ""
        self.index, self.step, self.wall = index, step, wall
        self.losses, self.fresh = deque(losses), []
        self.started = time.perf_counter()


class StepCallback(pl.Callback):
    """A callback that acts once an optimizer step instead of once a micro-batch."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            assert isinstance(pl_module, TrainingModule)
            self.on_step_end(trainer, pl_module)

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        """After the optimizer step."""
        raise NotImplementedError


class Recorder(StepCallback):
    """Writes metrics, status and log."""

    def __init__(self, journal: Journal, record: RunRecord) -> None:
        super().__init__(journal)
        self._record = record
        self._mark = (0, 0.0, 0.0)
        """Step, clock and seconds waited for data at the last line, for the speeds."""
        self._status_due = self._log_due = 0.0
        self._speed: float | None = None
        self._data_wait: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.perf_counter()
        self._mark = (self.journal.step, now, _waited(trainer))
        self._status_due, self._log_due = now + STATUS_SECONDS, now + LOG_SECONDS

    def on_step_end(self, trainer: pl.Trainer, module: TrainingModule) -> None:
        journal = self.journal
        if journal.halted or not trainer.is_global_zero:
            return
        now = time.perf_counter()
        segment, every = journal.segment, journal.record_every
        if journal.is_recorded(journal.step):
            since, clock, waited_before = self._mark
            waited = _waited(trainer)
            self._speed = (journal.step - since) * journal.config.tokens_per_step / (now - clock)
            self._data_wait = (waited - waited_before) / (now - clock)
            self._mark = (journal.step, now, waited)
            before = max(segment.first, (journal.step - 1) // every * every)
            self._record.append_metrics(self._line(journal.mean_loss(journal.step - before)))
        if now >= self._status_due:
            self._status_due = now + STATUS_SECONDS
            self.write_status()
            journal.early = asked_to_stop(self._record.path)
        if now >= self._log_due:
            self._log_due = now + LOG_SECONDS
            self._record.log(describe(journal, self._speed))

    def write_status(self) -> None:
        """The heartbeat."""
        journal = self.journal
        eta = journal.remaining_tokens / self._speed if self._speed else None
        self._record.write_status(
            "running",
            tokens=journal.trained_tokens,
            reason=journal.remarks,
            loss=journal.mean_loss(1),
            tokens_per_second=self._speed,
            eta_seconds=eta,
            mfu=self._mfu,
            data_wait=self._data_wait,
            memory_peak=memory_peak(journal.config),
        )

    @property
    def _mfu(self) -> float | None:
        """Model FLOPs utilisation between the last two lines, where the peak is known."""
        journal = self.journal
        if self._speed is None or journal.peak_flops is None:
            return None
        flops = self._record.flops_per_token(journal.segment.is_prelude)
        return self._speed * flops / journal.peak_flops

    def _line(self, loss: float | None) -> dict[str, Any]:
        journal = self.journal
        assert self._speed is not None
        assert self._data_wait is not None
        segment, policy = journal.segment, journal.config.divergence.policy
        counts = {"skip": {"skipped": journal.skipped}, "rewind": {"rewinds": journal.rewinds}}
        return {
            "segment": segment.name,
            "step": journal.step,
            "tokens": journal.tokens,
            "flops": self._record.flops(journal.tokens),
            "wall": round(journal.wall_now, 3),
            "split": segment.name if segment.is_prelude else "train",
            "loss": loss,
            "bpb": None if loss is None else journal.training_bpb(loss),
            "lr": journal.rate,
            "grad_norm": _finite(journal.grad_norm),
            "tokens_per_second": round(self._speed, 1),
            "mfu": self._mfu,
            "data_wait": round(self._data_wait, 5),
            "memory_peak": memory_peak(journal.config),
            **{name: _finite(value) for name, value in journal.norms.items()},
        } | counts.get(policy, {})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _waited(trainer: pl.Trainer) -> float:
    """Seconds that training has waited for data in this segment and session."""
    loader = trainer.train_dataloader
    assert isinstance(loader, Loader)
    return loader.waited


def describe(journal: Journal, speed: float | None) -> str:
    """One dense line for log.txt."""
    loss = journal.losses[-1] if journal.losses else math.nan
    bpb = journal.training_bpb(loss)
    bits = "" if bpb is None else f" ({bpb:.4f} bpb)"
    parts = [
        f"{journal.segment.name} step {journal.step}/{journal.segment.last}",
        f"{journal.tokens:,} tokens",
        f"loss {loss:.4f}{bits}",
        f"lr {journal.rate:.3g}",
        f"grad {journal.grad_norm:.3g}",
    ]
    if speed:
        left = duration(journal.remaining_tokens / speed)
        parts += [f"{speed:,.0f} tok/s", f"{left} left"]
    return " | ".join(parts)
