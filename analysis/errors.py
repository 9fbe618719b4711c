"""What can go wrong in an analysis: one exception, and typed warnings that travel with results.

An `AnalysisError` stops: the question cannot be answered from this data. A `FitWarning` does not:
the answer is given, and the warning says in a stable `code` (for programs) and a sentence (for
people) what limits it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from linscale.errors import LinscaleError


class AnalysisError(LinscaleError, ValueError):
    """Data or a request that cannot give an answer; the message names the value and the remedy."""


_Result = TypeVar("_Result")


def attempt(work: Callable[[], _Result]) -> _Result | None:
    """What `work` returns; where the records lack what it needs, the reason is printed, and None.

    For notebooks and scripts that go on with what a sweep does have.
    """
    try:
        return work()
    except AnalysisError as error:
        print(f"These records do not show this: {error}")
        return None


@dataclass(frozen=True)
class FitWarning:
    """One limitation of a result.

    Codes are listed in `WARNING_CODES`; they are stable names that programs may test for.
    """

    code: str
    """Stable machine-readable name, a key of `WARNING_CODES`."""
    message: str
    """One or two sentences for a person: what was seen, why it matters, what to do."""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The numbers behind the message (JSON types only)."""

    def __post_init__(self) -> None:
        if self.code not in WARNING_CODES:
            raise AnalysisError(f"unknown warning code {self.code!r}; add it to WARNING_CODES")

    def as_dict(self) -> dict[str, Any]:
        """The warning as JSON types."""
        return {"code": self.code, "message": self.message, "data": dict(self.data)}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> FitWarning:
        """Inverse of `as_dict`."""
        return FitWarning(record["code"], record["message"], record["data"])

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


WARNING_CODES: dict[str, str] = {
    "rows_excluded": "rows were left out of the fit, each with a reason",
    "assumed_compute": "no compute column: C = 6 N D was assumed",
    "units_suspect": "values look as if given in millions or billions",
    "compute_inconsistent": "compute does not follow from N and D in a single convention",
    "compute_scatter": "compute is not a function of N and D",
    "outliers": "points far from the law for their spread",
    "few_points": "hardly more points than parameters",
    "few_clusters": "too few independent runs for a bootstrap over runs",
    "few_sizes": "fewer than four distinct values on an axis",
    "collinear": "N and D move together, so their exponents are not separable",
    "weak_term": "a term in N or D moves the loss less than the noise does",
    "flat_direction": "a combination of parameters that the data do not determine",
    "open_scale": "a scale, such as what repeated data are worth, that the data do not determine",
    "mixed_groups": "a column of words explains most of what one law for all rows misses",
    "high_floor": "E lies so near the lowest loss that it is likely too high",
    "undertrained": "runs with few tokens per parameter",
    "at_bound": "a parameter ended at its bound",
    "no_irreducible": "the irreducible loss went to zero",
    "not_converged": "the optimiser did not reach a stationary point",
    "several_optima": "different starts ended in different optima",
    "unstable_resamples": "some bootstrap refits did not converge",
    "extrapolation": "the prediction lies outside the range of the data",
    "edge_of_envelope": "part of the envelope lies on the first or last model or on a curve's end",
    "few_models_on_envelope": "only a few models reach the envelope",
    "cut_schedule": "losses read in the middle of a learning-rate schedule",
    "budget_refused": "an IsoFLOP budget has no interior minimum or too few points",
    "isoflop_bias": "the IsoFLOP estimate is biased on this grid",
    "optimum_bends": "optimal sizes are no power law of compute",
    "approaches_disagree": "the three approaches give different exponents",
    "exponents_do_not_close": "a + b is not what the compute model implies",
    "one_draw_source": "intervals come from unpaired draws",
    "at_chance": "the task is at chance for every model measured",
    "one_run_decides": "one run makes up most of what leaving runs out one by one changes",
}
"""Every warning code and what it means."""


def alike(reasons: Mapping[str, str]) -> list[tuple[str, str]]:
    """Names and the reason that they share, each reason once."""
    found: dict[str, list[str]] = {}
    for name, why in reasons.items():
        found.setdefault(why, []).append(name)
    return [(", ".join(names), why) for why, names in found.items()]


_UNSETTLED = ("unstable_resamples", "weak_term", "one_run_decides")
_FOLLOWING = {
    "mixed_groups": (
        *_UNSETTLED, "flat_direction", "no_irreducible", "at_bound", "several_optima",
        "high_floor", "undertrained", "outliers", "open_scale",
    ),
    "collinear": (*_UNSETTLED, "flat_direction", "open_scale"),
    "flat_direction": _UNSETTLED,
    "no_irreducible": ("unstable_resamples",),
}  # fmt: skip
"""Of each code, those that say nothing more where it stands."""


def worth_reading(warnings: Iterable[FitWarning]) -> list[FitWarning]:
    """Warnings for a person: without those that follow from another one of them."""
    found = list(warnings)
    said = {code for w in found for code in _FOLLOWING.get(w.code, ())}
    return [w for w in found if w.code not in said]
