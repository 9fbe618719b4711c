"""Laws of a table of optima: N*(C) and D*(C), where somebody has found the optima already.

    optima_law(table) -> OptimaLaw
        one row a budget: C and N*, D* or both; log N* and log D* are fitted straight in log C

The missing one of N* and D* is computed by C = 6 N D, and that is said: a + b is then 1 whatever
the truth. Intervals are Student's t about the line; three optima give wide ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from analysis.errors import AnalysisError
from analysis.fit.lines import Line, fit_line
from analysis.io.frames import numbers
from analysis.units import LEVEL


@dataclass(frozen=True)
class OptimaLaw:
    """N* = k_N C^a and D* = k_D C^b."""

    n: Line
    d: Line
    budgets: int
    derived: str
    """Which of N and D was computed by C = 6 N D; empty where both are given."""

    def interval(self, which: str, level: float = LEVEL) -> tuple[float, float]:
        """Of the exponent `a` or `b`; NaN with two optima."""
        line = self.n if which == "a" else self.d
        freedom = self.budgets - 2
        if freedom < 1:
            return float("nan"), float("nan")
        reach = float(stdtrit(freedom, (1 + level) / 2)) * line.se
        return line.exponent - reach, line.exponent + reach

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "a": self.n.exponent, "b": self.d.exponent,
            "a_interval": list(self.interval("a")), "b_interval": list(self.interval("b")),
            "n_coefficient": self.n.coefficient, "d_coefficient": self.d.coefficient,
            "budgets": self.budgets, "level": LEVEL, "derived": self.derived,
        }  # fmt: skip


def optima_law(table: pd.DataFrame) -> OptimaLaw:
    """Fits the optima of one group.

    Args:
        table: columns flops, and n_params, tokens or both; a row an optimum.

    Raises:
        AnalysisError: no C, neither N nor D, or fewer than two budgets.
    """
    if "flops" not in table:
        raise AnalysisError("a table of optima needs the compute of each (--compute)")
    given = [name for name in ("n_params", "tokens") if name in table]
    if not given:
        raise AnalysisError("a table of optima needs N* (--params), D* (--tokens) or both")
    columns = {name: numbers(table, name) for name in ("flops", *given)}
    good = np.all([np.isfinite(v) & (v > 0) for v in columns.values()], axis=0)
    columns = {name: values[good] for name, values in columns.items()}
    c = columns["flops"]
    if len(np.unique(c)) < 2:
        raise AnalysisError(f"{len(np.unique(c))} budget(s): a law of optima needs two, and an "
                            "interval three")  # fmt: skip
    n = columns["n_params"] if "n_params" in columns else c / (6 * columns["tokens"])
    d = columns["tokens"] if "tokens" in columns else c / (6 * columns["n_params"])
    derived = "" if len(given) == 2 else "N" if "tokens" in given else "D"
    return OptimaLaw(fit_line(c, n), fit_line(c, d), len(c), derived)


def several_at_one_budget(table: pd.DataFrame) -> list[str]:
    """A warning where one group has several optima at a budget: they may be of several models.

    Args:
        table: columns flops and arch; other columns of words are named as what may tell them apart.
    """
    pairs = list(zip(table["arch"], table["flops"], strict=True)) if "flops" in table else []
    repeated = sum(pairs.count(pair) > 1 for pair in pairs)
    if not repeated:
        return []
    taken = set(table.attrs.get("names", {}).values())
    own = [name for name in table.attrs.get("columns", []) if name not in taken]
    words = [name for name in own if not pd.api.types.is_numeric_dtype(table[name])]
    able = [repr(name) for name in words if 1 < len(set(table[name])) <= len(table) / 2]
    hint = f" ({', '.join(able)}?)" if able else ""
    return [
        f"WARNING: {repeated} of {len(table)} optima share their C with others of one law: if they "
        f"are of several models, name the column that tells them apart with --group{hint}"
    ]
