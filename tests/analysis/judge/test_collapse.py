"""Curves of one recipe collapse; a run that was badly tuned does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.judge.collapse import collapse
from tests.support.worlds import loss_of


def _curves(unwell: str = "") -> pd.DataFrame:
    """Sizes at 20 tokens per parameter; the run that is unwell stays high until its last tenth."""
    rng = np.random.default_rng(0)
    parts = []
    for i, n in enumerate(np.geomspace(1e7, 1e9, 9)):
        d = 20 * n * np.linspace(0.05, 1, 20)
        loss = loss_of(n, d) * np.exp(0.001 * rng.standard_normal(20))
        run = f"r{i}"
        if run == unwell:
            loss = loss + 0.4 * (d < 0.9 * d[-1])
        parts.append(pd.DataFrame({"run_id": run, "n_params": n, "tokens": d, "loss": loss}))
    return pd.concat(parts, ignore_index=True)


def test_one_shape_of_one_law() -> None:
    found = collapse(_curves(), 1.69)
    assert found is not None
    assert found.apart == []
    # By hand: (A + B s^-beta) / (A + B) at s = 1/2, whose weights change with N alone.
    n = np.array([1e7, 1e9])
    a, b = 406.4 / n**0.34, 410.7 / (20 * n) ** 0.28
    shape = np.log((a + b * 0.5**-0.28) / (a + b))
    assert max(found.distance.values()) < np.ptp(shape) + 0.02


@pytest.mark.parametrize("run", ["r0", "r5"])
def test_a_run_that_is_unwell_is_named(run: str) -> None:
    found = collapse(_curves(run), 1.69)
    assert found is not None
    assert found.apart == [run]
    assert f"look at these: {run}" in found.describe()


def test_tables_of_ends_and_few_curves_have_none() -> None:
    ends = _curves().drop_duplicates("run_id", keep="last")
    assert collapse(ends, 1.69) is None
    few = _curves()
    assert collapse(few[few["run_id"].isin(["r0", "r1", "r2"])], 1.69) is None


def test_command(tmp_path: Path) -> None:
    _curves("r5").to_csv(tmp_path / "t.csv", index=False)
    done = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), "--bootstrap", "0"])
    assert done.exit_code == 0, done.output
    shown = " ".join(done.output.split())
    assert "curves: 9 runs collapse onto one shape" in shown
    assert "look at these: r5" in shown
