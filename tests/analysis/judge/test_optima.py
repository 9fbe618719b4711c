"""Laws of optimum tables: the four architectures of Evo, and what too few optima say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.errors import AnalysisError
from analysis.judge.optima import optima_law

EVO = {"Transformer++": (0.552, 0.551), "Mamba": (0.388, 0.487), "Hyena": (0.504, 0.499),
       "StripedHyena": (0.483, 0.539)}  # fmt: skip
"""a and b of N*(C) and D*(C), as published for DNA."""


def _optima(a: float, b: float, noise: float = 0.0) -> pd.DataFrame:
    c = np.geomspace(8e18, 8e19, 5)
    shake = np.exp(noise * np.random.default_rng(0).standard_normal((2, 5)))
    return pd.DataFrame({"flops": c, "n_params": 2 * c**a * shake[0],
                         "tokens": 0.5 * c**b * shake[1]})  # fmt: skip


@pytest.mark.parametrize("arch", EVO)
def test_exponents_of_published_architectures(arch: str) -> None:
    law = optima_law(_optima(*EVO[arch]))
    assert (law.n.exponent, law.d.exponent) == pytest.approx(EVO[arch], abs=1e-9)
    assert law.derived == ""


def test_intervals_are_those_of_a_regression() -> None:
    table = _optima(0.5, 0.5, noise=0.05)
    expected = stats.linregress(np.log(table["flops"]), np.log(table["n_params"]))
    reach = stats.t.ppf(0.95, 3) * expected.stderr
    assert optima_law(table).interval("a") == pytest.approx(
        (expected.slope - reach, expected.slope + reach)
    )


def test_a_missing_side_follows_from_6nd_and_is_said() -> None:
    law = optima_law(_optima(0.5, 0.4).drop(columns="tokens"))
    assert law.derived == "D"
    assert law.n.exponent + law.d.exponent == pytest.approx(1.0)


def test_what_is_no_table_of_optima_is_refused() -> None:
    with pytest.raises(AnalysisError, match="--compute"):
        optima_law(pd.DataFrame({"n_params": [1.0]}))
    with pytest.raises(AnalysisError, match="needs N"):
        optima_law(pd.DataFrame({"flops": [1e18, 1e19]}))
    with pytest.raises(AnalysisError, match="needs two"):
        optima_law(_optima(0.5, 0.5).head(1))


def test_command(tmp_path: Path) -> None:
    parts = [_optima(*ab).assign(arch=arch) for arch, ab in EVO.items()]
    table = pd.concat(parts).rename(columns={"flops": "C", "n_params": "N_opt", "tokens": "D_opt"})
    table.to_csv(tmp_path / "optima.csv", index=False)
    done = CliRunner().invoke(app, ["optima", str(tmp_path / "optima.csv"), "--json"])
    assert done.exit_code == 0, done.output
    laws = json.loads(done.output)["laws"]
    assert {k: (round(v["a"], 3), round(v["b"], 3)) for k, v in laws.items()} == EVO
    shown = CliRunner().invoke(app, ["optima", str(tmp_path / "optima.csv")])
    assert "Mamba, 5 optima: N* =" in " ".join(shown.output.split())


def test_several_optima_of_one_budget_are_asked_about(tmp_path: Path) -> None:
    parts = [_optima(a, b).assign(model=name) for name, (a, b) in EVO.items()]
    pd.concat(parts).to_csv(tmp_path / "t.csv", index=False)
    done = CliRunner().invoke(app, ["optima", str(tmp_path / "t.csv")])
    said = " ".join(done.output.split())
    assert "20 of 20 optima share their C with others of one law" in said
    assert "--group ('model'?)" in said
    done = CliRunner().invoke(app, ["optima", str(tmp_path / "t.csv"), "--group", "model"])
    assert "share their C" not in done.output
    for name, (a, b) in EVO.items():
        (line,) = [x for x in done.output.splitlines() if x.startswith(f"{name},")]
        assert f"C^{a:.3f}" in line
        assert f"C^{b:.3f}" in line
