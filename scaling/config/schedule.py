"""Learning rate over tokens, and the order in which the parts of a run are trained.

Everything here is a pure function of a `RunConfig`; nothing is stored or advanced. With t the
tokens seen so far, w the warm-up and D the end of the run:

    warm-up    t / w                                               for t < w
    constant   1
    cosine     r + (1 - r) (1 + cos(pi (t - w) / (D - w))) / 2
    wsd        1 on the trunk; on the decay from s to the horizon h: 1 - (1 - r) (t - s) / (h - s)

times `optim.lr`, with r = `schedule.final_lr_ratio`. A step takes the rate at the middle of its own
tokens, so that neither the first step of a warm-up nor the last of a decay is spent on a rate of 0.
Linear decay after a constant rate: Haegele et al., arXiv 2405.18392, section 3.

With `wsd` one run yields a decayed model at each horizon: a branch leaves the trunk at
h - decay_steps(h), decays to h and is measured; the trunk then goes on from where it was left.
`segments` lists those parts in the order in which they are trained.

A run may be trained by other objectives first (`RunConfig.objectives`; attention transfer and its
kin in `scaling.linearization`). Each has a segment of its own, at a constant rate; t, D and h above
then count from the end of the last of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

from scaling.config.objectives import Stage
from scaling.config.run import RunConfig, ScheduleConfig

TRUNK = "trunk"


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of steps trained in one go. Steps count along the path from initialisation."""

    name: str
    """`trunk`, `decay-<tokens>` after its horizon in tokens, or the objective of a stage before the
    schedule."""
    objective: str
    """What it is trained by, a name of `scaling.config.objectives`."""
    first: int
    """Steps taken before the segment starts."""
    last: int
    """Steps taken when it ends; more than `first`."""
    milestone: bool
    """Whether the model at the end is validated and kept."""
    rate: float | None = None
    """Constant learning rate of a stage before the schedule; None: the schedule's."""

    @property
    def is_branch(self) -> bool:
        """Whether the state is put back to the one at `first` when the segment has ended."""
        return self.name.startswith("decay-")

    @property
    def is_prelude(self) -> bool:
        """Whether the run's schedule starts only after it."""
        return self.rate is not None


def segments(config: RunConfig) -> tuple[Segment, ...]:
    """The parts of a run in training order; the last one ends the run."""
    parts: list[Segment] = []
    trunk = 0
    *prelude, rest = config.objectives

    def add(name: str, first: int, last: int, milestone: bool, stage: Stage) -> None:
        parts.append(
            Segment(
                name=name,
                objective=stage.objective,
                first=first,
                last=last,
                milestone=milestone,
                rate=stage.rate,
            )
        )

    for stage in prelude:
        last = trunk + stage.steps
        add(stage.objective, trunk, last, last == config.steps, stage)
        trunk = last
    if trunk == config.steps:
        return tuple(parts)
    for horizon in config.horizon_steps:
        decay = config.decay_steps(horizon) if config.schedule.kind == "wsd" else 0
        branch = horizon - decay
        if branch > trunk:
            add(TRUNK, trunk, branch, decay == 0, rest)
            trunk = branch
        if decay:
            add(f"decay-{horizon * config.tokens_per_step}", branch, horizon, True, rest)
    return tuple(parts)


def changes(config: RunConfig) -> frozenset[int]:
    """Steps at which another objective takes over, the first step included."""
    ends = accumulate(stage.steps for stage in config.objectives[:-1])
    return frozenset((0, *ends))


def learning_rate(config: RunConfig, segment: Segment, step: int) -> float:
    """Learning rate of the optimizer step that follows `step` earlier ones in a segment's path."""
    if segment.rate is not None:
        return segment.rate
    per_step, before = config.tokens_per_step, config.prelude_steps
    middle = (step - before + 0.5) * per_step
    if segment.is_branch:
        share = (middle / per_step - (segment.first - before)) / (segment.last - segment.first)
        return config.optim.lr * decay_factor(share, config.schedule.final_lr_ratio)
    return config.optim.lr * factor(config.schedule, middle, (config.steps - before) * per_step)


def factor(schedule: ScheduleConfig, tokens: float, total: float) -> float:
    """Share of the peak rate at `tokens` on the trunk of a run of `total` tokens."""
    warmup = schedule.warmup_tokens
    if tokens < warmup:
        return tokens / warmup
    if schedule.kind == "cosine":
        share = (tokens - warmup) / (total - warmup)
        ratio = schedule.final_lr_ratio
        return ratio + (1 - ratio) * (1 + math.cos(math.pi * share)) / 2
    return 1.0


def decay_factor(share: float, final_ratio: float) -> float:
    """Share of the peak rate when `share` of a linear decay has passed."""
    return 1 - (1 - final_ratio) * share
