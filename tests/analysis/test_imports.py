"""The rooms of the analysis import one way, bottom to top, and no file is part of a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import analysis

ROOT = Path(analysis.__file__).parent
ORDER = ("errors", "units", "io", "laws", "fit", "judge", "forecast", "figures", "report", "cli")


def _graph() -> dict[str, set[str]]:
    """Every import of a module of this package, those inside functions and for types too."""
    files = {_name(path): path for path in ROOT.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{each.name}" for each in node.names}
                found |= inner & set(files) or {node.module}
            elif isinstance(node, ast.Import):
                found |= {each.name for each in node.names}
        graph[name] = found & set(files) - {name}
    return graph


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_file_is_part_of_an_import_circle() -> None:
    order = list(TopologicalSorter(_graph()).static_order())  # raises CycleError
    assert len(order) > 50


def test_rooms_import_only_from_below() -> None:
    back = [
        f"{name} imports {other}"
        for name, others in _graph().items()
        for other in others
        if name.count(".") and other.count(".") and _floor(name) < _floor(other)
    ]
    assert back == []


def _floor(name: str) -> int:
    room = name.split(".")[1]
    return len(ORDER) if room == "__main__" else ORDER.index(room)
