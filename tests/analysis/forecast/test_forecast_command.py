"""`linscale forecast`: from a sweep or a table to a sealed file, and from outcomes to a score."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner, Result

from analysis.cli.forecast import forecast_app
from tests.support.make_runs import LAWS, parameter_count, write_sweep
from tests.support.worlds import loss_of, suite

runner = CliRunner()
ANCHORS = "flops,loss\n2.00e19,3.2373\n1.31e20,2.9538\n7.16e20,2.7515\n"


def _app() -> typer.Typer:
    app = typer.Typer()
    app.add_typer(forecast_app(None))

    @app.callback()
    def _(_context: typer.Context) -> None: ...

    return app


def _run(*words: object, code: int = 0) -> Result:
    result = runner.invoke(_app(), ["forecast", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def _json(*words: object, code: int = 0) -> dict[str, Any]:
    return json.loads(_run(*words, "--json", code=code).stdout)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 runs of a Chinchilla world."""
    path = tmp_path_factory.mktemp("tables") / "runs.csv"
    data = suite(sizes=6, noise=0.004, seed=5)
    data[["run_id", "n_params", "tokens", "flops", "loss"]].to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def sealed(table: Path) -> str:
    """A seal of one point, made from the table."""
    path = table.with_name("sealed.json")
    _run(table, "--at", "N=5e9,D=1e11", "-o", path)
    return path.read_text()


# ---- one forecast, against an independent answer ------------------------------------------------


def test_pinned_asymptote_golden_case(tmp_path: Path) -> None:
    """Three IsoFLOP optima with E pinned at 1.4 were used in public to forecast 2.269 at 1.19e23;
    2.256 was observed."""
    source, seal = tmp_path / "anchors.csv", tmp_path / "seal.json"
    source.write_text(ANCHORS)
    result = _run(source, "--at", "C=1.19e23", "--fix", "E=1.4", "-o", seal)
    assert "E is pinned at 1.4" in _plain(result.stdout)
    record = json.loads(seal.read_text())
    (forecast,) = record["forecasts"]
    assert forecast["loss"] == pytest.approx(2.269, abs=5e-4)
    low, high = forecast["interval_90"]
    assert low < 2.256 < high
    assert any("pinned at 1.4" in note for note in record["groups"]["all"]["notes"])
    source.write_text(ANCHORS + "1.19e23,2.256\n")
    scored = _json(source, "--score", seal)
    (outcome,) = scored["outcomes"]
    assert outcome["error"] == pytest.approx(100 * (2.269 / 2.256 - 1), abs=0.03)
    assert outcome["in_90"]
    assert scored["seals"][0]["pinned"] == {"E": 1.4}
    assert scored["seals"][0]["broken"] == []
    assert "E pinned at 1.4" in _plain(_run(source, "--score", seal).stdout)


def test_point_and_budget(table: Path) -> None:
    """Both lie near the truth; the budget is split as the law says, and C follows from N and D."""
    record = _json(table, "--at", "N=5e9,D=1e11", "--at", "C=1e21")
    point, budget = record["forecasts"]
    truth = 1.69 + 406.4 / 5e9**0.34 + 410.7 / 1e11**0.28
    assert point["interval_90"][0] < truth < point["interval_90"][1]
    assert point["c"] == pytest.approx(6 * 5e9 * 1e11, rel=1e-6)
    largest = max(pd.read_csv(table)["flops"].to_list())
    assert point["leap"] == pytest.approx(point["c"] / largest, rel=1e-6)
    assert budget["best_split"]
    assert 6 * budget["n"] * budget["d"] == pytest.approx(1e21, rel=0.05)
    assert 0.3 < budget["n"] / 3.06e9 < 3  # its optimum by the closed form of 2203.15556
    frontier = record["groups"]["all"]["frontier"]
    assert frontier[-1]["c"] == pytest.approx(point["c"], rel=1e-6)
    assert frontier[-1]["loss"] < frontier[0]["loss"]
    for key in ("n", "d", "loss"):
        assert frontier[-1][f"{key}_lo"] < frontier[-1][key] < frontier[-1][f"{key}_hi"]


def test_several_laws_are_mixed_and_their_weights_shown(table: Path) -> None:
    words = (table, "--at", "N=5e9,D=1e11", "--form", "chinchilla,chinchilla_no_e")
    shown = dict(re.findall(r"(\w+) \(weight (\d+)%\)", _run(*words).stdout))
    weights = {name: int(percent) for name, percent in shown.items()}
    assert weights["chinchilla"] > weights["chinchilla_no_e"] > 10  # the true law has a floor
    assert sum(weights.values()) == 100


