"""One bad file never takes a sweep down: the run is shown as bad, and the rest goes on.

The fuzz test damages one file of a sweep in ways that were seen on disks (flipped bits, cut and
repeated text) and in ways that only people do (other types, huge and absent values, hostile texts).
"""

from __future__ import annotations

import html
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from analysis.cli.fit import fit
from analysis.errors import AnalysisError
from analysis.figures import style
from analysis.fit.law_fit import LawFit
from analysis.io.evals import load_evals
from analysis.io.frames import where
from analysis.io.jsonlines import read_columns, read_records
from analysis.io.looks import Look, learn, look
from analysis.io.records import load_sweep
from analysis.report.paper_tables import PaperTable
from analysis.report.run_pages import write_runs
from linscale.json_reader import BadRecord, parse_object
from linscale.texts import clean
from scaling.sweep.status import status_rows, status_table
from tests.support.damage import KINDS, damage
from tests.support.make_runs import write_sweep

FILES = ("config.json", "accounting.json", "environment.json", "status.json", "metrics.jsonl",
         "milestones.jsonl", "evals.jsonl")  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 10**400, 1e308, math.nan, math.inf, -0.5, "", "x", "12",
    "../../etc", "\x1b]0;x\x07", "$\\frac{", "[/bold]", "[x](//a.html)", "\ud800", [], [1, [2]], {},
    {"a": {"b": {}}}, "9" * 5000,
)  # fmt: skip
HOSTILE = "$x_{ [/red] \x1b[31m<script> **b** [l](//evil.html) \\input{x} | \u202e"


@pytest.fixture(scope="module")
def clean_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean") / "demo"
    return write_sweep(
        root, archs=("tnl",), dims=(32, 64, 96, 128), seeds=(0,), log_lines=6, tasks=True
    )


@contextmanager
def damaged(root: Path, name: str, rng: np.random.Generator) -> Iterator[str]:
    """One file of one run damaged; yields the run."""
    run = sorted(p.name for p in root.iterdir() if p.is_dir())[1]
    path = root / run / name
    before = path.read_bytes()
    path.write_bytes(hurt(before, name, rng))
    try:
        yield run
    finally:
        path.write_bytes(before)


def hurt(data: bytes, name: str, rng: np.random.Generator) -> bytes:
    kind = rng.integers(6)
    at = int(rng.integers(len(data)))
    if kind < KINDS:
        return damage(data, int(kind), at, rng)
    if kind == 3:
        return (b"", b"null", b"[]", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe{}")[
            int(rng.integers(6))
        ]
    lines = data.decode().splitlines() if name.endswith("l") else [data.decode()]
    which = int(rng.integers(len(lines)))
    record = json.loads(lines[which])
    place(record, VALUES[int(rng.integers(len(VALUES)))], rng)
    lines[which] = json.dumps(record)
    return "\n".join(lines).encode() + b"\n"


def place(record: dict[str, Any], value: Any, rng: np.random.Generator) -> None:
    """One field, at any depth, gets another value or goes."""
    here = record
    while True:
        names = list(here)
        name = names[int(rng.integers(len(names)))]
        if isinstance(here[name], dict) and here[name] and rng.random() < 0.8:
            here = here[name]
            continue
        if rng.random() < 0.2:
            del here[name]
        else:
            here[name] = value
        return


def use(root: Path, run: str, out: Path, *, draws: bool = True) -> None:
    """What `status`, `fit` and `report` do with the records, but for the other runs' drawing."""
    rows = status_rows(root)
    assert len(rows) == 4
    printed = io.StringIO()
    Console(width=80, file=printed).print(status_table(root, rows))
    assert "\x1b" not in printed.getvalue()
    sweep = load_sweep(root)
    others = sweep.points[sweep.points["run_id"] != run]
    assert len(others) == 12
    assert np.isfinite(sweep.points[["n_params", "tokens", "flops", "loss"]].to_numpy()).all()
    load_evals(root, sweep)
    if not draws:
        return
    own = {k: where(getattr(sweep, k), run_id=run) for k in ("runs", "exclusions")}
    write_runs(replace(sweep, **own), root, out, lambda _: None)


