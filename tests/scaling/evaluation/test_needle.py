"""The scores of the needle grid by hand, and the prompts by count."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import toy_config
from scaling.evaluation.needle import (
    LENGTHS,
    Needle,
    accuracy_at,
    accuracy_upto,
    check_lengths,
    depths,
    grid,
    is_match,
    measures,
    niah_score,
    penalty,
    prompt,
    weighted_accuracy,
)
from scaling.evaluation.results import EvaluationError
from scaling.evaluation.settings import Settings
from scaling.evaluation.tasks import TASKS, Subject


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([0, 0, 0, 0], 0),
        ([1, 1, 1, 1], 1),
        ([0, 0, 1, 1], 2**-0.5),
        ([0, 1, 1, 0], 2**-1),
        ([1, 0, 1, 0], 2**-1.5),
    ],
)
def test_penalty(column, expected):
    assert penalty(np.array(column, dtype=float)) == pytest.approx(expected)


def test_scores_by_hand():
    outcomes = np.array([[1, 0], [1, 1.0]])  # lengths 1000 (both depths), 2000 (the deep one)
    # Weights 1, 3 (lengths) x 1, 2 (depths): sum 12; cells 1 + 2 + 0 + 6.
    assert weighted_accuracy(outcomes, depth_growth=2, length_growth=3) == pytest.approx(9 / 12)
    assert niah_score(outcomes, depth_growth=2, length_growth=3) == pytest.approx(
        (3 + 6 * 2**-0.5) / 12
    )
    lengths = (1000, 2000)
    assert accuracy_at(outcomes, lengths, 1500) == 1.0
    assert accuracy_at(outcomes, lengths, 2048) == 0.5
    assert accuracy_upto(outcomes, lengths, 2048) == 0.75
    with pytest.raises(EvaluationError, match="the shortest is 1000"):
        accuracy_at(outcomes, lengths, 999)
    with pytest.raises(EvaluationError, match="at least 1"):
        weighted_accuracy(outcomes, depth_growth=0.5, length_growth=1)
    by = {m.metric: m.value for m in measures(outcomes, lengths, depth_growth=1, length_growth=1)}
    assert by["accuracy"] == by["weighted_accuracy"] == 0.75
    assert set(by) == {
        "niah_score", "weighted_accuracy", "accuracy",
        "acc@1024", "acc<=1024", "acc@2048", "acc<=2048",
    }  # fmt: skip


def test_the_default_grid():
    assert (len(LENGTHS), LENGTHS[0], LENGTHS[-1]) == (35, 1000, 16000)
    np.testing.assert_allclose(depths(35)[[0, 17, 34]], [0, 0.5, 1])


def test_a_prompt_has_its_length_and_the_needle_its_depth():
    straw = list(range(100, 200))
    for depth, place in ((0.0, 0), (0.5, 7), (1.0, 14)):
        tokens = prompt(straw, [1, 2, 3], [8, 9], 19, depth)
        assert len(tokens) == 19
        assert tokens[-2:] == [8, 9]
        assert tokens[place : place + 3] == [1, 2, 3]
        assert [t for t in tokens if t >= 100] == straw[:14]
    begun = prompt(straw, [1], [2], 6, 0.0, start=[7])
    assert begun == [7, 1, *straw[:3], 2]
    with pytest.raises(EvaluationError, match="haystack has 100 tokens"):
        prompt(straw, [1], [2], 1000, 0.5)
    with pytest.raises(EvaluationError, match="does not hold needle and question, which take 2"):
        prompt(straw, [1], [2], 2, 0.5)


def test_modes_and_matches():
    needle = Needle()
    assert needle.question in needle.hidden(easy=True)
    assert needle.question not in needle.hidden(easy=False)
    for easy in (True, False):
        assert needle.cue.strip() + needle.answer in needle.hidden(easy)
    assert is_match(" 4831.\n", needle.answer)
    assert is_match("4831", needle.answer)
    assert not is_match(" 48312", needle.answer)
    assert not is_match(" The 4831", needle.answer)
    assert is_match(" The 4831, sir", needle.answer, "contains")
    assert not is_match(" The 48311", needle.answer, "contains")


@pytest.mark.parametrize("arch", ["llama", "tnl"])
def test_batches_of_prompts_change_no_cell(make_toy, monkeypatch, arch):
    """The continuations of a grid are those of its prompts one by one."""
    seen = {}

    def remember(text, answer, scorer):
        seen[size].append(text)
        return len(text) % 2

    monkeypatch.setattr("scaling.evaluation.needle.is_match", remember)
    for size in (1, 4):
        seen[size] = []
        options = {"lengths": (200, 230), "depth_count": 5, "easy": True, "batch_size": size}
        outcomes = grid(make_toy(arch), "straw " * 60, **options)
        assert outcomes.T.ravel().tolist() == [len(text) % 2 for text in seen[size]]
    assert len(seen[1]) == 10
    assert seen[1] == seen[4]


def test_lengths_beyond_training():
    """Softmax attention a little and said aloud, far not; a state or a window at any length."""
    llama, tnl = (toy_config(arch, 32, vocab_size=256) for arch in ("llama", "tnl"))
    assert check_lengths(llama, (100, 128), 128) is None
    assert check_lengths(llama, (9999,), None) is None
    said = check_lengths(llama, (200, 256), 128)
    assert said is not None
    assert "256 tokens are 2 times the 128 of training, positions that softmax" in said
    with pytest.raises(
        EvaluationError,
        match=r"16,000 tokens are 125 times the 128 of training.*up to 256, or --max-length 16000",
    ):
        check_lengths(llama, LENGTHS, 128)
    assert check_lengths(llama, LENGTHS, 128, allowed=16000) is None
    assert check_lengths(llama, LENGTHS, 8192, allowed=1000) is not None  # the paper's own grid
    for config in (tnl, llama.with_options(window=64)):
        said = check_lengths(config, LENGTHS, 128)
        assert said is not None
        assert "125 times the 128 of training; its state carries on" in said


@pytest.mark.parametrize("task", ["needle", "needle_standard"])
def test_what_is_said_reaches_the_user(make_toy, task):
    said = []
    settings = Settings(lengths=(260,), depths=1)
    TASKS[task].run(Subject(make_toy("tnl", context=64), settings, said.append))
    assert len(said) == 1
    assert said[0].startswith("tnl-toy, needle: 260 tokens are 4.06 times the 64 of training")
    with pytest.raises(EvaluationError, match="choose --lengths up to 128"):
        TASKS[task].run(Subject(make_toy("llama", context=64), settings))
    TASKS[task].run(Subject(make_toy("llama", context=260), settings, said.append))
    assert len(said) == 1