def test_rolling_hold_out_is_told_or_said_to_be_too_little(
    table: Path, sealed: str, tmp_path: Path
) -> None:
    told = json.loads(sealed)["groups"]["all"]["calibration"]
    assert told["too_few"] is None
    assert told["forecasts"] > 20
    assert told["inside_90%"] >= 0.8 * told["forecasts"]
    few = tmp_path / "few.csv"
    pd.read_csv(table).iloc[::3].to_csv(few, index=False)
    result = _run(few, "--at", "N=5e9,D=1e11")
    assert "too few rungs to calibrate on" in _plain(result.stdout)


# ---- the seal -----------------------------------------------------------------------------------


def test_the_seal_is_the_hash_of_what_it_says(table: Path, sealed: str) -> None:
    record = json.loads(sealed)
    body = {k: v for k, v in record.items() if k != "seal"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert record["seal"] == hashlib.sha256(text.encode()).hexdigest()
    assert {"sealed_at", "data", "form", "conventions", "seed", "versions", "git_revision",
            "existed", "question"} <= record.keys()  # fmt: skip
    assert len(record["data"]["used"]) == 30
    assert record["question"]["source_sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
    path = table.with_name("sealed.json")
    again = _run(table, "--at", "N=5e9,D=1e11", "-o", path, code=2)
    assert "never overwritten" in _plain(again.output)


@pytest.mark.parametrize("what", ["forecast", "rows"])
def test_an_altered_file_is_broken(table: Path, sealed: str, tmp_path: Path, what: str) -> None:
    path, record = tmp_path / "seal.json", json.loads(sealed)
    if what == "forecast":
        record["forecasts"][0]["loss"] -= 0.01
    else:
        record["data"]["used"][3]["loss"] += 0.01
    path.write_text(json.dumps(record))
    result = _run(table, "--score", path, code=1)
    assert "BROKEN SEAL: the file was altered" in _plain(result.output)


def test_changed_inputs_break_the_seal(table: Path, sealed: str, tmp_path: Path) -> None:
    path, later = tmp_path / "seal.json", tmp_path / "later.csv"
    path.write_text(sealed)
    data = pd.read_csv(table)
    outcome = {"run_id": "big", "n_params": 5e9, "tokens": 1e11, "flops": 3e21, "loss": 2.2}
    grown = pd.concat([data, pd.DataFrame([outcome])])
    grown.to_csv(later, index=False)
    intact = _json(later, "--score", path)  # rows may be added
    assert intact["seals"][0]["inputs"] == "intact"
    assert len(intact["outcomes"]) == 1
    grown.iloc[4, 4] *= 1.01
    grown.drop(index=7).to_csv(later, index=False)
    broken = _json(later, "--score", path, code=1)
    (seal,) = broken["seals"]
    assert seal["inputs"] == "broken"
    assert "loss was" in seal["broken"][0]
    assert "is gone" in seal["broken"][1]
    pd.DataFrame([outcome]).to_csv(later, index=False)  # outcomes alone: nothing to check
    assert _json(later, "--score", path)["seals"][0]["inputs"] == "not in this source"


def test_what_is_measured_already_is_no_forecast(table: Path, tmp_path: Path) -> None:
    row = pd.read_csv(table).iloc[-1]
    path = tmp_path / "seal.json"
    result = _run(table, "--at", f"N={row['n_params']},D={row['tokens']}", "-o", path)
    assert "not a forecast" in result.output
    assert json.loads(path.read_text())["existed"]["measured"]
    assert _json(table, "--score", path)["outcomes"] == []  # a row that was used is no outcome


def test_several_seals_of_one_question(table: Path, sealed: str, tmp_path: Path) -> None:
    """A forecast from fewer runs, then from all: both scored, beside three baselines."""
    data = pd.read_csv(table)
    early, later = tmp_path / "early.csv", tmp_path / "later.csv"
    data[data["n_params"] < 3e8].to_csv(early, index=False)
    seals = [tmp_path / "1.json", tmp_path / "2.json"]
    _run(early, "--at", "N=5e9,D=1e11", "-o", seals[0])
    seals[1].write_text(sealed)
    n, d = pd.Series([5e9, 5e9]).to_numpy(), pd.Series([1e11, 1e11]).to_numpy()
    pd.DataFrame({"run_id": ["a", "b"], "n_params": n, "tokens": d, "flops": 6 * n * d,
                  "loss": loss_of(n, d) * [1.002, 0.998]}).to_csv(later, index=False)  # fmt: skip
    scored = _json(later, *(w for p in seals for w in ("--score", p)))
    assert len(scored["outcomes"]) == 4  # two runs of one question, twice
    for seal in scored["seals"]:
        told = seal["summary"]
        assert told["inside_90"] == [2, 2]
        assert told["binomial_90"] == pytest.approx([0.05**0.5, 1.0])
        assert told["mean_size"] < min(told["baselines"]["nearest"], told["baselines"]["power"])
        assert told["crps"] > 0
    assert "the same question over time" in _run(
        later, *(w for p in seals for w in ("--score", p))
    ).stdout  # fmt: skip


# ---- rungs of an experiment ---------------------------------------------------------------------


def _rung(arch: str, dim: int, state: str = "planned") -> dict[str, Any]:
    """One row of `linscale plan --json`."""
    n = parameter_count(dim)
    return {"run_id": f"{arch}-d{dim}-s0-0123abcd", "arch": arch, "size": f"d{dim}",
            "params_exact": n, "params": n, "params_total": n + 256 * dim,
            "flops_per_token": 6.2 * n + 6 * 256 * dim, "horizons": [5 * n, 10 * n],
            "state": state}  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("runs") / "demo", archs=("llama", "tnl"),
                       dims=(32, 48, 64, 96, 128), log_lines=4)  # fmt: skip


def test_rungs_are_forecast_and_scored(sweep: Path, tmp_path: Path) -> None:
    plan, path = tmp_path / "plan.json", tmp_path / "seal.json"
    rungs = [_rung(a, dim) for a in ("llama", "tnl") for dim in (192, 256)]
    plan.write_text(json.dumps([*rungs, _rung("tnl", 384, "running"), _rung("tnl", 320, "done")]))
    _run(sweep, "--for", plan, "-o", path)
    record = json.loads(path.read_text())
    assert len(record["forecasts"]) == 10  # two horizons of five runs; the finished one is left
    assert record["existed"]["finished"] == ["tnl-d320-s0-0123abcd"]
    assert record["existed"]["recorded"] == ["tnl-d384-s0-0123abcd: running"]
    for each in record["forecasts"]:
        law = LAWS[each["group"]]
        truth = float(law.loss(each["n"], each["d"]))
        assert abs(each["loss"] / truth - 1) < 0.06
    # The larger runs are made: same laws, other noise
    bigger = write_sweep(tmp_path / "bigger", archs=("llama", "tnl"), dims=(192, 256),
                         fractions=(0.5, 1.0), log_lines=4, seed=9)  # fmt: skip
    ids = {d.name.rpartition("-")[0]: d.name for d in bigger.iterdir() if d.is_dir()}
    rungs = [{**_rung(a, dim), "run_id": ids[f"{a}-d{dim}-s0"]} for a in ("llama", "tnl")
             for dim in (192, 256)]  # fmt: skip
    plan.write_text(json.dumps(rungs))
    second = tmp_path / "second.json"
    _run(sweep, "--for", plan, "-o", second)
    scored = _json(bigger, "--score", second)
    assert len(scored["outcomes"]) == 8
    assert scored["seals"][0]["summary"]["inside_90"][0] >= 6
    assert all(row["older"] for row in scored["outcomes"])  # make_runs dates them 2026-11-21


def test_only_chooses_rungs(sweep: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([_rung(a, d) for a in ("llama", "tnl") for d in (192, 256)]))
    record = _json(sweep, "--for", plan, "--only", "arch=tnl,size=d2*")
    assert {f["run_id"] for f in record["forecasts"]} == {"tnl-d256-s0-0123abcd"}
    assert list(record["groups"]) == ["tnl"]
    words = _plain(_run(sweep, "--for", plan, "--only", "colour=red", code=2).output)
    assert "no field 'colour'; choose one of" in words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "nothing to forecast"),
        (["--at", "N=5"], "D not given"),
        (["--at", "X=5"], "write C=1.19e23"),
        (["--at", "C=1e21", "--form", "kaplan"], "cannot be forecast with"),
        (["--at", "C=1e21", "--form", "chinchilla,power_c_e"], "same variables"),
        (["--at", "C=1e21", "--fix", "E=7"], "lowest loss"),
        (["--for", "x.py"], "cannot plan experiments"),
        (["--score", "absent.json"], "cannot be read"),
        (["--score", "absent.json", "--at", "C=1"], "leave out --at"),
    ],
)
def test_refusals_name_the_remedy(table: Path, words: list[str], told: str) -> None:
    assert told in _plain(_run(table, *words, code=2).output)
