"""From a folder whose own packages are named like ours: every process finds ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("linscale", "models", "scaling", "analysis")
DECOYS = ("models", "scaling", "analysis", "experiments")
EXPERIMENT = """
from linscale import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig, toy_config
from sizes import DIMS

def runs():
    return [
        RunConfig(
            name=f"llama-d{dim}", size=str(dim),
            model=toy_config("llama", dim, vocab_size=256, layers=1, head_dim=8),
            data=DataConfig(corpus="text:texts/*.txt", sequence_length=16, batch_sequences=4,
                            validation_fraction=0.3, validation_blocks=4),
            schedule=ScheduleConfig(kind="wsd", warmup_tokens=64),
            budget=BudgetConfig(tokens=64 * 8, horizons=(64 * 3, 64 * 5)),
            parallel=ParallelConfig(accelerator="cpu", threads=1),
        )
        for dim in DIMS
    ]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in DECOYS:
        (tmp_path / name).mkdir()
        text = "raise RuntimeError(f'a decoy was imported: {__file__}')"
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / f"texts/{number}.txt").write_text(f"The {number} dogs sleep in the sun. " * 30)
    (tmp_path / "sizes.py").write_text("DIMS = (16, 24, 32, 40)")
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    (tmp_path / "ranks.py").write_text("import exp\ndef runs():\n    return exp.runs()[:1]\n")
    return tmp_path


def linscale(project: Path, installation: Path, command: str) -> str:
    """What a command says, run in the project by an interpreter that finds this installation."""
    environment = os.environ | {
        "PYTHONPATH": str(installation),
        "LINSCALE_CACHE": str(project / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-m", "linscale", *command.split()],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_workers_train_beside_decoys(project: Path) -> None:
    linscale(project, ROOT, "run exp.py --jobs 2")
    assert len(list(project.glob("runs/exp/*/checkpoints/milestone-*.pt"))) == 12


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, unpacked as pip does it."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-build-isolation", "--no-deps", "--quiet"]
    source = folder / "source"  # building leaves files in the tree
    content = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *content]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True).stdout
    for name in names.decode().split("\0")[:-1]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*pip, "wheel", *options, "-w", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    target = folder / "site"
    subprocess.run([*pip, "install", *options, "--target", str(target), str(built)], check=True)
    return target


@pytest.mark.slow
def test_wheel_holds_the_four_packages_and_their_data(wheel: Path) -> None:
    found = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert found - {"bin"} == set(PACKAGES)
    for name in ("linscale/py.typed", "linscale/__init__.pyi", "models/interop/remote"):
        assert (wheel / name).exists()
    tables = "models/kernels/triton/tuning"
    ours = {path.name for path in (ROOT / tables).glob("*.json")}
    assert ours
    assert {path.name for path in (wheel / tables).glob("*.json")} == ours


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tree", "wheel"])
def test_every_command_beside_decoys(
    project: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    place = ROOT if kind == "tree" else request.getfixturevalue("wheel")
    assert linscale(project, place, "--version").startswith("linscale ")
    assert "llama-d16" in linscale(project, place, "plan exp.py")
    assert "training and" in linscale(project, place, "data prepare exp.py --workers 2")
    linscale(project, place, "run exp.py --jobs 2")
    linscale(project, place, "run ranks.py --jobs 1 parallel.devices=2")
    assert len(list(project.glob("runs/*/*/checkpoints/milestone-*.pt"))) == 15
    said = linscale(project, place, "evaluate runs/exp --tasks perplexity --jobs 2")
    assert "12 tasks evaluated" in said
    linscale(project, place, "fit runs/exp --form power_c --bootstrap 0")
    linscale(project, place, "report runs/exp --bootstrap 100 -o page")
    assert (project / "page/index.html").is_file()
