"""Kept records give the same points, and hold nothing of the machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from analysis.io.records import load_sweep
from experiments.keep import RESULTS, keep

SOURCE = RESULTS / "quickstart"
RUN = "llama-d16-f913e15d"


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """One run as training leaves it: with a checkpoint, and the names of a machine."""
    path = tmp_path / "quickstart"
    run = path / RUN
    shutil.copytree(SOURCE / RUN, run)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "model.safetensors").write_bytes(b"0" * 1000)
    for name in (run / "status.json", run / "environment.json"):
        named = json.loads(name.read_text()) | {"hostname": "box", "pid": 7, "argv": ["/home/me/x"]}
        name.write_text(json.dumps(named))
    listed = json.loads((SOURCE / "sweep.json").read_text()) | {"runs": [RUN], "argv": ["/home/me"]}
    (path / "sweep.json").write_text(json.dumps(listed))
    return path


def test_points_and_ends_of_curves_stay(sweep: Path, tmp_path: Path) -> None:
    (kept,) = keep(sweep, tmp_path / "kept", every=10)
    before, after = load_sweep(sweep), load_sweep(tmp_path / "kept")
    assert len(before.points) == 3
    assert after.points.equals(before.points)
    lines = (sweep / RUN / "metrics.jsonl").read_text().splitlines()
    left = (kept / "metrics.jsonl").read_text().splitlines()
    assert len(left) < len(lines) / 2
    assert [x for x in lines if '"validation"' in x] == [x for x in left if '"validation"' in x]
    assert [x for x in lines if x in left] == left  # in order, none twice
    ends = {json.loads(x)["segment"]: x for x in lines if '"train"' in x}  # the last of each
    assert set(ends.values()) <= set(left)


def test_nothing_of_the_machine_stays(sweep: Path, tmp_path: Path) -> None:
    keep(sweep, tmp_path / "kept", every=4)
    text = "".join(p.read_text() for p in (tmp_path / "kept").rglob("*") if p.is_file())
    assert "/home/me" not in text
    assert '"hostname"' not in text
    assert not list((tmp_path / "kept").rglob("*.safetensors"))


def test_a_linearized_run_keeps_its_references(tmp_path: Path) -> None:
    source = RESULTS / "linearize_loop"
    run = next(path.parent for path in sorted(source.glob("supra-*/linearization.json")))
    sweep = tmp_path / "linearize_loop"
    shutil.copytree(run, sweep / run.name)
    shutil.copyfile(source / "sweep.json", sweep / "sweep.json")
    (kept,) = keep(sweep, tmp_path / "kept", every=4)
    name = "linearization.json"
    assert (kept / name).read_text("utf-8") == (run / name).read_text("utf-8")


def test_unfinished_runs_are_refused(sweep: Path, tmp_path: Path) -> None:
    status = sweep / RUN / "status.json"
    status.write_text(status.read_text().replace('"done"', '"running"'))
    with pytest.raises(SystemExit, match=f"1 of 1 runs are not done \\({RUN}\\); finish them"):
        keep(sweep, tmp_path / "kept", every=4)
    assert not (tmp_path / "kept").exists()


def test_a_folder_that_is_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no sweep\.json there"):
        keep(tmp_path, tmp_path / "kept", every=4)
