"""Learning rates and segments against hand-written tables."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import ConfigError, toy_config
from scaling.config.run import BudgetConfig, DataConfig, OptimConfig, RunConfig, ScheduleConfig
from scaling.config.schedule import Segment, learning_rate, segments

TOKENS = 100  # a step


def run(steps: int, horizons: tuple[int, ...] = (), **schedule: object) -> RunConfig:
    return RunConfig(
        name="r",
        model=toy_config("tnl", 32, vocab_size=257),
        data=DataConfig(sequence_length=10, batch_sequences=10),
        optim=OptimConfig(lr=1.0),
        schedule=ScheduleConfig(**schedule),  # type: ignore[arg-type]
        budget=BudgetConfig(tokens=steps * TOKENS, horizons=tuple(h * TOKENS for h in horizons)),
    )


def rates(config: RunConfig, segment: Segment) -> list[float]:
    return [learning_rate(config, segment, s) for s in range(segment.first, segment.last)]


def test_wsd_goes_back_to_the_trunk_after_each_branch() -> None:
    config = run(20, (5, 10), decay_fraction=0.2)
    listed = [(s.name, s.first, s.last, s.milestone) for s in segments(config)]
    assert listed == [
        ("trunk", 0, 4, False),
        ("decay-500", 4, 5, True),
        ("trunk", 4, 8, False),
        ("decay-1000", 8, 10, True),
        ("trunk", 8, 16, False),
        ("decay-2000", 16, 20, True),
    ]


def test_wsd_rates() -> None:
    config = run(10, warmup_tokens=2 * TOKENS, decay_fraction=0.4)
    trunk, decay = segments(config)
    assert rates(config, trunk) == pytest.approx([0.25, 0.75, 1, 1, 1, 1])
    assert rates(config, decay) == pytest.approx([0.875, 0.625, 0.375, 0.125])


def test_wsd_decays_to_the_final_ratio() -> None:
    config = run(10, decay_fraction=0.2, final_lr_ratio=0.5)
    assert rates(config, segments(config)[-1]) == pytest.approx([0.875, 0.625])


def test_cosine_is_one_path_with_milestones_on_the_way() -> None:
    config = run(8, (4,), kind="cosine", final_lr_ratio=0.1)
    first, second = segments(config)
    assert (first.name, first.last, first.milestone) == ("trunk", 4, True)
    assert (second.name, second.first, second.last) == ("trunk", 4, 8)
    expected = [0.1 + 0.9 * (1 + math.cos(math.pi * (s + 0.5) / 8)) / 2 for s in range(8)]
    assert rates(config, first) + rates(config, second) == pytest.approx(expected)


def test_constant_warms_up_and_stays() -> None:
    config = run(6, kind="constant", warmup_tokens=4 * TOKENS)
    (segment,) = segments(config)
    assert rates(config, segment) == pytest.approx([0.125, 0.375, 0.625, 0.875, 1, 1])


@settings(deadline=None)
@given(
    steps=st.integers(2, 400),
    shares=st.lists(st.floats(0.02, 1.0), max_size=5),
    decay_fraction=st.floats(0.01, 0.99),
    kind=st.sampled_from(["wsd", "cosine", "constant"]),
)
def test_segments_are_one_path_with_a_milestone_at_every_horizon(
    steps: int, shares: list[float], decay_fraction: float, kind: str
) -> None:
    horizons = tuple(sorted({max(1, round(steps * share)) for share in shares}))
    config = run(steps, horizons, kind=kind, decay_fraction=decay_fraction)
    parts = segments(config)
    trunk = 0
    for part in parts:
        assert part.first == trunk < part.last  # a branch leaves the trunk where it stands
        trunk = part.first if part.is_branch else part.last
        for step in (part.first, part.last - 1):
            assert 0 < learning_rate(config, part, step) <= 1
    milestones = [p.last for p in parts if p.milestone]
    assert milestones == sorted({*horizons, steps})
    assert len({(p.name, p.last) for p in parts}) == len(parts)


def test_warm_up_must_end_before_the_first_decay() -> None:
    with pytest.raises(ConfigError, match=r"schedule.warmup_tokens=500.*at 400 tokens"):
        run(20, (5,), warmup_tokens=5 * TOKENS)
