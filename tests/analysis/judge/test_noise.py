"""Noise of repeats, and what several targets of a run share, from worlds with known parts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.fit.fitting import fit_law
from analysis.judge.noise import in_common, repeats
from tests.support.worlds import loss_of

SEED, EVALUATION = 0.006, 0.003


def _world(seeds: int = 4) -> pd.DataFrame:
    """Two targets of the same runs: a seed's noise in both, an evaluation's in each."""
    rng = np.random.default_rng(0)
    grid = [
        (n, n * r) for n in np.geomspace(1e7, 1e9, 5) for r in (5, 20, 80) for _ in range(seeds)
    ]
    n, d = np.array(grid).T
    shared = SEED * rng.standard_normal(len(n))
    frame = pd.DataFrame({"run_id": [f"r{i}" for i in range(len(n))], "n_params": n, "tokens": d})
    for name, scale in (("c4", 1.0), ("wiki", 0.9)):
        own = EVALUATION * rng.standard_normal(len(n))
        frame[name] = scale * loss_of(n, d) * np.exp(shared + own)
    return frame


def test_repeats_by_hand() -> None:
    points = pd.DataFrame(
        {
            "n_params": [1e7, 1e7, 1e7, 1e8, 1e8],
            "tokens": 1e9,
            "run_id": list("abcde"),
            "loss": np.exp([1.0, 1.01, 1.02, 0.9, 0.92]),
        }
    )
    noise = repeats(points)
    assert noise is not None
    # Squares about the means: 2e-4 of the three, 2e-4 of the two; 5 rows less 2 cells.
    assert noise.total == pytest.approx(np.sqrt(4e-4 / 3))
    assert noise.freedom == 3
    # chi-squared with 3 degrees of freedom: 0.3518 and 7.8147 at 5 % and 95 %
    assert (noise.lo, noise.hi) == pytest.approx(
        (noise.total * np.sqrt(3 / 7.8147), noise.total * np.sqrt(3 / 0.3518)), rel=1e-4
    )
    points["loss_stderr"] = 0.005 * points["loss"]
    split = repeats(points)
    assert split is not None
    assert split.evaluation == pytest.approx(0.005)
    assert split.seed == pytest.approx(np.sqrt(4e-4 / 3 - 2.5e-5))


def test_noise_of_a_common_text_is_no_part_of_the_scatter() -> None:
    """Half a percent between seeds, beside an evaluation whose text alone is worth two."""
    rng = np.random.default_rng(0)
    n = np.repeat(np.geomspace(1e7, 1e9, 6), 5)
    points = pd.DataFrame({"run_id": [f"r{i}" for i in range(30)], "n_params": n, "tokens": 1e9})
    points["loss"] = 1.02 * loss_of(n, 1e9) * np.exp(0.005 * rng.standard_normal(30))
    points["loss_stderr"] = 0.02 * points["loss"]
    found = repeats(points)
    assert found is not None
    assert found.seed == found.total == pytest.approx(0.005, rel=0.35)
    assert "which is more: they must have been evaluated on one text" in found.describe()
    points["loss_stderr"] = 0.004 * points["loss"]
    told = repeats(points, one_text=True)
    assert told is not None
    assert told.seed == told.total
    assert "would move all by 0.40%" in told.describe()


def test_known_parts_come_back() -> None:
    points = _world().rename(columns={"c4": "loss"})
    noise = repeats(points)
    assert noise is not None
    assert noise.lo < np.hypot(SEED, EVALUATION) < noise.hi
    assert repeats(points.drop_duplicates(["n_params", "tokens"])) is None


def test_checkpoints_of_a_run_are_no_repeats() -> None:
    points = _world(1).rename(columns={"c4": "loss"})
    assert repeats(pd.concat([points, points], ignore_index=True)) is None


def test_targets_share_the_seeds_noise() -> None:
    data = _world()
    fits = {name: fit_law("chinchilla", data, loss=name) for name in ("c4", "wiki")}
    common = in_common(fits)
    assert common is not None
    assert common.common == pytest.approx(SEED, rel=0.25)  # 60 runs: 10 % of standard error
    assert common.own == pytest.approx({"c4": EVALUATION, "wiki": EVALUATION}, rel=0.3)
    assert in_common({"c4": fits["c4"]}) is None


def test_command(tmp_path: Path) -> None:
    _world(2).rename(columns={"run_id": "run"}).to_csv(tmp_path / "t.csv", index=False)
    arguments = ["fit", str(tmp_path / "t.csv"), "--loss", "c4, wiki", "--bootstrap", "20"]
    done = CliRunner().invoke(app, arguments)
    shown = " ".join(done.output.split())
    assert done.exit_code == 0, shown
    assert "c4: L = E" in shown
    assert "wiki: L = E" in shown
    assert "noise: runs of one N and D differ by" in shown
    assert "is common to the targets of a run" in shown
    assert "compared with" not in shown
    record = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert set(record["fits"]) == {"c4", "wiki"}
    assert record["targets"]["all"]["common"] == pytest.approx(SEED, rel=0.4)
    twice = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), "--loss", "c4,c4"])
    assert twice.exit_code == 2
