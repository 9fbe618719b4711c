"""The public face: its names, what they stand for, and what importing it does not load."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import linscale
from linscale import installation

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def python(code: str, *options: str) -> str:
    """Output of a program in a process of its own, outside the checkout's folder."""
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_name_is_there_and_listed() -> None:
    names = [name for name in dir(linscale) if not name.startswith("__")]
    assert len(names) == len(installation.places()) > 40
    for name in names:
        assert getattr(linscale, name) is not None


def test_names_are_those_of_their_modules() -> None:
    from analysis import figures
    from analysis.io.records import load_sweep
    from models.kernels.api import linear_attention
    from scaling.config.run import RunConfig

    assert linscale.load_sweep is load_sweep
    assert linscale.figures is figures
    assert linscale.linear_attention is linear_attention
    assert linscale.RunConfig is RunConfig


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match=r"'linscale' has no attribute 'load_sweeps'"):
        _ = linscale.load_sweeps  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="fit_lawn"):
        exec("from linscale import fit_lawn")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import linscale; dir(linscale)", "importlib.metadata tomllib"),
        ("import linscale; dir(linscale); linscale.__version__", "torch pandas matplotlib numpy"),
        ("from linscale import load_sweep, load_table, fit_law", "torch matplotlib"),
        ("from linscale import RunConfig, ModelConfig, toy_recipe", "torch pandas matplotlib"),
        ("from linscale import figures, compute_multiplier", "torch"),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(statement: str, absent: str) -> None:
    loaded = python(f"{statement}\nimport sys; print(*sys.modules)").split()
    assert "linscale" in loaded
    assert [name for name in absent.split() if name in loaded] == []


def test_version_is_that_of_the_project() -> None:
    assert linscale.__version__ == PROJECT["version"]


def test_version_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a pyproject.toml beside it, or with somebody else's, the installation is asked."""
    monkeypatch.setattr(installation, "_FOLDER", tmp_path / "linscale")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 9")
    assert installation.version() == "linscale 9"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\nversion = "3"\n')
    assert installation.version() == "linscale 9"


def test_one_root_of_exceptions() -> None:
    from models.interop import InteropError
    from scaling.record.record import RecordError

    for kind in (linscale.ConfigError, linscale.AnalysisError, InteropError, RecordError):
        assert issubclass(kind, linscale.LinscaleError)


def test_extras_are_those_of_the_project() -> None:
    """Each module of the table is a requirement of its extra, and each of those is in the table."""
    said = {
        requirement.split(">")[0].strip().replace("-", "_"): extra
        for extra in set(installation.EXTRAS.values())
        for requirement in PROJECT["optional-dependencies"][extra]
        if not requirement.startswith("linscale")
    }
    assert said == installation.EXTRAS


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "models.language_model", None)
    with pytest.raises(ModuleNotFoundError):  # a module of our own is not an extra
        installation.load("build", "models.language_model", "build")
    monkeypatch.delitem(sys.modules, "models.language_model")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        linscale.LinscaleError,
        match=r"linscale.build needs torch, which the extra `train` brings",
    ):
        installation.load("build", "models.language_model", "build")


def test_a_hidden_package_is_said_in_one_sentence(tmp_path: Path) -> None:
    """A script beside a package named `models`: which file was found, and what to do."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + (
        "try:\n    from linscale import build\nexcept ImportError as error:\n    print(error)"
    )
    said = python(code)
    assert f"`import models` finds {tmp_path}/models/__init__.py" in said
    assert str(ROOT / "models") in said
    assert "\n" not in said
