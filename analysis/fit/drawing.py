"""How a result draws itself: figures register for a kind of result, `.plot()` asks for them.

Figures stand above fits and know them; a fit knows no figure. `analysis.figures.plots` registers a
function for every kind of result with `draws`, and is loaded when the first figure is asked for, so
that fitting never loads matplotlib.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIGURES, _PRESETS = "analysis.figures.plots", "analysis.figures.presets"
_draw: dict[type, Callable[..., Any]] = {}


F = TypeVar("F", bound=Callable[..., Any])


def draws(kind: type) -> Callable[[F], F]:
    """Decorator: the function draws results of this kind."""

    def register(function: F) -> F:
        _draw[kind] = function
        return function

    return register


def figure_of(result: object, *, style: str = "house", **options: Any) -> Figure:
    """The figure of a result; `options` are those of the function that draws its kind.

    Args:
        result: of a kind that has registered.
        style: where it will be printed, such as "icml-single-serif" (`analysis.figures.presets`).

    Raises:
        AnalysisError: an unknown style.
    """
    importlib.import_module(_FIGURES)
    with importlib.import_module(_PRESETS).use(style):
        return _draw[type(result)](result, **options)