def fuzz(root: Path, out: Path, rounds: int, seed: int, *, each_drawn: int = 1) -> None:
    """So many rounds; in one of `each_drawn` of them the run's page is drawn, too."""
    rng = np.random.default_rng(seed)
    for number in range(rounds):
        name = FILES[number % len(FILES)]
        state = rng.bit_generator.state
        with damaged(root, name, rng) as run:
            try:
                use(root, run, out, draws=number % each_drawn == 0)
            except Exception as error:
                error.add_note(f"round {number}, {name}, generator {state}")
                raise


def test_one_bad_file_never_raises(clean_sweep: Path, tmp_path: Path) -> None:
    fuzz(clean_sweep, tmp_path, rounds=42, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_many_bad_files_never_raise(clean_sweep: Path, tmp_path: Path, seed: int) -> None:
    root = shutil.copytree(clean_sweep, tmp_path / "demo")
    fuzz(root, tmp_path / "out", rounds=5000, seed=100 + seed, each_drawn=5)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("config.json", lambda c: c["model"].update(dim=10**30), "model: dim is 10000"),
        ("config.json", lambda c: c["model"].update(dim="wide"), "dim is 'wide', not a whole"),
        ("config.json", lambda c: c.update(seed=-1), "seed is -1, not a whole number from 0"),
        ("config.json", lambda c: c.update(model=[]), "config.json: model is [], not an object"),
        ("config.json", lambda c: c["optim"].pop("lr"), "optim: the field lr is missing"),
        ("accounting.json", lambda c: c.update(n_total=math.inf), "n_total is inf"),
        ("accounting.json", lambda c: c.update(stages={"transfer_tokens": 1}), "stages: the field"),
        ("status.json", lambda c: c.update(state=3), "status.json: state is 3, not a text"),
    ],
)  # fmt: skip
def test_a_bad_run_says_which_file_and_why(
    clean_sweep: Path, tmp_path: Path, name: str, change: Callable[[Any], Any], reason: str
) -> None:
    root = shutil.copytree(clean_sweep, tmp_path / "demo")
    run = sorted(p.name for p in root.iterdir() if p.is_dir())[0]
    record = json.loads((root / run / name).read_text())
    change(record)
    (root / run / name).write_text(json.dumps(record))
    sweep = load_sweep(root)
    assert sweep.exclusions["run_id"].tolist() == [run]
    assert reason in sweep.exclusions["reason"][0]
    assert len(set(sweep.points["run_id"])) == 3


def test_a_damaged_environment_costs_no_points(clean_sweep: Path, tmp_path: Path) -> None:
    root = shutil.copytree(clean_sweep, tmp_path / "demo")
    run = sorted(p.name for p in root.iterdir() if p.is_dir())[0]
    (root / run / "environment.json").write_text('{"device": 3}')
    sweep = load_sweep(root)
    assert len(set(sweep.points["run_id"])) == 4
    assert sweep.notes == [f"{run}: environment.json: device is 3, not a text; read without it"]


def test_names_in_a_sweep_are_never_paths(clean_sweep: Path, tmp_path: Path) -> None:
    root = shutil.copytree(clean_sweep, tmp_path / "deep" / "demo")
    shutil.copytree(next(p for p in root.iterdir() if p.is_dir()), tmp_path / "stranger")
    plan = json.loads((root / "sweep.json").read_text())
    names = ["../../stranger", str(tmp_path / "stranger"), "..", "a/b"]
    (root / "sweep.json").write_text(json.dumps(plan | {"runs": [*plan["runs"], *names]}))
    sweep = load_sweep(root)
    assert len(sweep.runs) == 4
    assert len(sweep.exclusions) == 4
    assert sweep.exclusions["reason"].str.contains("no name of a folder").all()
    rows = status_rows(root)
    assert [row["state"] for row in rows].count("unreadable") == 4
    assert len(rows) == 8


def test_texts_are_never_markup(clean_sweep: Path, tmp_path: Path) -> None:
    """A size, an architecture and a reason full of markup come out as what they are."""
    root = shutil.copytree(clean_sweep, tmp_path / "demo")
    for path in root.glob("*/config.json"):
        config = json.loads(path.read_text())
        config["model"]["arch"] = HOSTILE
        path.write_text(json.dumps(config | {"size": HOSTILE + config["size"]}))
    sweep = load_sweep(root)
    write_runs(sweep, root, tmp_path, lambda _: None)
    page = next((tmp_path / "runs").glob("*.html")).read_text("utf-8")
    assert "[l](//evil.html)" in page
    forbidden = ("\x1b", "\u202e", "<script> **", 'href="//', "<strong>b</strong>")
    assert not [text for text in forbidden if text in page]
    assert clean(HOSTILE) in html.unescape(page)


