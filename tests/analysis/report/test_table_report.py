"""A report of anybody's table: page, tables and figures, with what the table says and no more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.cli.commands import app
from tests.support.worlds import suite


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    laws = {"mine": None, "theirs": {"E": 1.69, "A": 480.0, "alpha": 0.34, "B": 410.7,
                                     "beta": 0.28}}  # fmt: skip
    frame = pd.concat([suite(noise=0.002, seed=k, arch=name, law=law)
                       for k, (name, law) in enumerate(laws.items())])  # fmt: skip
    frame = frame.drop(columns=["flops", "size"]).rename(columns={"n_params": "N", "tokens": "D"})
    frame["state"] = ["failed", *["finished"] * (len(frame) - 1)]
    frame.to_csv(folder / "results.csv", index=False)
    done = CliRunner().invoke(
        app, ["report", str(folder / "results.csv"), "--bootstrap", "100", "--baseline", "theirs"]
    )
    assert done.exit_code == 0, done.output
    return folder / "results-report"


def test_laws_are_those_of_the_table(report: Path) -> None:
    record = json.loads((report / "fits.json").read_text())
    assert set(record["laws"]) == {"mine", "theirs"}
    assert record["laws"]["theirs"]["parameters"]["alpha"] == pytest.approx(0.34, abs=0.05)
    points = pd.read_csv(report / "tables" / "points.csv")
    assert len(points) == 49
    np.testing.assert_allclose(points["flops"], 6 * points["n_params"] * points["tokens"])
    excluded = pd.read_csv(report / "tables" / "exclusions.csv")
    assert excluded["reason"].tolist() == ["state is failed"]


def test_the_page_says_which_compute_and_invents_no_records(report: Path) -> None:
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "C = 6 N D (assumed)" in page
    assert "The table does not say how its runs were tuned" in page
    assert "Throughput" not in page
    assert "experiment file" not in page
    drawn = {path.stem for path in (report / "figures").glob("*.png")}
    assert {"frontier", "multipliers", "contours", "optimum", "residuals", "rolling"} <= drawn
    assert not drawn & {"learning_curves", "collapse", "throughput"}


@pytest.mark.slow
def test_one_group_has_nothing_to_compare(tmp_path: Path) -> None:
    suite(noise=0.002).drop(columns=["arch"], errors="ignore").to_csv(tmp_path / "t.csv")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "t.csv"), "--bootstrap", "100"])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "t-report" / "index.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", page)
    assert {"Loss against compute", "Laws", "Checks"} <= set(headings)
    assert "Comparison" not in headings


def test_without_n_and_d_it_is_refused_by_option(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("C,loss\n1e18,3\n1e19,2.8\n1e20,2.6\n")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "t.csv")])
    assert done.exit_code == 2
    assert "has no N (--params) and no D (--tokens)" in " ".join(done.output.split())
