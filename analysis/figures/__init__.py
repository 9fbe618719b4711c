"""Every figure of the suite: functions from tidy frames to a matplotlib `Figure`.

Figures draw; they fit nothing. What they need (points, bands, draws) comes as data frames with the
columns named in their docstrings, so they also draw other people's numbers. A band has columns
x, y, lo, hi and `inside` (False where the law is extrapolated: drawn dashed).

Artists carry a gid "g:<group>" so that the report page can switch architectures on and off, and
points carry hover texts (`analysis.figures.hover`).
"""

from analysis.figures.accuracy import accuracy_compute, downstream
from analysis.figures.curves import learning_curves, scaling_collapse
from analysis.figures.fit_checks import bootstrap_cloud, holdout, residuals, rolling
from analysis.figures.laws_in_compute import loss_compute, optimum
from analysis.figures.multipliers import multipliers, throughput
from analysis.figures.sealed import sealed_forecasts
from analysis.figures.shares import shares
from analysis.figures.surface import contours, valleys
from analysis.figures.varied import varied

__all__ = [
    "accuracy_compute",
    "bootstrap_cloud",
    "contours",
    "downstream",
    "holdout",
    "learning_curves",
    "loss_compute",
    "multipliers",
    "optimum",
    "residuals",
    "rolling",
    "scaling_collapse",
    "sealed_forecasts",
    "shares",
    "throughput",
    "valleys",
    "varied",
]
