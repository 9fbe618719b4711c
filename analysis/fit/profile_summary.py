"""Table and intervals of approaches 1 and 2, whose draws are kept by parameter."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from analysis.errors import AnalysisError
from analysis.fit.uncertainty import quantiles
from analysis.units import Array


def interval_of(
    draws: Mapping[str, Array], params: Mapping[str, float], name: str, level: float, call: str
) -> tuple[float, float]:
    """Percentile interval of a parameter; `call` is what makes draws.

    Raises:
        AnalysisError: no draws of that name.
    """
    if name not in draws:
        raise AnalysisError(
            f"no draws of {name!r}: call {call}; parameters are {', '.join(params)}"
        )
    low, high = quantiles(draws[name], level)
    return float(low), float(high)


def summary(draws: Mapping[str, Array], params: Mapping[str, float], level: float) -> pd.DataFrame:
    """Columns parameter, value, and where there are draws se, lo, hi."""
    frame = pd.DataFrame({"parameter": list(params), "value": list(params.values())})
    if draws:
        ends = [quantiles(draws[p], level) for p in params]
        frame["se"] = [float(draws[p].std(ddof=1)) for p in params]
        frame["lo"], frame["hi"] = [float(e[0]) for e in ends], [float(e[1]) for e in ends]
    return frame
