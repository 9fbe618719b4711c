"""Experiment files: Python files with a `runs()` that lists run configurations.

A file whose question can also be asked of small models on a CPU takes `runs(toy: bool = False)`.

A file is loaded by its path, so it may live anywhere; its stem names the sweep. It may import
modules that lie beside it; a name that is also installed means what is installed. Those that come
with Linscale are also found by their names, from any folder (`linscale.shipped`). Overrides from
the command line are applied to every run, after the file.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import math
import re
import sys
import tokenize
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from linscale.code_search import folders_of, search_also
from linscale.errors import LinscaleError
from linscale.installation import PACKAGES, missing
from linscale.selection import chosen, fields_of
from linscale.shipped import experiment_file
from models.config import ConfigError
from scaling.config.hyper_laws import Law, apply_law
from scaling.config.run import RunConfig

CHECKED = 1000
"""Runs up to which a file is always read twice, to see that it lists the same; larger ones where
they speak of chance or time."""
_DRAWS = re.compile(r"\b(random|rng|default_rng|secrets|uuid\d?|urandom|time|datetime)\b")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What an experiment file says."""

    name: str
    """Stem of the file; names the sweep."""
    path: Path
    """Where it was read."""
    text: str
    """Its source, kept in the sweep's record."""
    runs: list[RunConfig]
    """Its runs, overrides applied."""


def load_experiment(
    path: Path,
    overrides: list[str],
    toy: bool = False,
    law: Law = "constant",
    devices: int = 1,
    only: str | None = None,
) -> Experiment:
    """Read an experiment file and apply dotted overrides to each of its runs.

    Args:
        path: the file, or the name of an experiment that comes with Linscale.
        overrides: `field=value`, for every run; they have the last word.
        toy: take the file's small variant, in a sweep of its own (`<stem>-toy`).
        law: sets learning rate and batch of each run by its size and budget
            (`scaling.config.hyper_laws`).
        devices: the batch of a law is a multiple of so many sequences.
        only: which of the runs, overrides applied (`linscale.selection`); None: all.

    Raises:
        LinscaleError: the file is missing, fails to run, or does not list distinct runs; or the
            selection leaves none.
        ConfigError: a configuration or an override cannot work.
    """
    path = experiment_file(path)
    runs = call(path, "runs", toy)
    text = _text(path)
    if not isinstance(runs, list) or not all(isinstance(run, RunConfig) for run in runs):
        raise LinscaleError(f"{path}: runs() must return a list of RunConfig.")
    if not runs:
        raise LinscaleError(f"{path}: runs() returned no run.")
    if (len(runs) <= CHECKED or _DRAWS.search(text)) and call(path, "runs", toy) != runs:
        raise LinscaleError(
            f"{path}: runs() gives other runs each time it is called, so that none could be "
            "resumed or recognised. Draw random numbers, such as seeds, from a generator with a "
            "fixed seed, or write them down."
        )
    configs = [_configured(run, overrides, law, devices) for run in runs]
    repeated = [name for name, count in Counter(run.run_id for run in configs).items() if count > 1]
    if repeated:
        raise LinscaleError(
            f"{path}: {len(repeated)} runs are the same twice, first {repeated[0]}; an override "
            "that sets the field the runs differ in (model.arch, seed, ...) makes them equal."
        )
    name = f"{path.stem}-toy" if toy else path.stem
    kept = chosen(configs, only, lambda r: fields_of(r.to_json(), run_id=r.run_id, size=r.size))
    return Experiment(name=name, path=path, text=text, runs=kept)


def _text(path: Path) -> str:
    """The source of a file, in the encoding that it declares.

    Raises:
        LinscaleError: it is in another one.
    """
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (UnicodeDecodeError, SyntaxError) as error:
        raise LinscaleError(
            f"{path}: is not UTF-8 text ({error}); convert it, for example `iconv -f latin1 -t "
            "utf-8`."
        ) from error


def _configured(run: RunConfig, overrides: list[str], law: Law, devices: int) -> RunConfig:
    """Overrides come first, as a law depends on budget and devices, and again after it."""
    if overrides:
        run = run.override(overrides)
    if law == "constant":
        return run
    own = run.parallel.world_size
    run = apply_law(run, law, multiple=math.lcm(devices, own) // own)
    return run.override(overrides) if overrides else run


def defines(path: Path, function: str) -> bool:
    """Whether a file has this function at its top level; nothing of it is run."""
    try:
        text = experiment_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return re.search(rf"^def {function}\(", text, re.MULTILINE) is not None


def call(path: Path, function: str, toy: bool = False) -> object:
    """The result of a file's function; errors in the file name its own line, not our internals.

    Raises:
        LinscaleError: the file is missing or fails, or has no such function.
        ConfigError: a configuration in it cannot work.
    """
    path = experiment_file(path)
    if "=" in path.name and not path.exists():
        raise LinscaleError(f"{path}: the experiment file comes first, overrides after it.")
    if path.is_dir():
        raise LinscaleError(f"{path}: is a directory; give one of its experiment files (.py).")
    if not path.is_file():
        raise LinscaleError(f"{path}: no such experiment file.{_nearest(path)}")
    spec = importlib.util.spec_from_file_location(f"linscale_experiment_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise LinscaleError(f"{path}: an experiment is a Python file (.py).")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _text(path)
    search_also(*folders_of(path))
    try:
        spec.loader.exec_module(module)
        found = getattr(module, function, None)
        if found is None:
            raise LinscaleError(f"{path}: has no function {function}() that returns a list.")
        if toy and "toy" not in inspect.signature(found).parameters:
            raise LinscaleError(
                f"{path}: has no toy variant; its {function}() takes no argument `toy: bool`."
            )
        return found(toy=True) if toy else found()
    except (LinscaleError, ConfigError):
        raise
    except SystemExit as error:
        raise LinscaleError(
            f"{path}:{_line(error, path)}: sys.exit({error.code!r}) ends the file before its runs "
            "are listed; leave it out, or put it under `if __name__ == '__main__':`."
        ) from error
    except Exception as error:
        where = f"{path}:{_line(error, path)}"
        if isinstance(error, ModuleNotFoundError):
            raise LinscaleError(f"{where}: {_not_found(error, path)}") from error
        raise LinscaleError(f"{where}: {type(error).__name__}: {error}") from error


def _line(error: BaseException, path: Path) -> object:
    """The last line of a file that an error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path]
    return lines[-1] if lines else getattr(error, "lineno", "?")


def _not_found(error: ModuleNotFoundError, path: Path) -> str:
    """Why an experiment file did not find a module."""
    package = (error.name or "").partition(".")[0]
    if package in PACKAGES:
        for folder in folders_of(path):
            if (folder / package).is_dir() or (folder / f"{package}.py").is_file():
                return (
                    f"{error}: `{package}` is Linscale's own package here, which hides "
                    f"{folder / package}; rename yours."
                )
    return missing(error) or f"ModuleNotFoundError: {error}"


def _nearest(path: Path) -> str:
    """A suggestion from the same folder, or from `experiments/`."""
    candidates = {
        str(p) for folder in (path.parent, Path("experiments")) for p in folder.glob("*.py")
    }
    candidates = {c for c in candidates if not c.endswith("__init__.py")}
    near = difflib.get_close_matches(str(path), candidates, n=1)
    if not near:
        stems = {Path(c).stem: c for c in candidates}
        near = [stems[s] for s in difflib.get_close_matches(path.stem, list(stems), n=1)]
    return f" Did you mean {near[0]}?" if near else ""
