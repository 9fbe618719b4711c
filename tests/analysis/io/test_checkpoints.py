"""Checkpoints in the middle of a schedule are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.io.tables import load_table


def _log(penalty: float) -> pd.DataFrame:
    """25 runs logged at 20 points each under a cosine; `penalty` is what the full rate costs."""
    rng = np.random.default_rng(0)
    parts: list[pd.DataFrame] = []
    for i, (n, ratio) in enumerate((n, r) for n in np.geomspace(1e7, 1e9, 5)
                                   for r in (5, 10, 20, 40, 80)):  # fmt: skip
        done = np.linspace(0.05, 1, 20)
        d = n * ratio * done
        rate = 0.5 * (1 + np.cos(np.pi * done))
        loss = (1.69 + 406.4 / n**0.34 + 410.7 / d**0.28) * np.exp(0.001 * rng.standard_normal())
        loss = loss * (1 + penalty * rate)
        parts.append(pd.DataFrame({"run": f"r{i}", "N": n, "D": d, "loss": loss, "lr": rate}))
    return pd.concat(parts, ignore_index=True)


def _notes(tmp_path: Path, frame: pd.DataFrame, **options: str) -> list[str]:
    frame.to_csv(tmp_path / "t.csv", index=False)
    return load_table(tmp_path / "t.csv", **options).notes


def test_losses_above_ended_runs_show_checkpoints(tmp_path: Path) -> None:
    notes = _notes(tmp_path, _log(0.03).drop(columns="lr"))
    (warning,) = [n for n in notes if n.startswith("WARNING")]
    assert "475 of 500 rows are checkpoints before the end of their run" in warning
    assert "where a shorter run of the same size ended, longer ones were" in warning
    assert "--last-per run keeps the ends alone" in warning
    share = float(warning.split("longer ones were ")[1].split("%")[0])
    # Halfway the penalty is 1.5 %, after 1/4, 1/8 and 1/16 of a run it is 2.6, 2.9 and 3.0 %.
    assert 1.3 < share < 3.0


def test_a_column_of_rates_shows_them_too(tmp_path: Path) -> None:
    (warning,) = [n for n in _notes(tmp_path, _log(0.0)) if n.startswith("WARNING")]
    assert "at 475 of them 'lr' had not come down to its end" in warning


def test_without_evidence_it_is_no_warning(tmp_path: Path) -> None:
    notes = _notes(tmp_path, _log(0.0).drop(columns="lr"))
    assert not [n for n in notes if n.startswith("WARNING")]
    assert any(n.startswith("475 of 500 rows are checkpoints before the end") for n in notes)


def test_the_ends_alone_are_not_spoken_of(tmp_path: Path) -> None:
    assert not any("checkpoints" in n for n in _notes(tmp_path, _log(0.03), last_per="run"))


@pytest.mark.parametrize("name", ["step", ""])
def test_rows_of_runs_without_a_name_are_warned_of(tmp_path: Path, name: str) -> None:
    frame = _log(0.03).drop(columns=["run", "lr"])
    if name:
        frame[name] = np.tile(np.arange(20), 25)
    (warning,) = [n for n in _notes(tmp_path, frame) if n.startswith("WARNING")]
    assert "--runs" in warning
