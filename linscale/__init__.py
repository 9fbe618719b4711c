"""Linscale: scaling laws for linear-complexity language models, under one name.

    from linscale import load_sweep, fit_law, toy_config, build

The names, and where each lives, are those of `__init__.pyi`, which editors and type checkers read
too. A name is imported when it is first asked for: `import linscale` loads neither torch, pandas
nor matplotlib.
"""

from __future__ import annotations

from typing import Any

from linscale import installation

_PLACES = installation.places()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = installation.version()
    elif name in _PLACES:
        value = installation.load(name, *_PLACES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_PLACES, "__version__", "__doc__", "__file__", "__name__"})
