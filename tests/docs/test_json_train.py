"""docs/json.md against the commands that train, or need what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.test_json import RESULTS, call, check

pytestmark = pytest.mark.slow
SMALL = ("budget.tokens=20480", "budget.horizons=10240,20480", "schedule.warmup_tokens=4096")


def test_documents_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    check("linscale data prepare", call("data", "prepare", "quickstart"))
    done = call("run", "quickstart", *SMALL, "--only", "arch=llama size=d16", "--launcher",
                "inline", "-o", "runs/q")  # fmt: skip
    check("linscale run", done)
    check("linscale status", done["runs"])
    run = tmp_path / "runs/q" / done["runs"][0]["run_id"]
    check("linscale generate",
          call("generate", run, "--prompt", "In", "--max-new-tokens", 4))  # fmt: skip
    check("linscale export", call("export", run, "-o", "exported"))
    check("linscale evaluate", call("evaluate", run, "--tasks", "perplexity", "--limit", 4))
    check("linscale log-to", call("log-to", "tensorboard", run))
    check("linscale verify", call("verify", run))
    check("linscale data verify", call("data", "verify"))
    check("linscale data list", call("data", "list"))
    (folder,) = call("data", "list")
    check("linscale data prune", call("data", "prune", folder["folder"], "--dry-run"))
    linearized = call("linearize", run, "--method", "supra", "--tokens", 10240, "--no-controls",
                      "-o", "runs/lin")  # fmt: skip
    check("linscale linearize", linearized, closed=False)


def test_documents_of_reports(tmp_path: Path) -> None:
    sweep = RESULTS / "quickstart.zip"
    check("linscale report", call("report", sweep, "-o", tmp_path / "r", "--bootstrap", 100))
    loop = RESULTS / "linearize_loop.zip"
    check("linscale linearize-report", call("linearize-report", loop, "-o", tmp_path / "l"))
    check("linscale inference", call("inference", sweep, "--bootstrap", 10))
    check("linscale clocks", call("clocks", sweep, "--bootstrap", 10))
    check("linscale plan --refine", call("plan", "small_ladder", "--refine", sweep))
