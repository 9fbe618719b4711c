"""`linscale plan FILE --refine DIR`: candidates ranked against a finished sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.io.frames import where
from analysis.io.records import load_sweep
from analysis.io.sweep import Sweep
from analysis.judge.design import noise_of
from analysis.judge.refine import candidates_of, refine
from tests.support.make_runs import parameter_count, write_sweep


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("runs") / "demo", archs=("llama", "tnl"),
                       dims=(32, 64, 96, 128), seeds=(0, 1), log_lines=4)  # fmt: skip


@pytest.fixture(scope="module")
def sweep(sweep_dir: Path) -> Sweep:
    return load_sweep(sweep_dir)


def _rung(arch: str, dim: int, ratio: float = 10.0, horizons: int = 1) -> dict[str, Any]:
    """One row of `linscale plan --json`."""
    n = parameter_count(dim)
    tokens = n * ratio
    return {
        "run_id": f"{arch}-d{dim}-r{ratio:g}-{0:08x}", "arch": arch, "size": f"d{dim}", "seed": 0,
        "params_exact": n, "flops_per_token": 6.0 * n, "flops": 6.0 * n * tokens * 1.1,
        "horizons": [int(tokens * (k + 1) / horizons) for k in range(horizons)],
    }  # fmt: skip


LADDER = [_rung(arch, dim, ratio) for arch in ("llama", "tnl") for dim in (32, 128, 256)
          for ratio in (2.0, 40.0)]  # fmt: skip


def test_ranking_agrees_with_the_information_of_the_enlarged_design(sweep: Sweep) -> None:
    """Half-widths equal 1.645 sqrt(g' (J'J / s^2)^-1 g) of the design with the candidate added,
    for alpha, written out in natural coordinates."""
    result = refine(sweep, candidates_of(LADDER), quantity="alpha")
    fit = fit_law("chinchilla", where(sweep.points, arch="tnl"))
    p = fit.params

    def rows(n: np.ndarray, d: np.ndarray) -> np.ndarray:
        loss = p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]
        ln_n, ln_d = np.log(n), np.log(d)
        return np.stack([
            1 + 0 * n, n ** -p["alpha"], -p["A"] * ln_n * n ** -p["alpha"],
            d ** -p["beta"], -p["B"] * ln_d * d ** -p["beta"],
        ], axis=1) / loss[:, None]  # fmt: skip

    obs = fit.observations
    per_run = np.bincount(obs.cluster)[obs.cluster]
    base = rows(obs.columns["n"], obs.columns["d"]) / np.sqrt(per_run)[:, None]
    for row in where(result.frame, arch="tnl").to_dict("records"):
        more = np.vstack([base, rows(np.array([row["n_params"]]), np.array([row["tokens"]]))])
        triangle = np.linalg.qr(more / noise_of(fit), mode="r")  # stable for A next to alpha
        inverse = np.linalg.solve(triangle.T, np.eye(5)[2])
        assert row["alone"] == pytest.approx(1.6449 * np.linalg.norm(inverse), rel=0.01)


def test_a_run_with_horizons_is_one_candidate(sweep: Sweep) -> None:
    one = refine(sweep, candidates_of([_rung("tnl", 256, horizons=4)]))
    assert len(one.frame) == 1
    row = one.frame.iloc[0]
    assert row["tokens"] == parameter_count(256) * 10
    assert row["cost"] == pytest.approx(6.0 * parameter_count(256) ** 2 * 10 * 1.1)
    assert 0 < row["alone"] < row["now"]


def test_budget_is_shared_and_kept(sweep: Sweep) -> None:
    budget = 4 * max(r["flops"] for r in LADDER)
    result = refine(sweep, candidates_of(LADDER), quantity="loss@1e16", budget=budget)
    for arch in ("llama", "tnl"):
        own = where(result.frame, arch=arch)
        bought = own[own["order"] > 0]
        assert len(bought) > 0
        assert bought["cost"].sum() <= budget / 2
        planned = bought.sort_values("order")["planned"].to_numpy()
        assert (np.diff(planned) < 0).all()
        assert planned[-1] <= own["alone"].min()


def test_finished_runs_are_left_out_and_named(sweep: Sweep) -> None:
    done = _rung("tnl", 128) | {"run_id": sweep.points["run_id"].iloc[-1]}
    result = refine(sweep, candidates_of([done, _rung("tnl", 256)]))
    assert result.left_out == {done["run_id"]: "finished in demo"}
    assert len(result.frame) == 1
    with pytest.raises(AnalysisError, match=r"every run of the experiment is finished in demo"):
        refine(sweep, candidates_of([done]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantity": "gamma"}, "quantity 'gamma' is not known"),
        ({"budget": 1.0}, "no candidate fits a budget of 0.5 FLOPs"),
    ],
)
def test_bad_questions_are_explained(sweep: Sweep, options, message: str) -> None:
    with pytest.raises(AnalysisError, match=message):
        refine(sweep, candidates_of(LADDER), **options)


def test_command_from_an_experiment_file(sweep_dir: Path, tmp_path: Path) -> None:
    from scaling.cli.main import app

    file = tmp_path / "larger.py"
    file.write_text("from experiments.quickstart import runs as quickstart\n\n\n"
                    "def runs():\n"
                    '    """The quickstart with further seeds."""\n'
                    "    return [run.override(['seed=7']) for run in quickstart()]\n")  # fmt: skip
    words = ["plan", str(file), "--refine", str(sweep_dir), "--quantity", "alpha"]
    runner = CliRunner()
    found = runner.invoke(app, [*words, "--json"], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    record = json.loads(found.stdout)
    assert {r["arch"] for r in record["candidates"]} == {"llama", "tnl"}
    assert "hgrn2" in record["left_out"]
    budget = 2.5 * max(r["cost"] for r in record["candidates"])
    found = runner.invoke(app, [*words, "--budget", str(budget)], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    assert "the plan narrows alpha from" in found.stdout
    found = runner.invoke(app, ["plan", str(file), "--refine", str(tmp_path)],
                          env={"COLUMNS": "200"})  # fmt: skip
    assert found.exit_code == 2
    assert "neither a sweep.json" in " ".join(found.stderr.split())
