"""Window dropout: when windows are masked, that runs stay reproducible, and the options' errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.config import ConfigError
from models.linearize.parts import hybrid_mixers
from scaling.linearization import costs
from scaling.linearization import linearization_record as linearization
from scaling.linearization.window_dropout import drop, probability
from scaling.training.module import TrainingModule
from scaling.training.train import train
from tests.support import results
from tests.support.results import StopAfter


def test_the_probability_falls_to_zero_in_each_stage(student: Any) -> None:
    """8 steps of attention transfer, then 16."""
    config = student("lolcats", "linearize.window_dropout=0.8")
    steps = [probability(config, step) for step in range(24)]
    assert steps[:8] == pytest.approx([0.8 * (1 - i / 8) for i in range(8)])
    assert steps[8:] == pytest.approx([0.8 * (1 - i / 16) for i in range(16)])
    assert probability(config, 24) == 0


def test_windows_are_masked_as_often_as_it_says_and_only_in_training(student: Any) -> None:
    config = student("lolcats", "linearize.window_dropout=0.5", "budget.tokens=131072",
                     "linearize.transfer_tokens=65536", "budget.horizons=")  # fmt: skip
    net = TrainingModule(config).net
    masked = []
    for step in range(512):
        drop(net, config, step)
        masked += [mixer.dropped for mixer in hybrid_mixers(net).values()]
    # 1024 draws of mean 0.25: within four standard errors.
    assert np.mean(masked) == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 1024) ** 0.5)
    plain, dropped = TrainingModule(config).net, net
    for mixer in hybrid_mixers(dropped).values():
        mixer.dropped = True
    import torch

    tokens = torch.randint(0, 257, (2, 20))
    dropped.load_state_dict(plain.state_dict())
    assert torch.equal(dropped.eval()(tokens), plain.eval()(tokens))
    assert not torch.equal(dropped.train()(tokens), plain(tokens))


def test_a_stopped_run_drops_the_same_windows(student: Any, tmp_path: Path) -> None:
    config = student("lolcats", "linearize.window_dropout=0.7", "linearize.far_error=100",
                     "linearize.cross_entropy=0.5")  # fmt: skip
    assert train(config, tmp_path / "whole") == "done"
    assert train(config, tmp_path / "parts", stop_event=StopAfter(5)) == "preempted"
    assert train(config, tmp_path / "parts") == "done"
    ends = [
        (
            results.result(config, tmp_path / part),
            linearization.read(tmp_path / part / config.run_id),
        )
        for part in ("whole", "parts")
    ]
    assert ends[0] == ends[1]
    plain = student("lolcats")
    assert plain.run_id != config.run_id


@pytest.mark.parametrize("option", ["window_dropout=0.3", "far_error=1"])
def test_methods_without_a_window_refuse_it(student: Any, option: str) -> None:
    with pytest.raises(ConfigError, match=f"linearize.{option.split('=')[0]}=.*no window"):
        student("supra", f"linearize.{option}")
    with pytest.raises(ConfigError, match="at least 0"):
        student("lolcats", f"linearize.{option.split('=')[0]}=-1")


def test_the_error_of_the_residual_stream(student: Any) -> None:
    """Its cost by hand: the student's output projections, forward and to their inputs."""
    plain = student("lolcats")
    config = student("lolcats", "linearize.transfer_error=residual")
    assert plain.run_id != config.run_id
    model = config.model
    projections = model.layers * 2 * 2 * model.dim * model.heads * model.head_dim
    assert costs.transfer(config) - costs.transfer(plain) == pytest.approx(projections)
    with pytest.raises(ConfigError, match="transfer_error='residual': must be heads without"):
        student("supra", "linearize.transfer_error=residual")
