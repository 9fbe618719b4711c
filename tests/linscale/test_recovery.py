"""What a recovered share counts from, with numbers computed by hand."""

from __future__ import annotations

import pytest

from linscale.recovery import SURGERY, WINDOW, recovered, reference, zero_of
from models.architectures.lolcats import LoLCATs

RECORD = {
    "validation": {"teacher": {"loss": 1.3060}, "surgery": {"loss": 3.07}},
    "baselines": {"window": {"loss": 1.3485}, "window + sink": {"loss": 1.3515}},
}


def test_the_same_student_by_both_zeros() -> None:
    """(1.3485 - 1.3380) / (1.3485 - 1.3060) = 0.247; (3.07 - 1.3380) / (3.07 - 1.3060) = 0.982."""
    known = reference(RECORD, "lolcats")
    assert recovered(1.3380, known["zero"], known["teacher"]) == pytest.approx(0.247, abs=5e-4)
    assert recovered(1.3380, known["surgery"], known["teacher"]) == pytest.approx(0.982, abs=5e-4)


def test_a_student_with_sinks_counts_from_its_own_window() -> None:
    assert reference({**RECORD, "sinks": 1}, "lolcats")["zero"] == 1.3515


@pytest.mark.parametrize(
    ("arch", "zero"), [("lolcats", WINDOW), ("supra", SURGERY), ("tnl", SURGERY)]
)
def test_methods_without_a_window_keep_their_zero(arch: str, zero: str) -> None:
    assert zero_of(arch) == zero
    known = reference(RECORD, arch)
    assert known["zero"] == known["window" if zero == WINDOW else "surgery"]


def test_what_was_linearized_before_counts_to_its_softmax() -> None:
    record = {**RECORD, "validation": {**RECORD["validation"], "softmax": {"loss": 1.2}}}
    assert reference(record, "lolcats")["teacher"] == 1.2


@pytest.mark.parametrize(("zero", "teacher"), [(None, 1.0), (1.0, None), (1.0, 1.0), (0.9, 1.0)])
def test_no_share_without_a_gap(zero: float | None, teacher: float | None) -> None:
    assert recovered(1.5, zero, teacher) is None


@pytest.mark.parametrize("sinks", [0, 1, 7])
@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
@pytest.mark.parametrize("window", [1, 4, 5])
def test_keys_that_softmax_sees(window: int, arrangement: str, sinks: int) -> None:
    """Counted one by one, and their mean."""
    options = LoLCATs(window=window, arrangement=arrangement, sink_tokens=sinks)  # pyright: ignore[reportArgumentType]
    counts = []
    for t in range(40):
        first = t - window + 1 if arrangement == "sliding" else (t // window - 1) * window
        counts.append(sum(s >= first or s < sinks for s in range(t + 1)))
    assert [options.seen(t + 1) for t in range(40)] == counts
    for length in (1, 6, 17, 40):
        assert options.mean_seen(length) == pytest.approx(sum(counts[:length]) / length)