def test_looks_from_a_record_are_checked() -> None:
    """A colour goes into the style of a page, and what matplotlib does not know would raise."""
    for colour, marker in (("red;background:url(//x)", "banana"), (3, ["o"]), ("#12", "$x$")):
        learn("fuzzed", {"label": HOSTILE, "colour": colour, "marker": marker})
        found = look("fuzzed")
        assert (found.color, found.marker) == (look("other").color, look("other").marker)
        assert found.label == clean(HOSTILE)
    learn("fuzzed", {"label": "Fuzzed", "colour": "#A1b2C3", "marker": "s"})
    assert look("fuzzed") == Look("Fuzzed", "#A1b2C3", "s")


def test_names_in_figures_are_no_mathematics(tmp_path: Path) -> None:
    figure, axes = style.panels(1, 1, width=12, height=3)
    axes[0, 0].plot([1, 10], [1, 10], label=HOSTILE.replace("\x1b", "").replace("\u202e", "") + "$")
    axes[0, 0].set(title="$\\frac{", xlabel="a$^{2}$", xscale="log")
    axes[0, 0].legend()
    style.save(style.finish(figure), tmp_path / "figure", title="t", caption="$\\frac{")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_cells_of_paper_tables_are_no_markup() -> None:
    import pandas as pd

    table = PaperTable(4, "t", pd.DataFrame({"a": ["x|y", "_i_"], "b": ["\\input{x}", "$&^~"],
                                             "c": ["<b>", "[l](u)"]}), [])  # fmt: skip
    assert "| x\\|y | \\\\input{x} | \\<b\\> |" in table.markdown()
    assert "| \\_i\\_ | $&^\\~ | \\[l\\](u) |" in table.markdown()
    tex = table.latex()
    assert r"\textbackslash{}input\{x\}" in tex
    assert r"\$\&\textasciicircum{}\textasciitilde{}" in tex


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"), (b"\xff", "not UTF-8 text"), (b"{", "not JSON"),
        (b"[1]", "holds a list"), (b'{"a":' * 60 + b"1" + b"}" * 60, "nested"),
        (b"[" * 100_000, "nested too deeply|not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"), (b"\xef\xbb\xbfnull", "holds null"),
    ],
)  # fmt: skip
def test_what_is_no_object_is_named(text: bytes, message: str) -> None:
    with pytest.raises(BadRecord, match=message):
        parse_object(text, "x.json")
    with pytest.raises(AnalysisError):
        LawFit.from_json(text.decode("latin-1"))


def test_lines_are_read_one_by_one(tmp_path: Path) -> None:
    """Two objects on a line, and one object on two, are no records."""
    path = tmp_path / "m.jsonl"
    for text, good in (('{"a":1},{"a":2}\n{"a":3}\n', [3.0]), ('{"a":1\n"b":2}\n{"a":3}\n', [3.0]),
                       ('{"a":1}{"a":2}\n{"a":3}\n', [3.0])):  # fmt: skip
        path.write_text(text)
        assert [r["a"] for r in read_records(path)[0]] == good
        columns, _ = read_columns(path, numbers=("a",), words=())
        assert columns["a"].tolist() == good


def test_bytes_that_are_no_utf8_in_a_log(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"a":1,"split":"tr\xff"}\n{"a":2,"split":"train"}\n')
    columns, torn = read_columns(path, numbers=("a",), words=("split",))
    assert columns["a"].tolist() == [1.0, 2.0]
    assert columns["split"].tolist() == ["tr\ufffd", "train"]
    assert torn == 0


def test_a_fit_names_the_bad_run(
    clean_sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(clean_sweep, tmp_path / "demo")
    run = sorted(p.name for p in root.iterdir() if p.is_dir())[0]
    (root / run / "config.json").write_text("{")
    fit(root, bootstrap=0)
    assert f"left out: {run}: config.json is not JSON" in " ".join(capsys.readouterr().out.split())
