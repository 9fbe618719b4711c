"""The cheapest model to train and to run; the truth by brute force over N."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.judge.inference import cheapest, deployments, serving
from scaling.cli.main import app
from tests.support.worlds import TRUTH, loss_of, suite

SIZES = np.geomspace(3e7, 1e9, 6)


def _serving(per_context: float = 0.0, context: int = 1):
    """2 N FLOPs a token, and attention that grows as N^(1/3) for every token of the context."""
    return serving(SIZES, 2 * SIZES + per_context * context * SIZES ** (1 / 3),
                   (1.0 + per_context * context) * SIZES ** (2 / 3), context)  # fmt: skip


def _brute(loss: float, demand: float, extra: float = 0.0) -> tuple[float, float]:
    """N and total FLOPs."""
    n = np.geomspace(1e6, 1e13, 4_000_001)
    left = loss - TRUTH["E"] - TRUTH["A"] / n ** TRUTH["alpha"]
    n, left = n[left > 0], left[left > 0]
    d = (TRUTH["B"] / left) ** (1 / TRUTH["beta"])
    total = 6 * n * d + demand * (2 * n + extra * n ** (1 / 3))
    return float(n[total.argmin()]), float(total.min())


@pytest.mark.parametrize("demand", [0.0, 1e10, 1e12, 1e14])
def test_brute_force_finds_the_same_model(demand: float) -> None:
    found = cheapest(fit_law("chinchilla", suite()), 2.6, demand, _serving())
    n, total = _brute(2.6, demand)
    assert found.n == pytest.approx(n, rel=0.01)
    assert found.total == pytest.approx(total, rel=1e-5)
    assert loss_of(np.array(found.n), np.array(found.d)) == pytest.approx(2.6, rel=1e-6)


def test_without_demand_it_is_the_compute_optimal_model() -> None:
    law = fit_law("chinchilla", suite())
    found = cheapest(law, 2.6, 0.0, _serving())
    best = law.optimal(found.training, extrapolate=True).iloc[0]
    assert (best["n"], best["loss"]) == pytest.approx((found.n, 2.6), rel=5e-3)


def test_demand_makes_models_smaller_and_longer_trained() -> None:
    law = fit_law("chinchilla", suite())
    ends = [cheapest(law, 2.6, demand, _serving()) for demand in (0.0, 1e11, 1e13)]
    assert ends[0].n > ends[1].n > ends[2].n
    assert ends[0].d < ends[1].d < ends[2].d
    assert ends[2].outside.startswith("N D is") or ends[2].outside == ""


def test_a_bounded_state_wins_at_long_contexts() -> None:
    """Two architectures with one law: at equal loss only what decoding costs can differ."""
    laws = {"llama": fit_law("chinchilla", suite(noise=0.002), bootstrap=100),
            "tnl": fit_law("chinchilla", suite(noise=0.002), bootstrap=100)}  # fmt: skip
    ratios: list[float] = []
    for context in (1_000, 100_000):
        at = {"llama": _serving(20.0, context), "tnl": _serving()}
        table = deployments(laws, 2.6, 1e13, at, "llama").set_index("arch")
        ratios.append(float(table.loc["tnl", "ratio"]))
        assert table.loc["tnl", "ratio_lo"] <= ratios[-1] <= table.loc["tnl", "ratio_hi"]
        n, total = _brute(2.6, 1e13, 20.0 * context)
        assert table.loc["llama", "total"] == pytest.approx(total, rel=0.05)
        del n
    assert ratios[1] < ratios[0] < 1.0


def test_a_loss_below_the_floor_is_refused_by_name() -> None:
    law = fit_law("chinchilla", suite())
    with pytest.raises(AnalysisError, match=r"not above the law's floor E = 1\.69"):
        cheapest(law, 1.5, 1e12, _serving())
    table = deployments({"x": law}, 1.5, 1e12, {"x": _serving()}, "x")
    assert "no model reaches it" in str(table.loc[0, "note"])
    with pytest.raises(AnalysisError, match="no N and D"):
        cheapest(fit_law("power_c_e", suite()), 2.6, 1.0, _serving())


def _table(tmp_path: Path) -> Path:
    """Two architectures of one law; attention reads 32k tokens at every token it makes."""
    parts = []
    for arch, extra in (("attention", 3e5), ("state", 0.0)):
        frame = suite()[["n_params", "tokens", "loss"]].assign(arch=arch)
        n = frame["n_params"].to_numpy()
        parts.append(frame.assign(decode=2 * n + extra * n ** (1 / 3), cache=(1 + extra) * n / 1e6))
    pd.concat(parts).to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_a_table_of_runs_trained_elsewhere(tmp_path: Path) -> None:
    arguments = ["inference", str(_table(tmp_path)), "--loss", "2.6", "--demand", "1e12",
                 "--bootstrap", "0", "--json"]  # fmt: skip
    named = [*arguments, "--decoding", "decode", "--kept", "cache"]
    done = CliRunner().invoke(app, named)
    assert done.exit_code == 0, done.output
    models = {m["arch"]: m for m in json.loads(done.output)["models"]}
    for arch, extra in (("attention", 3e5), ("state", 0.0)):
        n, total = _brute(2.6, 1e12, extra)
        assert models[arch]["n"] == pytest.approx(n, rel=0.01)
        assert models[arch]["total"] == pytest.approx(total, rel=1e-4)
        assert models[arch]["kept"] == pytest.approx(
            (1 + extra) * models[arch]["n"] / 1e6, rel=1e-3
        )
    plain = CliRunner().invoke(app, arguments)  # 2 N a token
    totals = {m["arch"]: m["total"] for m in json.loads(plain.stdout)["models"]}
    assert totals["attention"] == pytest.approx(_brute(2.6, 1e12)[1], rel=1e-4)
    for more, message in ((["--decoding", "x"], "no column 'x' for --decoding"),
                          (["--column", "size=n"], "give loss=NAME"),
                          (["-o", str(tmp_path)], "those of one")):  # fmt: skip
        wrong = CliRunner().invoke(app, [*arguments, *more])
        assert wrong.exit_code == 2
        assert message in " ".join(wrong.output.split())
