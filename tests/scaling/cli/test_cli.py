"""The `linscale` command as a user meets it: a process, its output and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LADDER = str(ROOT / "experiments" / "paper_ladder.py")
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")


def linscale(*arguments, cwd):
    command = [sys.executable, "-m", "scaling.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "command",
    [(), ("plan",), ("run",), ("status",), ("fit",), ("report",), ("evaluate",), ("tables",)],
)
def test_help_has_an_example(command, tmp_path):
    result = linscale(*command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "linscale " in result.stdout.replace("Usage: linscale", "")


@pytest.mark.parametrize("arguments", [["--help"], ["plan", LADDER, "--json"]])
def test_help_and_plan_import_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys; sys.argv = ['linscale', *sys.argv[1:]]\n"
        "from scaling.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'lightning', 'pandas', 'scipy', 'matplotlib', 'datasets'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_plan_of_the_paper_ladder(tmp_path):
    result = linscale("plan", LADDER, "--json", cwd=tmp_path)
    rungs = json.loads(result.stdout)
    assert len(rungs) == 24
    # Table 7 of arXiv 2406.16690: millions of parameters and PFLOPs a step.
    published = {
        ("llama", "70M"): (20.5, 1.6),
        ("tnl", "410M"): (327.7, 7.9),
        ("hgrn2", "1B"): (906.0, 22.0),
        ("cosformer2", "7B"): (6511.0, 155.6),
    }
    for rung in rungs:
        if expected := published.get((rung["arch"], rung["size"])):
            assert (
                round(rung["params"] / 1e6, 1),
                round(rung["flops_per_step_pf"], 1),
            ) == expected
    assert list(tmp_path.iterdir()) == []


def test_plan_shows_a_table_for_a_named_device_and_writes_nothing(tmp_path):
    result = linscale("plan", LADDER, "--device", "h200", cwd=tmp_path)
    assert result.returncode == 0
    assert "H200" in result.stdout
    assert "cosformer2-7B" in result.stdout
    assert "24 runs" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_plan_shows_overrides(tmp_path):
    result = linscale("plan", QUICKSTART, "optim.lr=1e-3", "--json", cwd=tmp_path)
    assert {rung["lr"] for rung in json.loads(result.stdout)} == {1e-3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "nothing.py"], "no such experiment file"),
        (["plan", LADDER, "--device", "h20"], "did you mean h200"),
        (["plan", LADDER, "optim.lrr=1"], "optim.lr"),
        (["plan", LADDER, "optim.lr=fast"], "optim.lr"),
        (["plan", LADDER, "model.heads=7"], "model.heads"),
        (["plan", LADDER, "budget.tokens=5", "budget.horizons="], "less than one optimizer step"),
        (["plan", LADDER, "--toy"], "has no toy variant"),
        (["plan", LADDER, "parallel.micro_batch_sequences=480"], "micro_batch_sequences"),
        (["run", "nothing.py"], "no such experiment file"),
        (["run", "."], "is a directory; give one of its experiment files"),
        (["run", QUICKSTART, "data.corpus=text:none/*.txt"], "none/*.txt"),
        (["run", QUICKSTART, "--launcher", "cloud"], "cloud"),
        (["status", "runs/none"], "no such directory"),
        (["fit", "none.csv"], "none.csv"),
        (["report", "runs/none"], "runs/none"),
    ],
)
def test_what_a_user_can_mend_is_one_paragraph(arguments, message, tmp_path):
    result = linscale(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stdout + result.stderr
    said = " ".join((result.stdout + result.stderr).split())
    assert message in said
    assert "Traceback" not in said
