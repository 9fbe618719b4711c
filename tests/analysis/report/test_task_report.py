"""Figures and tables of a sweep's evaluations, from records to files and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from analysis.cli.tables import app
from analysis.errors import AnalysisError
from analysis.figures.evaluations import needles, tasks_compute
from analysis.io.records import load_sweep
from analysis.report.page import Page
from analysis.report.task_report import add_to, evaluations
from tests.support.make_runs import write_sweep

CELLS = {"lengths": [1000, 2000, 4000], "depths": [0, 1], "scores": [[1, 1, 0], [1, 0, 0]]}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = write_sweep(
        tmp_path_factory.mktemp("runs") / "s",
        archs=("llama", "tnl"),
        dims=(32, 96),
        fractions=(0.25, 1.0),
        log_lines=20,
        tasks=True,
    )
    for path in root.glob("*/evals.jsonl"):
        last = json.loads(path.read_text().splitlines()[-1])
        for metric, extra in (("weighted_accuracy", {}), ("accuracy", {"grid": CELLS})):
            line = last | {"task": "needle", "metric": metric, "value": 0.5, "stderr": None} | extra
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return root


@pytest.fixture(scope="module")
def found(directory):
    return evaluations(directory, load_sweep(directory))


def test_everything_that_was_evaluated(found, tmp_path):
    assert [table.number for table in found.tables] == [4, 11]
    assert list(found.figures) == ["tasks", "accuracy_loss", "needle_grid"]
    assert len(found.failures) == 1  # boolq is at chance everywhere
    assert found.failures[0].startswith("boolq: no fit")
    written = found.save(tmp_path)
    assert {path.name for path in written} == {
        *(f"table{n}.{kind}" for n in (4, 11) for kind in ("md", "tex", "csv")),
        *(f"{name}.{kind}" for name in found.figures for kind in ("png", "pdf")),
    }
    assert all(path.stat().st_size > 0 for path in written)
    panels = [axes.get_title() or axes.get_title(loc="left") for axes in
              found.figures["needle_grid"][0].axes]  # fmt: skip
    assert panels[:2] == ["LLaMA d32", "TNL d32"]  # small models first
    page = Page("t")
    add_to(page, found, "evaluations", ("png",))
    html = page.render()
    assert "Table 11 of arXiv 2406.16690" in html
    assert "<code>evaluations/needle_grid.png</code>" in html


def test_heat_map_shows_the_cells():
    figure = needles([("TNL 1B", "tnl", CELLS)])
    (image,) = figure.axes[0].get_images()
    np.testing.assert_array_equal(image.get_array(), CELLS["scores"])
    figure.canvas.draw()
    labels = [text.get_text() for text in figure.axes[0].get_xticklabels()]
    assert [label for label in labels if label] == ["1,000", "2,000", "4,000"]
    with pytest.raises(AnalysisError, match="2 x 3 scores for 1 depths and 3 lengths"):
        needles([("TNL 1B", "tnl", CELLS | {"depths": [0]})])
    with pytest.raises(AnalysisError, match="no needle grid"):
        needles([])


def test_tasks_by_compute_without_errors_of_measurement(found):
    own = found.evals[found.evals["task"] == "needle"].assign(stderr=float("nan"))
    figure = tasks_compute(own, chance={})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["needle"]


def test_the_command(directory, tmp_path, monkeypatch):
    run = CliRunner().invoke
    saved: list[Path] = []
    monkeypatch.setattr(
        "analysis.report.task_report.Evaluations.save", lambda _, out: saved.append(out) or [out]
    )
    done = run(app, [str(directory), "--number", "4", "--format", "csv", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("size,arch,BoolQ,PIQA")
    assert saved == [tmp_path]
    shown = run(app, [str(directory)])
    assert "Table 4" in shown.stdout
    assert "Table 11" in shown.stdout
    for arguments, words in (
        (["--number", "8"], "table 8 would be empty"),
        (["--format", "word"], "--format word: choose text, markdown, latex, csv"),
    ):
        failed = run(app, [str(directory), *arguments])
        assert failed.exit_code == 2
        assert words in " ".join(failed.output.split())


def test_a_sweep_that_was_not_evaluated(tmp_path):
    root = write_sweep(tmp_path / "s", archs=("tnl",), dims=(32,), log_lines=20)
    found = evaluations(root, load_sweep(root))
    assert (found.tables, found.figures) == ([], {})
    page = Page("t")
    add_to(page, found, "x", ("png",))
    assert page.parts == []
    failed = CliRunner().invoke(app, [str(root)])
    assert failed.exit_code == 2
    assert "nothing has been evaluated" in " ".join(failed.output.split())
