"""The cache of parsed logs: the same tables, only sooner, and never a stale line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from analysis.io import metrics_cache
from analysis.io.records import load_sweep
from tests.support.make_runs import Problem, write_sweep


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(metrics_cache, "WORTH", 10)
    return write_sweep(
        tmp_path / "s", archs=("llama", "tnl"), dims=(32, 64), log_lines=20,
        problems={"tnl-d32-s0": Problem(torn=True)},
    )  # fmt: skip


def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs whose log is parsed from now on."""
    seen: list[str] = []
    real = metrics_cache.read_columns

    def read(path: Path, **options: tuple[str, ...]) -> object:
        seen.append(path.parent.name)
        return real(path, **options)

    monkeypatch.setattr(metrics_cache, "read_columns", read)
    return seen


def test_second_reading_parses_nothing_and_is_the_same(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_sweep(sweep)
    assert (sweep / metrics_cache.FILE).is_file()
    seen = parsed(monkeypatch)
    again = load_sweep(sweep)
    assert seen == []
    pd.testing.assert_frame_equal(first.curves, again.curves)
    pd.testing.assert_frame_equal(first.runs, again.runs)
    assert first.notes == again.notes != []


def test_only_the_run_that_changed_is_parsed(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_sweep(sweep)
    run = next(sweep.glob("llama-d64*"))
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + text.splitlines()[-1] + "\n")
    seen = parsed(monkeypatch)
    assert len(load_sweep(sweep).curves) == len(first.curves) + 1
    assert seen == [run.name]
    assert len(load_sweep(sweep).curves) == len(first.curves) + 1
    assert seen == [run.name]


def test_a_torn_cache_is_ignored_and_replaced(sweep: Path) -> None:
    first = load_sweep(sweep)
    cache = sweep / metrics_cache.FILE
    cache.write_bytes(cache.read_bytes()[:100])
    pd.testing.assert_frame_equal(first.curves, load_sweep(sweep).curves)
    assert cache.stat().st_size > 100
    assert not list(sweep.glob(f"{metrics_cache.FILE}.*"))


def test_small_sweeps_have_no_cache(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", archs=("llama",), dims=(32,), log_lines=20)
    load_sweep(root)
    assert not (root / metrics_cache.FILE).exists()
