"""Tables that pages quote are those of the records that come along."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.forecast.scoring import Seal, score
from analysis.forecast.seal import read_seal
from analysis.io.frames import numbers, where
from analysis.io.records import load_sweep
from experiments.state_tracking_table import markdown, table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def rows_of(page: str) -> list[list[str]]:
    """Cells of every row of every table of a page."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def short(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def test_state_tracking() -> None:
    kept = pd.read_csv(RESULTS / "recall" / "state_tracking.csv")
    assert markdown(kept) in (ROOT / "docs" / "recall.md").read_text("utf-8")
    assert markdown(table(RESULTS / "state_tracking-toy.zip")) == markdown(kept)


@pytest.mark.parametrize(
    ("sweep", "page"), [("mixers", "mixers.md"), ("medium_ladder", "study.md")]
)
def test_four_clocks(sweep: str, page: str) -> None:
    kept = pd.read_csv(RESULTS / f"{sweep}_clocks_2026-12-01.csv")
    kept = kept[kept["arch"] != "llama"]
    said = [row[1:] for row in rows_of(page) if len(row) == 5 and all("[" in c for c in row[1:])
            and "loss" not in row[4]]  # fmt: skip
    clocks = list(dict.fromkeys(kept["clock"]))
    expected = [
        [f"{short(r.ratio)} [{short(r.ratio_lo)}, {short(r.ratio_hi)}]" for r in own.itertuples()]
        for _, own in kept.set_index("clock").loc[clocks].groupby("arch", sort=False)
    ]
    assert len(said) == len(set(kept["arch"]))
    assert sorted(said) == sorted(expected)


def test_turns_of_the_study() -> None:
    kept = pd.read_csv(RESULTS / "medium_ladder_turns_2026-12-01.csv")
    cells = {cell for row in rows_of("study.md") if len(row) == 3 for cell in row[1:]}
    for turn, low, high in zip(*(numbers(kept, c) for c in ("turn", "lo", "hi")), strict=True):
        head = "at 256 tokens already" if np.isnan(turn) else f"from {turn:,.0f} tokens"
        assert f"{head} [{f'{low:,.0f}' if low > 256 else 'below 256'}, {high:,.0f}]" in cells


def test_forecasts_of_the_study() -> None:
    """Scores of the page; and no outcome is older than the seal."""
    path = RESULTS.parent / "forecasts" / "medium_ladder_64x.json"
    sweep = load_sweep(RESULTS / "medium_ladder.zip")
    outcomes = score([Seal(path.name, *read_seal(path))], sweep).table
    rows = {row[0]: row[1:] for row in rows_of("study.md") if " of " in row[1]}
    groups = {"LLaMA": "llama", "TNL": "tnl", "HGRN2": "hgrn2", "cosFormer2": "cosformer2"}
    for label, group in groups.items():
        own = where(outcomes, group=group)
        found = numbers(own, "observed")
        inside = ((found > numbers(own, "lo_90")) & (found < numbers(own, "hi_90"))).sum()
        error = 100 * (numbers(own, "forecast") / numbers(own, "observed") - 1)
        assert rows[label][:3] == [
            f"{inside} of {len(own)}", f"{error.mean():+.1f} %", f"{np.abs(error).mean():.1f} %"
        ]  # fmt: skip
    assert not any(outcomes["older"])


def test_mixers_in_recall() -> None:
    kept = pd.read_csv(RESULTS / "recall" / "mixers_recall.csv")
    said = [row[1:] for row in rows_of("mixers.md") if row[1].replace(",", "").isdecimal()]
    expected = [
        [f"{own['state_numbers'].iloc[0]:,}"]
        + [f"{100 * own.set_index('load')['accuracy'][load]:.0f} %" for load in (2, 4, 8)]
        for _, own in kept.groupby("run")
    ]
    assert sorted(said) == sorted(expected)
