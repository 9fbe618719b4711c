"""The part of a report on forecasts that were sealed before: stars, outcomes, scores; and how the
runs that are under way stand to the law of their curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis.figures import sealed_forecasts
from analysis.forecast.health import health
from analysis.forecast.scoring import Scores, Seal, fitted_on, score, score_words, stars
from analysis.forecast.seal import read_seal
from analysis.io.frames import groups, where
from analysis.io.sweep import Sweep
from analysis.report.page import Page
from analysis.report.report_figures import Drawn


class Sealed:
    """Sealed forecasts and their scores against a sweep."""

    def __init__(self, paths: Sequence[Path], sweep: Sweep) -> None:
        """
        Raises:
            AnalysisError: a file that holds no sealed forecast.
        """
        seals = [Seal(path.name, *read_seal(path)) for path in paths]
        self.scores: Scores = score(seals, sweep)
        self.table: pd.DataFrame = stars(seals, self.scores)
        self.fitted: pd.DataFrame = fitted_on(seals)

    @property
    def drawn(self) -> Drawn:
        """The figure of the stars."""
        found = self.scores.table
        lines = {
            g: score_words(where(found, group=g).to_dict("records") if len(found) else [])
            for g in groups(self.table, "arch")
        }
        return Drawn(
            "forecasts",
            sealed_forecasts(self.table, lines, self.fitted),
            "Forecasts sealed before the runs they predict: open stars with 90 % intervals for one "
            "further run. Filled points: what was measured since. Small points: what the law was "
            "fitted to.",
            wide=True,
        )

    @property
    def words(self) -> list[str]:
        """A sentence for each seal."""
        told: list[str] = []
        found = self.scores.table
        for each in self.scores.seals:
            own = where(found, seal=each["name"]).to_dict("records") if len(found) else []
            state = f"BROKEN ({'; '.join(each['broken'])})" if each["broken"] else "intact"
            older = sum(bool(row["older"]) for row in own)
            told.append(
                f"{each['name']}, sealed {each['sealed_at']}, {state}: {score_words(own)}"
                + (f"; {len(each['waiting'])} forecast(s) wait" if each["waiting"] else "")
                + (f"; {older} outcome(s) are older than the seal" if older else "")
            )
        return told


def add_health(page: Page, sweep: Sweep) -> None:
    """How live runs stand to the law of their curves; nothing where no run is live."""
    found = health(sweep)
    if found:
        page.heading("Runs under way")
        ordered = sorted(found.items(), key=lambda pair: (not pair[1].outside, pair[0]))
        page.bullets(f"{run_id}: {each.words}" for run_id, each in ordered)
