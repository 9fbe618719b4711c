"""Imports run one way: no circle of files in any package, and between rooms only downwards.

Imports are read from the source, those inside functions included; those under `TYPE_CHECKING` are
for the type checker alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "analysis", "scaling")
"""From the bottom up; of `scaling` only `cli` imports `analysis`, which reads what runs have
recorded. The public face `linscale` is above them all, but for its files that all stand on."""
FLOORS = {
    "scaling": (
        "system",
        "config",
        "plan",
        "data",
        "record",
        "training",
        "sweep",
        "evaluation",
        "linearization",
        "cli",
    ),
    "analysis": ("io", "laws", "fit", "judge", "forecast", "figures", "report", "cli"),
}
"""The rooms of a package from the bottom up."""

ARROWS_UP = {
    # What a run's text may be, and the tasks and mixtures among it, is checked with its other
    # fields.
    ("scaling/config", "scaling/data"),
}
"""The arrows between rooms that run up, and why."""


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports of a file that happen when it runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from imports(ast.Module([other], []))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        else:
            yield from imports(node)


def file_of(module: str) -> Path | None:
    """The file of a module of ours; None for anybody else's, and for a name inside a module."""
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if module.split(".")[0] in (*PACKAGES, "linscale") and file.is_file():
            return file
    return None


def modules(node: ast.Import | ast.ImportFrom, file: Path) -> Iterator[str]:
    """The dotted names that an import may load; more precise ones first."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    package = file.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
    base = ".".join([*package, *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if file_of(inner) else base


@cache
def arrows(package: str) -> dict[Path, frozenset[Path]]:
    """File -> the files of ours that it imports."""
    found: dict[Path, frozenset[Path]] = {}
    for file in sorted((ROOT / package).rglob("*.py")):
        names = (
            name
            for node in imports(ast.parse(file.read_text(encoding="utf-8")))
            for name in modules(node, file)
        )
        targets = {target for name in names if (target := file_of(name))}
        found[file] = frozenset(targets - {file})
    return found


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def reach(graph: dict[Path, frozenset[Path]]) -> dict[Path, set[Path]]:
    """File -> all files that it imports, directly or by way of others."""
    found: dict[Path, set[Path]] = {}
    for start in graph:
        seen, left = set[Path](), [start]
        while left:
            new = graph[left.pop()] - seen
            seen |= new
            left += new
        found[start] = seen
    return found


def test_no_circle_of_files() -> None:
    graph = {
        file: targets for name in (*PACKAGES, "linscale") for file, targets in arrows(name).items()
    }
    reached = reach(graph)
    circles = {
        frozenset(shown(other) for other in reached[file] if file in reached[other])
        for file in graph
        if file in reached[file]
    }
    assert not circles, f"these files import each other: {[sorted(c) for c in circles]}"


def test_no_package_imports_one_above_it() -> None:
    for number, package in enumerate(PACKAGES):
        for file, targets in arrows(package).items():
            above = set(PACKAGES[number + 1 :])
            if package == "scaling" and "cli" not in file.parts:
                above.add("analysis")
            wrong = [shown(t) for t in targets if t.relative_to(ROOT).parts[0] in above]
            assert not wrong, f"{shown(file)} imports {', '.join(wrong)}"


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_downwards(package: str) -> None:
    floors = {room: number for number, room in enumerate(FLOORS[package])}
    found: dict[tuple[str, str], list[str]] = {}
    for file, targets in arrows(package).items():
        room = file.relative_to(ROOT / package).parts[0]
        if room == "__main__.py":
            continue
        for target in targets:
            if not target.is_relative_to(ROOT / package):
                continue
            other = target.relative_to(ROOT / package).parts[0]
            if floors.get(other, -1) > floors.get(room, -1):
                pair = (f"{package}/{room}", f"{package}/{other}")
                found.setdefault(pair, []).append(f"{shown(file)} -> {shown(target)}")
    known = {pair for pair in ARROWS_UP if pair[0].startswith(f"{package}/")}
    new = [line for pair, lines in found.items() if pair not in known for line in lines]
    assert not new, "these imports run up: " + "; ".join(sorted(new))
    assert known == found.keys(), f"no longer needed in ARROWS_UP: {known - found.keys()}"


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_its_floor(package: str) -> None:
    rooms = {file.parent.name for file in (ROOT / package).glob("*/__init__.py")}
    assert rooms == set(FLOORS[package])
