"""Experiment files: loading, overrides, and errors that a user can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from linscale.errors import LinscaleError
from models.config import ConfigError
from scaling.config.experiment import defines, load_experiment

ROOT = Path(__file__).resolve().parents[3]

GOOD = """
from models.config import toy_config
from scaling.config.run import BudgetConfig, RunConfig

def runs():
    return [
        RunConfig(name=f"tnl-{d}", model=toy_config("tnl", d, vocab_size=257),
                  budget=BudgetConfig(tokens=100_000))
        for d in (32, 64)
    ]
"""


def write(tmp_path, text, name="mine.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_loads_and_overrides_every_run(tmp_path):
    experiment = load_experiment(write(tmp_path, GOOD), ["optim.lr=1e-3", "seed=4"])
    assert experiment.name == "mine"
    assert [run.optim.lr for run in experiment.runs] == [1e-3, 1e-3]
    assert {run.seed for run in experiment.runs} == {4}
    assert experiment.text == GOOD


SHIPPED = sorted(p for p in (ROOT / "experiments").glob("*.py") if defines(p, "runs"))


def test_what_a_file_defines_is_seen_without_running_it(tmp_path):
    path = write(tmp_path, "def blockwise(toy=False):\n    return 1 / 0\n    def runs(): ...\n")
    assert defines(path, "blockwise")
    assert not defines(path, "runs")
    assert not defines(tmp_path / "absent.py", "runs")
    assert len(SHIPPED) >= 6


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_experiment_loads(path):
    runs = load_experiment(path, []).runs
    assert len({run.run_id for run in runs}) == len(runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"has no function runs\(\)"),
        ("def runs(): return []", "returned no run"),
        ("def runs(): return 3", "must return a list of RunConfig"),
        ("def runs(): return [1]", "must return a list of RunConfig"),
        ("def runs():\n    return 1 / 0", r"mine\.py:2: ZeroDivisionError"),
        ("def runs(:\n", r"mine\.py:1: SyntaxError"),
        ("import no_such_thing_at_all", r"mine\.py:1: ModuleNotFoundError"),
        ("import sys\nsys.exit(3)", r"mine\.py:2: sys.exit\(3\) ends the file before"),
        ("import sys\ndef runs():\n    sys.exit()", r"mine\.py:3: sys.exit\(None\) ends the file"),
    ],
)
def test_a_file_that_cannot_work_says_where(tmp_path, text, message):
    with pytest.raises(LinscaleError, match=message):
        load_experiment(write(tmp_path, text), [])


@pytest.mark.parametrize(
    "path", [p for p in SHIPPED if "toy: bool" in p.read_text()], ids=lambda p: p.stem
)
def test_every_toy_variant_is_a_sweep_of_its_own(path, tmp_path, monkeypatch):
    if "teachers/toy" in path.read_text():  # exported by the user first
        monkeypatch.chdir(tmp_path)
        small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "vocab_size": 256}  # fmt: skip
        LlamaForCausalLM(LlamaConfig(**small)).save_pretrained("teachers/toy")
    experiment = load_experiment(path, [], toy=True)
    assert experiment.name == f"{path.stem}-toy"
    assert {run.parallel.accelerator for run in experiment.runs} == {"cpu"}
    assert max(run.budget.tokens for run in experiment.runs) <= 10_000_000


def test_a_file_without_a_toy_variant_says_so(tmp_path):
    with pytest.raises(LinscaleError, match="has no toy variant"):
        load_experiment(write(tmp_path, GOOD), [], toy=True)


def test_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path, GOOD, "quickstart.py")
    with pytest.raises(LinscaleError, match=r"no such experiment file\. Did you mean .*quickstart"):
        load_experiment(tmp_path / "quikstart.py", [])


def test_overrides_before_the_file_are_explained():
    with pytest.raises(LinscaleError, match="the experiment file comes first"):
        load_experiment(Path("optim.lr=1e-3"), [])


def test_unknown_override_suggests_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        load_experiment(write(tmp_path, GOOD), ["optim.learning=1"])


def test_runs_made_equal_by_an_override_are_refused(tmp_path):
    shape = {"dim": 64, "heads": 4, "layers": 2, "glu_dim": 128, "init_std": 0.02}
    overrides = [f"model.{name}={value}" for name, value in shape.items()]
    with pytest.raises(LinscaleError, match="the same twice"):
        load_experiment(write(tmp_path, GOOD.replace('f"tnl-{d}"', '"tnl"')), overrides)


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_bytes(GOOD.encode() + "# Größe\n".encode("latin1"))
    with pytest.raises(LinscaleError, match=r"mine.py: is not UTF-8 text .*iconv"):
        load_experiment(path, [])
    path.write_bytes(b"# -*- coding: latin1 -*-\n" + GOOD.encode() + "# Größe\n".encode("latin1"))
    assert "# Größe" in load_experiment(path, []).text


def test_runs_that_differ_at_each_load_are_noticed(tmp_path: Path) -> None:
    text = "import random\n" + GOOD.replace(
        "RunConfig(name", "RunConfig(seed=random.getrandbits(60), name"
    )
    with pytest.raises(LinscaleError, match=r"gives other runs each time .*fixed seed"):
        load_experiment(write(tmp_path, text), [])
    fixed = text.replace("def runs():", "def runs():\n    random.seed(1)")
    assert len(load_experiment(write(tmp_path, fixed), []).runs) == 2


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    text = "import numpy as np\n" + GOOD.replace("in (32, 64)", "in np.array([32, 64])").replace(
        "tokens=100_000", "tokens=np.int64(100_000)"
    )
    runs = load_experiment(write(tmp_path, text), []).runs
    assert [run.run_id for run in runs] == [
        run.run_id for run in load_experiment(write(tmp_path, GOOD), []).runs
    ]
    assert all(type(run.model.dim) is int for run in runs)
