"""Units, types and words that every part of the analysis shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.9
"""Level of every interval that nobody asked for otherwise."""
PFLOP_S_DAY = 1e15 * 86400.0
"""FLOPs in one PFLOP/s-day, the unit of compute of 2406.16690 and 2001.08361."""
