"""The map of the code has a line for every sub-package, and no other."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOP = ("linscale", "scaling", "models", "analysis", "experiments", "dependencies")


def shown() -> set[str]:
    """Folders that the map shows, by its indentation."""
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Map of the code")[1]
    found: set[str] = set()
    above: list[str] = []
    for indent, name in re.findall(r"^( *)(\w+)/ +\S", section.split("```")[1], re.MULTILINE):
        above = [*above[: len(indent) // 2], name]
        found.add("/".join(above))
    return found


def test_every_package_is_on_the_map() -> None:
    packages = {
        str(path.parent.relative_to(ROOT))
        for top in TOP
        for path in (ROOT / top).rglob("__init__.py")
    }
    deep = {
        name for name in packages if name.count("/") > 1 and not name.startswith("models/kernels")
    }
    small = {"models/interop/remote"}  # code that exports carry with them
    assert shown() == packages - deep - small


def test_every_package_says_what_lives_in_it() -> None:
    for name in shown():
        assert (ROOT / name / "__init__.py").read_text("utf-8").startswith('"""'), name
