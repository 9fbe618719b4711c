"""What comes with Linscale: experiments by name and the records of finished sweeps.

    experiment_file(Path("quickstart"))     the project's experiments/quickstart.py
    records("quickstart")                   its finished sweep, experiments/results/quickstart.zip
    records("runs/quickstart")              your own, from this folder or one above it
    shipped_file(Path(...))                 a table or a sealed forecast, as the documentation
                                            names it

In a source tree they lie beside this package, in `experiments/`; an installation has the same files
in `linscale/builtin/experiments/` (setup.py), where nobody's `experiments` package is in the way.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from linscale.errors import LinscaleError

_HERE = Path(__file__).resolve().parent
_FOLDERS = (_HERE.parent / "experiments", _HERE / "builtin" / "experiments")


def folder() -> Path:
    """Where the experiments that come with Linscale lie.

    Raises:
        LinscaleError: the installation lacks them.
    """
    for place in _FOLDERS:
        if (place / "quickstart.py").is_file() and (place / "paper_ladder.py").is_file():
            return place
    raise LinscaleError(
        f"{_FOLDERS[1]}: no such folder; this installation lacks its experiments: install it again."
    )


def names() -> list[str]:
    """The experiments that come with Linscale."""
    files = sorted(folder().glob("*.py"))
    return [f.stem for f in files if re.search(r"^def runs\(", f.read_text("utf-8"), re.MULTILINE)]


def experiment_file(path: Path) -> Path:
    """The file that a command's FILE means: itself, or a built-in experiment that is named.

    A name has neither folder nor ending, as `quickstart`; `experiments/quickstart.py` names it
    too, so that the documentation's commands hold outside a source tree. What lies there comes
    first.

    Raises:
        LinscaleError: no file and no built-in experiment has this name.
    """
    name = str(path)
    if path.exists():
        return path
    if (inside := re.fullmatch(r"experiments/(\w+)\.py", path.as_posix())) is not None:
        return folder() / f"{inside[1]}.py" if inside[1] in names() else path
    if not re.fullmatch(r"\w+", name):
        return path
    known = names()
    if name in known:
        return folder() / f"{name}.py"
    near = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"those that exist: {', '.join(known)}."
    raise LinscaleError(f"{name}: neither a file nor a built-in experiment; {remedy}")


def shipped_records(path: Path) -> Path | None:
    """The records that a path of the documentation, `experiments/results/NAME.zip`, means outside
    a source tree; None for another path, or another name."""
    inside = re.fullmatch(r"experiments/results/([\w-]+)(\.zip)?", path.as_posix())
    if inside is None:
        return None
    found = folder() / "results" / f"{inside[1]}.zip"
    return found if found.is_file() else None


def shipped_file(path: Path) -> Path:
    """The file that a path means: itself, or where there is none and the documentation calls it
    `experiments/results/NAME` or `experiments/forecasts/NAME`, the one that comes with Linscale."""
    inside = re.fullmatch(r"experiments/(results|forecasts)/([\w.-]+)", path.as_posix())
    if path.exists() or inside is None:
        return path
    found = folder() / inside[1] / inside[2]
    return found if found.is_file() else path


def records(name: str) -> Path:
    """A finished sweep that comes with Linscale, by its name, or one of yours, by its path.

    Args:
        name: such as `quickstart` or `linearize_loop`; with a `/`, a path, which is looked for from
            the working directory and from every folder above it. A notebook is executed in its own
            folder, and `runs/` lies beside that.

    Raises:
        LinscaleError: there is none.
    """
    if "/" not in name:
        results = folder() / "results"
        known = sorted(p.stem for p in results.glob("*.zip"))
        if name in known:
            return results / f"{name}.zip"
        raise LinscaleError(
            f"{name}: no records of this name come with Linscale; those that do: "
            f"{', '.join(known)}. A sweep of your own is a path, such as runs/{name}."
        )
    here = Path.cwd()
    for start in (here, *here.parents):
        if (start / name).exists():
            return start / name
    raise LinscaleError(f"{name}: no such sweep in {here} or a folder above it.")
