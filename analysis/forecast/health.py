"""Is a live run where the law of loss over tokens expects it? One number for each, with its band.

The law of an architecture is fitted to its finished runs and to each live one but for its last
stretch, `LATEST` of the tokens; what is logged there is held against it. A run whose mean loss
there leaves a band of `SIGMAS` standard deviations, of noise and of what the law misses, is marked.
Something has then changed on the way: the data, the machine, the numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from analysis.errors import AnalysisError
from analysis.forecast.decays import curves_of
from analysis.forecast.paths import Stretch, stretches
from analysis.forecast.trajectory_fit import FORM, Trajectory, fit_trajectory
from analysis.io.frames import groups, where, words
from analysis.io.sweep import Sweep

LATEST = 0.1
"""Share of a live run's tokens that is held against the law."""
FEWEST_LINES, FEWEST_WINDOWS = 3, 4
"""Logged steps in that share, and windows before it, without which nothing is said."""
MISSED = 0.01
"""What the law misses of a stretch that was not fitted, in ln L (standard deviation)."""
SIGMAS = 3.0


@dataclass(frozen=True)
class Health:
    """The latest losses of a live run against the law."""

    deviation: float
    """In per cent of loss; above 0 is worse than expected."""
    band: float
    """Half-width in per cent of loss."""

    @property
    def outside(self) -> bool:
        """Whether it has left its band."""
        return abs(self.deviation) > self.band

    @property
    def words(self) -> str:
        """For example `+0.4 % of loss off its law, within the band of ± 3.2 %`."""
        place = "outside" if self.outside else "within"
        return (
            f"{self.deviation:+.1f} % of loss off its law, {place} the band of ± {self.band:.1f} %"
        )

    def as_dict(self) -> dict[str, float | bool]:
        """JSON types."""
        return {"deviation": self.deviation, "band": self.band, "outside": self.outside}


def health(sweep: Sweep) -> dict[str, Health]:
    """What is known of each unfinished run; those without enough losses, or whose architecture has
    no finished run to learn from, are not there."""
    found: dict[str, Health] = {}
    for arch in groups(sweep.live, "arch") if len(sweep.live) else []:
        live = set(words(where(sweep.live, arch=arch), "run_id"))
        every = stretches(curves_of(sweep, arch))
        known = [part for s in every if (part := _before(s, every) if s.run_id in live else s)]
        try:
            law = fit_trajectory(known)
        except AnalysisError:
            continue  # nothing to learn from yet
        for run_id in sorted(live):
            last = [s for s in every if s.run_id == run_id and (s.lines > 0).any()]
            if last and (one := _held_against(law, last, known)) is not None:
                found[run_id] = one
    return found


def _border(own: list[Stretch]) -> float:
    return (1 - LATEST) * max(float(s.tokens[s.lines > 0].max()) for s in own)


def _before(stretch: Stretch, every: list[Stretch]) -> Stretch | None:
    """A live run's stretch but for what is held against the law."""
    own = [s for s in every if s.run_id == stretch.run_id and (s.lines > 0).any()]
    if not own:
        return None
    keep = stretch.tokens < _border(own)
    return replace(
        stretch, tokens=stretch.tokens[keep], loss=stretch.loss[keep], lines=stretch.lines[keep]
    )


def _held_against(law: Trajectory, own: list[Stretch], known: list[Stretch]) -> Health | None:
    border, run_id = _border(own), own[0].run_id
    before = sum(int((s.lines > 0).sum()) for s in known if s.run_id == run_id)
    gaps, weights = [], []
    for stretch in own:
        late = (stretch.lines > 0) & (stretch.tokens >= border)
        if late.any():
            expected = law.training(stretch, stretch.tokens[late])
            gaps.append(np.log(stretch.loss[late] / expected))
            weights.append(stretch.lines[late])
    lines = float(np.concatenate(weights).sum()) if weights else 0.0
    if lines < FEWEST_LINES or before < FEWEST_WINDOWS:
        return None
    gap = float(np.average(np.concatenate(gaps), weights=np.concatenate(weights)))
    spread = math.sqrt(law.noise**2 / lines + FORM**2 + MISSED**2)
    return Health(100 * gap, 100 * SIGMAS * spread)
