"""Which code is found: installed packages, then modules beside the experiment file."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from linscale import code_search
from linscale.code_search import child_environment, folders_of, python_command, search_also
from linscale.errors import LinscaleError
from scaling.config.experiment import load_experiment

RUNS = """
from linscale import RunConfig, BudgetConfig, toy_config

def runs():
    return [RunConfig(name=NAME, model=toy_config("llama", 32, vocab_size=256),
                      budget=BudgetConfig(tokens=10**6))]
"""


@pytest.fixture(autouse=True)
def own_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finder without the folders of other tests, gone at the end with what it found."""
    finder = code_search._UserCode()
    monkeypatch.setattr(code_search, "_finder", finder)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    monkeypatch.delenv(code_search.VARIABLE, raising=False)


def test_modules_beside_an_experiment_file(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text('NAME = "found"')
    (tmp_path / "exp.py").write_text(f"from beside_it import NAME\n{RUNS}")
    assert load_experiment(tmp_path / "exp.py", []).runs[0].name == "found"


def test_a_package_of_experiments(tmp_path: Path) -> None:
    """As the files of this repository: they import each other by the package's name."""
    (tmp_path / "my_experiments").mkdir()
    for name, text in {
        "__init__.py": "",
        "base.py": 'NAME = "base"',
        "exp.py": f"from my_experiments.base import NAME\n{RUNS}",
    }.items():
        (tmp_path / "my_experiments" / name).write_text(text)
    file = tmp_path / "my_experiments/exp.py"
    assert folders_of(file) == [tmp_path / "my_experiments", tmp_path]
    assert load_experiment(file, []).runs[0].name == "base"


def test_what_is_installed_wins(tmp_path: Path) -> None:
    """Over the folder, also where it is found by a finder after that of `sys.path`, as editable
    installations are."""
    (tmp_path / "json.py").write_text("raise RuntimeError")
    (tmp_path / "installed_so.py").write_text("raise RuntimeError")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "installed_so.py").write_text("here = True")
    late = code_search._UserCode()  # stands for an editable installation's finder
    late.folders = [str(elsewhere)]
    sys.meta_path.append(late)
    search_also(tmp_path)
    assert importlib.import_module("installed_so").here
    del sys.modules["json"]
    importlib.import_module("json")


def test_a_folder_of_data_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "wandb/run-1").mkdir(parents=True)
    (tmp_path / "wandb/run-1/log.txt").write_text("")
    (tmp_path / "no_init").mkdir()
    (tmp_path / "no_init/part.py").write_text("here = True")
    search_also(tmp_path)
    assert importlib.import_module("no_init.part").here
    assert code_search._finder.find_spec("wandb", None) is None


@pytest.mark.parametrize("beside", ["models/mine.py", "models.py"])
def test_a_hidden_package_of_the_user_is_named(tmp_path: Path, beside: str) -> None:
    (tmp_path / beside).parent.mkdir(exist_ok=True)
    (tmp_path / beside).write_text("")
    (tmp_path / "exp.py").write_text("\nfrom models.mine import net\n")
    with pytest.raises(LinscaleError, match=r"exp.py:2: .*hides .*models(\.py)?; rename yours"):
        load_experiment(tmp_path / "exp.py", [])


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "exp.py").write_text("import submitit.nothing_of_this_name\n")
    with pytest.raises(LinscaleError, match=r"the extra `slurm` brings.*pip install '\.\[slurm\]'"):
        load_experiment(tmp_path / "exp.py", [])


def test_children_search_alike(tmp_path: Path) -> None:
    """Not their working directory, but the user's folders; and so do their own children."""
    mine, decoys = tmp_path / "mine", tmp_path / "decoys"
    for folder in (mine, decoys):
        folder.mkdir()
    (mine / "of_the_user.py").write_text("")
    (decoys / "scaling.py").write_text("raise RuntimeError('decoy')")
    (mine / "child.py").write_text(
        "import subprocess, sys\n"
        "from linscale.code_search import search_also\n"
        "search_also()\n"
        "import of_the_user\n"
        "if len(sys.argv) < 2:\n"
        "    command = [sys.executable, '-m', 'child', 'again']\n"
        "    sys.exit(subprocess.run(command).returncode)\n"
        "print('found', of_the_user.__file__)\n"
    )
    search_also(mine)
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        python_command("child"),
        cwd=decoys,
        env=child_environment({"PYTHONPATH": f"{root}:{mine}"}),
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"found {mine / 'of_the_user.py'}\n", done.stderr
