"""What every command that prints a table prints at 80 and at 200 columns, on kept records.

The expected outputs lie in `snapshots/`, a file for each width. Where a fit has found the numbers,
they hold the heads of the tables and what was left out alone: machines differ in the last digits.
LINSCALE_WRITE_SNAPSHOTS=1 writes them anew, to be read before they are committed.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from linscale.terminal import console
from scaling.cli.evaluate import show
from scaling.cli.linearization_tables import show_linearization
from scaling.cli.main import app
from scaling.config.run import DataConfig
from scaling.data.prepare import prepare

ROOT = Path(__file__).resolve().parents[3]
RESULTS = ROOT / "experiments" / "results"
SNAPSHOTS = Path(__file__).parent / "snapshots"
QUICKSTART, LADDER = RESULTS / "quickstart.zip", RESULTS / "small_ladder.zip"

COMMANDS: dict[str, tuple[list[Any], bool]] = {
    "status": (["status", LADDER, "--only", "arch=llama|tnl"], True),
    "status_linearized": (["status", RESULTS / "linearize_loop.zip", "--only", "size=d24"], True),
    "plan": (["plan", "paper_ladder", "--device", "h200"], True),
    "plan_law": (["plan", "paper_ladder", "--device", "h200", "--law", "deepseek"], True),
    "plan_refine": (
        ["plan", "small_ladder", "--refine", QUICKSTART, "--only", "arch=hgrn2"], False,
    ),
    "fit": (["fit", QUICKSTART, "--bootstrap", "50", "--approaches", "--full"], False),
    "forecast": (["forecast", QUICKSTART, "--at", "N=1e6,D=1e7", "--at", "C=1e13"], False),
    "inference": (["inference", LADDER, "--loss", "1.5", "--demand", "1e9", "--bootstrap", "20"],
                  False),
    "tables": (["tables", QUICKSTART], True),
}  # fmt: skip
"""Name -> words, and whether its numbers come from the record alone."""

RULE = "======== "
SLOW = ("fit", "forecast", "plan_refine")


def printed(words: list[Any], width: int) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": str(width)})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.stderr
    return result.stdout


def read_snapshots(path: Path) -> dict[str, str]:
    """The outputs of a file by name, each under a line with its name."""
    parts = re.split(rf"^{RULE}(\w+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check(name: str, width: int, text: str, *, exact: bool) -> None:
    """Compares with the snapshot; no line is longer than the terminal, and nothing is cut."""
    text = "\n".join(line.rstrip() for line in text.replace(str(ROOT), "").splitlines()) + "\n"
    for line in text.splitlines():
        assert len(line) <= width, line
        assert not re.search(r"\S…", line), line  # an interval has a space before its dots
    path = SNAPSHOTS / f"{width}.txt"
    found = text if exact else "\n".join(titles(text)) + "\n"
    kept = read_snapshots(path)
    if os.environ.get("LINSCALE_WRITE_SNAPSHOTS"):
        kept[name] = found
        path.write_text("".join(f"{RULE}{n}\n{kept[n]}" for n in sorted(kept)), encoding="utf-8")
    assert found == kept[name]


def titles(text: str) -> list[str]:
    """The words of the lines above each rule: which columns a table has, and what was left out."""
    lines = text.splitlines()
    heads = [lines[i - 1].split() for i, line in enumerate(lines) if line.startswith("──")]
    said = re.findall(r"Left out at [^.]*\.", " ".join(text.split()))
    return [" ".join(head) for head in heads] + said


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in COMMANDS],
)
def test_command(name: str, width: int) -> None:
    words, exact = COMMANDS[name]
    check(name, width, printed(words, width), exact=exact)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("records")
    for name in ("linearize_loop", "context_length-toy"):
        with zipfile.ZipFile(RESULTS / f"{name}.zip") as file:
            file.extractall(root)
    return root


@pytest.mark.parametrize("width", [80, 200])
def test_data(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus that was mended since, so that one of its preparations is an orphan."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    data = DataConfig(
        corpus="text:a_corpus_with_a_long_name.txt", sequence_length=16, validation_fraction=0.3
    )
    for word in ("first", "second"):
        lines = (f"{word} text, line {number}\n" for number in range(20_000))
        Path("a_corpus_with_a_long_name.txt").write_text("".join(lines))
        prepare(data)
    for name in ("list", "verify"):
        check(f"data_{name}", width, printed(["data", name], width), exact=True)


@pytest.mark.parametrize("width", [80, 200])
def test_linearize(
    unpacked: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of `linscale linearize` for a run that was kept."""
    monkeypatch.setenv("COLUMNS", str(width))
    (run,) = (unpacked / "linearize_loop").glob("lolcats-d24-s1-400k-*")
    show_linearization(run, [], False)
    text = capsys.readouterr().out.replace(str(unpacked), "RECORDS")
    check("linearize", width, text.replace("RECORDS/", ""), exact=True)


@pytest.mark.parametrize("width", [80, 200])
def test_evaluate(
    unpacked: Path, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line a run, not a line a number, of a sweep with 9 tasks and several milestones."""
    monkeypatch.setenv("COLUMNS", str(width))
    lines = [
        {"run": file.parent.name, "seed": 0, **json.loads(line)}
        for file in sorted((unpacked / "context_length-toy").glob("*/evals.jsonl"))
        for line in file.read_text().splitlines()
    ]
    show(lines, full=False)
    text = capsys.readouterr().out
    assert len(text.splitlines()) < len(lines) / 3
    check("evaluate", width, text, exact=True)


@pytest.mark.parametrize("width", [80, 200])
def test_forecast_score(tmp_path: Path, width: int) -> None:
    """A public forecast and what came of it: 2.269 was said of 1.19e23 FLOPs, 2.256 measured."""
    table, seal = tmp_path / "anchors.csv", tmp_path / "seal.json"
    table.write_text("flops,loss\n2.00e19,3.2373\n1.31e20,2.9538\n7.16e20,2.7515\n")
    printed(["forecast", table, "--at", "C=1.19e23", "--fix", "E=1.4", "-o", seal], width)
    table.write_text(table.read_text() + "1.19e23,2.256\n")
    text = printed(["forecast", "--score", seal, table], width).replace(f"{tmp_path}/", "")
    (line,) = [line for line in text.splitlines() if line.startswith("C=1.19e+23")]
    assert line.split()[2] == "2.269"
    assert line.split()[4:] == ["2.256", "+0.59%", "yes/yes"]
    check("forecast_score", width, text, exact=False)


def test_a_pipe_gets_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody looks nothing is left out, and COLUMNS has the last word."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width > 1000
    text = CliRunner().invoke(app, ["plan", "paper_ladder", "--device", "h200"]).stdout
    assert "Left out" not in text
    assert "FLOPs/token" in text
    monkeypatch.setenv("COLUMNS", "80")
    assert console().width == 80
