"""Which code a process finds: what is installed first, the user's own modules after it.

Many projects have packages named `models` or `analysis` of their own. Therefore

1. children are started without their working directory on the search path (`python_command`,
   `child_environment`; PYTHONSAFEPATH reaches their children too);
2. the folder of an experiment file is searched after everything installed (`search_also`), by a
   finder at the end of `sys.meta_path`: at the end of `sys.path` it would come before an editable
   installation, whose finder stands last. Children learn these folders from LINSCALE_PATH.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

VARIABLE = "LINSCALE_PATH"
"""Folders with modules of the user, separated as in PATH; searched last."""


class _UserCode(MetaPathFinder):
    """Finds modules in the user's folders that no other finder knows."""

    def __init__(self) -> None:
        self.folders: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None:  # inside a package, which says where itself
            return None
        spec = PathFinder.find_spec(fullname, self.folders)
        if spec is None or spec.origin is not None:
            return spec
        # A folder without __init__.py. One without Python in it is data (wandb/, datasets/).
        holds = spec.submodule_search_locations or ()
        return spec if any(next(Path(p).glob("*.py"), None) for p in holds) else None


_finder = _UserCode()


def search_also(*folders: Path) -> None:
    """Let this process, and children that it starts later, import modules from these folders.

    They are searched after everything installed, the latest folders first. Folders that
    LINSCALE_PATH names are searched too.
    """
    named = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]
    wanted = [str(folder.resolve()) for folder in folders]
    _finder.folders = list(dict.fromkeys([*wanted, *_finder.folders, *named]))
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)


def searched() -> list[str]:
    """The folders that are searched after everything installed."""
    return list(_finder.folders)


def folders_of(file: Path) -> list[Path]:
    """Where modules that a Python file imports may lie: beside it, and above its package."""
    folder = file.resolve().parent
    top = folder
    while (top / "__init__.py").is_file():
        top = top.parent
    return [folder] if top == folder else [folder, top]


def child_variables() -> dict[str, str]:
    """Environment variables that make a child search as this process does."""
    searched = {VARIABLE: os.pathsep.join(_finder.folders)} if _finder.folders else {}
    return {"PYTHONSAFEPATH": "1", **searched}


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child process: ours, `child_variables` and `extra`."""
    return {**os.environ, **child_variables(), **(extra or {})}


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module without searching the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]
