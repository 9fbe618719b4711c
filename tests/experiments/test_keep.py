"""Kept records give the same points, and hold nothing of the machine."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.io.records import load_sweep
from analysis.io.sweep_files import open_sweep, unpacked
from experiments.keep import RESULTS, keep

RUN = "llama-d16-f913e15d"


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    with unpacked(RESULTS / "quickstart.zip") as folder:
        yield folder


@pytest.fixture
def sweep(source: Path, tmp_path: Path) -> Path:
    """One run as training leaves it: with a checkpoint, and the names of a machine."""
    path = tmp_path / "quickstart"
    run = path / RUN
    shutil.copytree(source / RUN, run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "model.safetensors").write_bytes(b"0" * 1000)
    for name in (run / "status.json", run / "environment.json"):
        named = json.loads(name.read_text()) | {"hostname": "box", "pid": 7, "argv": ["/home/me/x"]}
        name.write_text(json.dumps(named))
    listed = json.loads((source / "sweep.json").read_text()) | {"runs": [RUN], "argv": ["/home/me"]}
    (path / "sweep.json").write_text(json.dumps(listed))
    return path


def test_points_and_ends_of_curves_stay(sweep: Path, tmp_path: Path) -> None:
    assert keep(sweep, tmp_path / "kept.zip", every=10) == [RUN]
    before, after = load_sweep(sweep), load_sweep(tmp_path / "kept.zip")
    kept = open_sweep(tmp_path / "kept.zip") / RUN
    assert len(before.points) == 3
    assert after.points.equals(before.points)
    lines = (sweep / RUN / "metrics.jsonl").read_text().splitlines()
    left = (kept / "metrics.jsonl").read_bytes().decode().splitlines()
    assert len(left) < len(lines) / 2
    assert [x for x in lines if '"validation"' in x] == [x for x in left if '"validation"' in x]
    assert [x for x in lines if x in left] == left  # in order, none twice
    ends = {json.loads(x)["segment"]: x for x in lines if '"train"' in x}  # the last of each
    assert set(ends.values()) <= set(left)


def test_nothing_of_the_machine_stays(sweep: Path, tmp_path: Path) -> None:
    keep(sweep, tmp_path / "kept.zip", every=4)
    with zipfile.ZipFile(tmp_path / "kept.zip") as kept:
        text = "".join(kept.read(name).decode() for name in kept.namelist())
        assert not [name for name in kept.namelist() if name.endswith(".safetensors")]
    assert "/home/me" not in text
    assert '"hostname"' not in text


def test_kept_twice_is_the_same_file(sweep: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        keep(sweep, tmp_path / folder / "kept.zip", every=4)
        for path in sweep.rglob("*.json"):
            path.touch()
    one, two = (tmp_path / folder / "kept.zip" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert [path.name for path in one.parent.iterdir()] == ["kept.zip"]


def test_a_linearized_run_keeps_its_references(tmp_path: Path) -> None:
    with unpacked(RESULTS / "linearize_loop.zip") as source:
        run = next(path.parent for path in sorted(source.glob("supra-*/linearization.json")))
        sweep = tmp_path / "linearize_loop"
        shutil.copytree(run, sweep / run.name)
        shutil.copyfile(source / "sweep.json", sweep / "sweep.json")
    (name,) = keep(sweep, tmp_path / "kept.zip", every=4)
    before = sweep / name / "linearization.json"
    kept = open_sweep(tmp_path / "kept.zip") / name / "linearization.json"
    assert kept.read_bytes() == before.read_bytes()


def test_unfinished_runs_are_refused(sweep: Path, tmp_path: Path) -> None:
    status = sweep / RUN / "status.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    with pytest.raises(SystemExit, match=f"1 of 1 runs are not done \\({RUN}\\); finish them"):
        keep(sweep, tmp_path / "kept.zip", every=4)
    assert not (tmp_path / "kept.zip").exists()


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no sweep\.json there"):
        keep(tmp_path, tmp_path / "kept.zip", every=4)
