"""Rows of several kinds under one law: the column that tells them apart is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.fit.fitting import fit_law
from analysis.io.tables import load_table
from analysis.judge.mixed_rows import rows_differ
from tests.support.worlds import suite


def _file(folder: Path, apart: float) -> Path:
    """Two data sets whose losses differ by a factor, sizes in words, and a coin without meaning."""
    first = suite(sizes=6, noise=2e-3)
    second = suite(sizes=6, noise=2e-3).assign(loss=lambda t: t["loss"] * np.exp(apart))
    data = pd.concat([first.assign(corpus="web"), second.assign(corpus="books")])
    sizes = data["n_params"].astype(float)
    data["width"] = np.where(sizes > sizes.median(), "wide", "narrow")
    data["coin"] = np.random.default_rng(0).choice(["head", "tail"], len(data))
    columns = ["n_params", "tokens", "loss", "corpus", "width", "coin"]
    data[columns].to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_the_column_that_explains_the_residuals_is_named(tmp_path: Path) -> None:
    points = load_table(_file(tmp_path, 0.1)).points
    (warning,) = rows_differ(fit_law("chinchilla", points, objective="least_squares"), points)
    assert warning.data["column"] == "corpus"
    assert warning.data["explained"] > 0.8
    # Two equal halves e^0.1 apart lie e^0.05 above and below what fits both.
    assert "web -4.9%" in warning.message
    assert "books +5.1%" in warning.message
    assert "--group 'corpus'" in warning.message


def test_rows_of_one_kind_say_nothing(tmp_path: Path) -> None:
    points = load_table(_file(tmp_path, 0.0)).points
    assert rows_differ(fit_law("chinchilla", points), points) == []
    assert rows_differ(fit_law("chinchilla", points), points.copy()) == []


def test_the_command_says_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["fit", str(_file(tmp_path, 0.1)), "--bootstrap", "0"])
    assert "[rows_differ] Rows differ by 'corpus'" in " ".join(done.output.split())


def test_told_apart_they_say_nothing(tmp_path: Path) -> None:
    points = load_table(_file(tmp_path, 0.1), group="corpus").points
    web = points[points["arch"] == "web"]
    assert rows_differ(fit_law("chinchilla", web), web) == []
