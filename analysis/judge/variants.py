"""Linearized runs of one size that differ in their options are other methods, never other seeds.

    variants({run_id: (base, size, config)}) -> {run_id: "-window=16", ...}

Options that differ within a size name the variant; what only goes with the size does not, and
neither do the teacher, budgets and seeds, nor an option that an older record does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_BUDGETS = ("teacher", "transfer_tokens")
"""Of the section `linearize`: which model, and for how long, rather than how."""


def variants(runs: Mapping[str, tuple[str, str, Mapping[str, Any]]]) -> dict[str, str]:
    """What tells each run from the others of its method; "" where nothing does.

    Args:
        runs: by run_id, the method, the size and config.json.
    """
    options = {run: _options(config) for run, (_, _, config) in runs.items()}
    differ: dict[str, list[str]] = {}
    for method in dict.fromkeys(base for base, _, _ in runs.values()):
        seen: dict[tuple[str, str], set[str]] = {}
        for run, (base, size, _) in runs.items():
            if base == method:
                for name, value in options[run].items():
                    seen.setdefault((name, size), set()).add(value)
        names = dict.fromkeys(name for (name, _), values in seen.items() if len(values) > 1)
        differ[method] = list(names)
    return {
        run: "".join(f"-{name}={options[run][name]}" for name in differ[base]
                     if name in options[run])
        for run, (base, _, _) in runs.items()
    }  # fmt: skip


def _options(config: Mapping[str, Any]) -> dict[str, str]:
    """Options of the layers and of the training that put them there, as text."""
    model, linearize = config.get("model"), config.get("linearize")
    layers = model.get("options") if isinstance(model, Mapping) else {}
    found: dict[str, Any] = dict(layers) if isinstance(layers, Mapping) else {}
    if isinstance(linearize, Mapping):
        found |= {k: v for k, v in linearize.items() if k not in _BUDGETS}
    return {k: _text(v) for k, v in found.items() if not isinstance(v, Mapping)}


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
