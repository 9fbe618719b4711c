"""In which precision a run was begun: with `parallel.precision=auto` the first device decided.

    environment.json    precision    what the last session trained in, as all before it did

A run that was begun on a GPU in bf16 goes on in bf16 on a CPU, and one that was begun on a CPU in
fp32 does so on a GPU. Its name does not tell: `auto` and `fp32` have the same.
"""

from __future__ import annotations

from pathlib import Path

from linscale.errors import LinscaleError
from linscale.json_reader import as_object
from scaling.config.run import RunConfig
from scaling.system.files import read_json


def begun_in(run_dir: Path) -> str | None:
    """`fp32` or `bf16`; None for a run without a session."""
    environment = read_json(run_dir / "environment.json")
    if not environment:
        return None
    asked = as_object(read_json(run_dir / "config.json").get("parallel")).get("precision")
    found = environment.get("precision", asked)  # before `auto` it was what was asked for
    return found if found in ("fp32", "bf16") else None


def check_precision(run_dir: Path, config: RunConfig) -> None:
    """Refuse to take a run that was trained in another precision for the one asked for.

    Raises:
        LinscaleError: with the remedy.
    """
    asked = config.parallel.asked_precision
    if asked is not None and (found := begun_in(run_dir)) not in (None, asked):
        raise LinscaleError(
            f"parallel.precision={asked!r}: {run_dir} was begun in {found} and stays in it; give "
            f"parallel.precision=auto to go on, or train the run in {asked} in another directory "
            "(--out)."
        )
