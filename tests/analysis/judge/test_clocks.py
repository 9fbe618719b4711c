"""Clocks and turning contexts; the truth by brute force over N."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.fit.fitting import fit_law
from analysis.judge.clocks import BYTES, CLOCKS, FLOPS, SECONDS, TOKENS, Costs, clocks, turning
from analysis.laws.compute_model import SIX_ND, ComputeModel, fit_compute_model
from scaling.cli.main import app
from tests.support.worlds import TRUTH, suite

ROOT = Path(__file__).resolve().parents[3]
LADDER = ROOT / "experiments" / "results" / "small_ladder.zip"
SIZES = np.geomspace(3e7, 1e9, 6)
LOSS = 2.6


def model_of(per_token: np.ndarray) -> ComputeModel:
    return fit_compute_model(SIZES, per_token)


def brute(cost: object) -> tuple[float, float, float]:
    """N, D and the least cost of a function of N a token."""
    n = np.geomspace(1e6, 1e13, 4_000_001)
    left = LOSS - TRUTH["E"] - TRUTH["A"] / n ** TRUTH["alpha"]
    n, left = n[left > 0], left[left > 0]
    d = (TRUTH["B"] / left) ** (1 / TRUTH["beta"])
    total = cost(n) * d  # pyright: ignore[reportCallIssue]
    best = int(total.argmin())
    return float(n[best]), float(d[best]), float(total[best])


def test_every_clock_is_what_brute_force_finds() -> None:
    costs = Costs(
        256, SIX_ND, model_of(2 * SIZES + 100 * SIZES ** (2 / 3)), model_of(1e-9 * SIZES ** (2 / 3))
    )
    found = clocks({"x": fit_law("chinchilla", suite())}, LOSS, {"x": costs}, "x")
    values = dict(zip(found["clock"], found["value"], strict=True))
    n, d, flops = brute(lambda n: 6 * n)
    assert list(values) == list(CLOCKS)
    assert values[FLOPS] == pytest.approx(flops, rel=1e-4)
    assert values[TOKENS] == pytest.approx(d, rel=0.02)
    assert values[BYTES] == pytest.approx(2 * n + 100 * n ** (2 / 3), rel=0.02)
    assert values[SECONDS] == pytest.approx(brute(lambda n: 1e-9 * n ** (2 / 3))[2], rel=1e-4)
    assert found["ratio"].tolist() == [1.0] * 4


def test_half_the_cost_is_twice_the_ratio_in_every_refit() -> None:
    law = fit_law("chinchilla", suite(noise=0.003), bootstrap=100)
    costs = {
        name: Costs(256, model_of(k * SIZES), model_of(2 * k * SIZES))
        for name, k in (("llama", 6.0), ("tnl", 3.0))
    }
    found = clocks({"llama": law, "tnl": law}, LOSS, costs, "llama")
    own = found[found["arch"] == "tnl"].set_index("clock")
    for clock, ratio in ((FLOPS, 2.0), (TOKENS, 1.0), (BYTES, 2.0)):
        row = own.loc[clock]
        assert tuple(row[["ratio", "ratio_lo", "ratio_hi"]]) == pytest.approx((ratio,) * 3)
    assert SECONDS not in own.index
    ends = own[["lo", "value", "hi"]].to_numpy()
    assert np.all(np.diff(ends, axis=1) > 0)


def test_the_order_turns_where_brute_force_says() -> None:
    """Attention costs 600 N^(1/3) a token of context, the other mixer twice the matrices."""
    law = fit_law("chinchilla", suite())
    contexts = tuple(2**k for k in range(4, 15))
    costs = {
        "llama": {c: Costs(c, model_of(6 * SIZES + 600 * c * SIZES ** (1 / 3)), model_of(SIZES))
                  for c in contexts},
        "tnl": {c: Costs(c, model_of(12 * SIZES), model_of(200 * SIZES)) for c in contexts},
    }  # fmt: skip
    row = turning({"llama": law, "tnl": law}, LOSS, costs, "llama", FLOPS).iloc[0]
    other = brute(lambda n: 12 * n)[2]
    low, high = 16.0, 16384.0
    for _ in range(12):
        middle = (low * high) ** 0.5
        attention = brute(lambda n, c=middle: 6 * n + 600 * c * n ** (1 / 3))[2]
        low, high = (low, middle) if attention > other else (middle, high)
    assert row["turn"] == pytest.approx(low, rel=0.1)  # interpolated between doublings
    assert row["text"] == "cheaper at longer contexts"
    never = turning({"llama": law, "tnl": law}, LOSS, costs, "llama", BYTES).iloc[0]
    assert np.isnan(never["turn"])
    assert never["text"] == "dearer at every context from 16 to 16,384"


def test_a_loss_below_the_floor_is_a_note() -> None:
    law = fit_law("chinchilla", suite())
    costs = Costs(256, SIX_ND, model_of(SIZES))
    found = clocks({"x": law}, 1.6, {"x": costs}, "x")
    assert "not above the law's floor" in found["note"].iloc[0]


def test_command(tmp_path: Path) -> None:
    steps = tmp_path / "steps.csv"
    names = ("llama", "tnl", "hgrn2", "cosformer2")
    rows = [(a, n, 1e-9 * n) for a in names for n in (7e3, 4e4, 4e5)]
    pd.DataFrame(rows, columns=["arch", "n_params", "seconds_per_token"]).to_csv(steps, index=False)
    words = ["clocks", str(LADDER), "--steps", str(steps), "--bootstrap", "30"]
    result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"clocks.csv", "clocks.png"}
    result = CliRunner().invoke(app, [*words, "--context", "65536", "--json"])
    record = json.loads(result.stdout)
    assert record["context"] == 65536
    assert record["trained_at"] == [256]
    ratios = {(r["arch"], r["clock"]): r["ratio"] for r in record["clocks"]}
    assert ratios["hgrn2", FLOPS] > 10  # attention over 65,536 tokens is most of what LLaMA costs


def test_steps_that_cannot_be_read(tmp_path: Path) -> None:
    steps = tmp_path / "steps.csv"
    steps.write_text("arch,n_params\nllama,5\n")
    result = CliRunner().invoke(app, ["clocks", str(LADDER), "--steps", str(steps)])
    assert result.exit_code == 2
    assert "no column seconds_per_token" in result.stderr
