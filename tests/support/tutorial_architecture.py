"""The architecture of docs/tutorial_architecture.md, as its reader has it: a file in a folder."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from linscale import code_search
from models.architecture import find

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial_architecture.md"


def source() -> str:
    """The one Python block of the page."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return block


@contextmanager
def my_gla(folder: Path) -> Iterator[types.ModuleType]:
    """The module my_gla, in a folder that is searched for the time of a test."""
    (folder / "my_gla.py").write_text(source(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_search._finder, "folders", [])
        patch.delitem(sys.modules, "my_gla", raising=False)
        code_search.search_also(folder)
        find("my_gla")
        yield sys.modules["my_gla"]
    sys.modules.pop("my_gla", None)
