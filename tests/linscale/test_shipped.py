"""Experiments and records by name, from any folder, in a source tree and as a wheel has them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from linscale.errors import LinscaleError
from linscale.shipped import experiment_file, names, records, shipped_file

ROOT = Path(__file__).resolve().parents[2]


def test_experiments_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert experiment_file(Path("quickstart")) == ROOT / "experiments" / "quickstart.py"
    assert experiment_file(Path("experiments/isoflop.py")) == ROOT / "experiments" / "isoflop.py"
    assert experiment_file(Path("experiments/mine.py")) == Path("experiments/mine.py")
    assert experiment_file(Path("mine.py")) == Path("mine.py")  # whose absence is said elsewhere
    with pytest.raises(LinscaleError, match="did you mean quickstart"):
        experiment_file(Path("quikstart"))
    (tmp_path / "quickstart").mkdir()
    assert experiment_file(Path("quickstart")) == Path("quickstart")  # what is there comes first
    assert "keep" not in names()  # a tool, no experiment


def test_records_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert records("runs/mine") == tmp_path / "runs" / "mine"
    assert records("quickstart") == ROOT / "experiments" / "results" / "quickstart.zip"
    with pytest.raises(LinscaleError, match=r"those that do: .*small_ladder"):
        records("mine")
    with pytest.raises(LinscaleError, match=r"no such sweep in .*notebooks or a folder above it"):
        records("runs/others")


def test_files_that_the_documentation_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sealed = Path("experiments/forecasts/medium_ladder_64x.json")
    assert shipped_file(sealed) == ROOT / sealed
    for other in ("experiments/forecasts/mine.json", "experiments/results/../keep.py", "mine.json"):
        assert shipped_file(Path(other)) == Path(other)  # whose absence is said elsewhere
    sealed.parent.mkdir(parents=True)
    sealed.write_text("{}")
    assert shipped_file(sealed) == sealed  # what is there comes first


@pytest.mark.timeout(300)
def test_a_wheel_has_them(tmp_path: Path) -> None:
    """Built from a copy, unpacked, and asked in a folder of its own, beside a user's `models/`."""
    kept = ("linscale", "models", "scaling", "analysis", "experiments", "pyproject.toml",
            "setup.py", "README.md", "LICENSE")  # fmt: skip
    source = tmp_path / "source"
    source.mkdir()
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name)
        else:
            shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    shutil.unpack_archive(wheel, site, "zip")
    assert {path.name for path in site.iterdir()} >= {"linscale", "models", "scaling", "analysis"}
    assert not (site / "experiments").exists()
    assert list((site / "models" / "kernels" / "triton" / "tuning").glob("*.json"))
    (tmp_path / "project" / "models").mkdir(parents=True)
    (tmp_path / "project" / "models" / "__init__.py").write_text("raise ImportError('mine')")
    code = (
        "from linscale.shipped import names, records, experiment_file\n"
        "from linscale import load_experiment, load_sweep\n"
        "from pathlib import Path\n"
        "CHOSEN = ['quickstart', 'paper_ladder', 'supra']  # the last imports one beside it\n"
        "assert {*CHOSEN} <= {*names()}\n"
        "print(records('quickstart'), len(load_sweep(records('quickstart')).points))\n"
        "from analysis.io.sweep_files import find_sweep, report_folder\n"
        "shown = Path('experiments/results/quickstart.zip')\n"
        "assert find_sweep(shown) == records('quickstart')\n"
        "assert report_folder(shown) == Path('quickstart-report')  # not among the packages\n"
        "from linscale.shipped import folder, shipped_file\n"
        "for name in ('forecasts/medium_ladder_64x.json', 'results/overheads.csv'):\n"
        "    assert shipped_file(Path('experiments') / name) == folder() / name, name\n"
        "assert experiment_file(Path('experiments/supra.py')) == experiment_file(Path('supra'))\n"
        "print({n: len(load_experiment(experiment_file(Path(n)), []).runs) for n in CHOSEN})\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path / "project",
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(rf"{site}/linscale/builtin/experiments/results/quickstart.zip 60", first)
    assert "'quickstart': 20" in second
    assert "'paper_ladder': 24, 'supra': 1" in second
