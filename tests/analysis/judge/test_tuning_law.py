"""Laws of the best learning rate: recovered, at the edge, or not identified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.errors import AnalysisError
from analysis.judge.tuning_law import tuning_law

TRUE = {"k": 1.79, "N": -0.713, "D": 0.307}


def sweeps(*, noise: float = 3e-4, ratios: tuple[float, ...] = (10, 40, 160), tried: int = 7,
           offset: float = 1.0) -> pd.DataFrame:  # fmt: skip
    """Valleys of log loss over log rate, quadratic about the published step law."""
    rng, found = np.random.default_rng(0), []
    for n in np.geomspace(6e7, 1e9, 5):
        for ratio in ratios:
            d = n * ratio
            best = TRUE["k"] * n ** TRUE["N"] * d ** TRUE["D"]
            floor = 1.7 + 400 / n**0.34 + 410 / d**0.28
            for step in np.geomspace(0.25, 4, tried) * offset:
                loss = floor * np.exp(0.01 * np.log(step) ** 2 + noise * rng.standard_normal())
                found.append((n, d, best * step, loss))
    return pd.DataFrame(found, columns=["n_params", "tokens", "lr", "loss"])


def test_the_law_is_recovered_within_its_intervals() -> None:
    law = tuning_law(sweeps(), "lr", bootstrap=300)
    for name, true in TRUE.items():
        low, high = law.interval(name)
        assert low < true < high, name
        assert name == "k" or law.identified(name)
    n, d = 3e8, 6e9
    assert law.predict(n, d) == pytest.approx(TRUE["k"] * n ** TRUE["N"] * d ** TRUE["D"], rel=0.03)


def test_without_noise_it_is_exact() -> None:
    law = tuning_law(sweeps(noise=0.0), "lr", bootstrap=100)
    assert law.values == pytest.approx(TRUE, rel=1e-6)


def test_noisy_valleys_are_not_identified() -> None:
    law = tuning_law(sweeps(noise=0.02), "lr", bootstrap=300)
    assert not (law.identified("N") and law.identified("D"))
    assert any("not identified" in sentence for sentence in law.describe())


def test_one_ratio_leaves_one_exponent() -> None:
    law = tuning_law(sweeps(ratios=(20,)), "lr", bootstrap=100)
    assert list(law.values) == ["k", "N"]
    assert law.values["N"] == pytest.approx(TRUE["N"] + TRUE["D"], abs=0.05)
    assert "N and D move together" in " ".join(law.describe())


def test_an_optimum_outside_what_was_tried_is_left_out() -> None:
    with pytest.raises(AnalysisError, match="smallest value that was tried is the best"):
        tuning_law(sweeps(offset=20.0), "lr")
    with pytest.raises(AnalysisError, match="2 values were tried"):
        tuning_law(sweeps(tried=2), "lr")


def test_a_sweep_given_to_fit_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    sweeps().rename(columns={"n_params": "N", "tokens": "D"}).to_csv(path, index=False)
    done = CliRunner().invoke(app, ["fit", str(path), "--bootstrap", "0"])
    text = " ".join(done.output.split())
    assert "'lr' takes several values at one N and D: a sweep, 105 rows of 15 models" in text
    assert "--best-per N,D" in text
    best = CliRunner().invoke(app, ["fit", str(path), "--bootstrap", "0", "--best-per", "N,D"])
    assert "a sweep" not in " ".join(best.output.split())
    law = CliRunner().invoke(app, ["tuning", str(path), "--bootstrap", "100"])
    assert law.exit_code == 0, law.output
    assert "from 15 of 15 valleys" in " ".join(law.output.split())


@pytest.mark.parametrize("written", ["{:.1f}", "{:,.0f}", "{:.0f}", "{:.6e}"])
def test_a_file_with_both_settings_gives_both_laws(tmp_path: Path, written: str) -> None:
    """Cells of a file are text, and text sorts 1048576.0 before 131072.0."""
    found = []
    for n in (6e7, 1.2e8, 2.7e8, 5.4e8, 1.1e9):
        for d in (2e9, 8e9, 2e10, 5e10):
            best = np.log2(TRUE["k"] * n ** TRUE["N"] * d ** TRUE["D"]), np.log2(0.58 * d**0.571)
            floor = 1.7 + 400 / n**0.34 + 410 / d**0.28
            for rate in np.arange(-14.0, -5.0):
                for batch in np.arange(15.0, 23.0):
                    away = (rate - best[0]) ** 2 + (batch - best[1]) ** 2
                    loss = floor * np.exp(0.004 * away)
                    found.append((n, d, 2**rate, written.format(2**batch), loss))
    path = tmp_path / "sweep.csv"
    pd.DataFrame(found, columns=["N", "D", "lr", "bs", "smooth loss"]).to_csv(path, index=False)
    done = CliRunner().invoke(app, ["tuning", str(path), "--bootstrap", "100", "--json"])
    assert done.exit_code == 0, done.output
    laws = json.loads(done.stdout)["laws"]
    assert laws["lr"]["values"] == pytest.approx(TRUE, rel=1e-3)
    assert laws["bs"]["values"] == pytest.approx({"k": 0.58, "N": 0.0, "D": 0.571}, abs=2e-3)


def test_a_setting_that_is_no_number_is_named() -> None:
    table = sweeps().astype({"lr": object})
    table.loc[3, "lr"] = "high"
    with pytest.raises(AnalysisError, match="'lr' is to be swept, and its cell 'high'"):
        tuning_law(table, "lr")


def test_what_could_be_swept_is_named_as_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "plain.csv"
    path.write_text("params,tokens,loss\n1e6,1e8,3\n2e6,1e8,2.9\n")
    done = CliRunner().invoke(app, ["tuning", str(path)])
    assert "Columns: params, tokens, loss" in " ".join(done.output.split())
    assert "run_id" not in done.output
