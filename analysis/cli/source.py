"""What a command is given to read: a table or a sweep, with the options that go with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from analysis.io.sweep import Conventions, Sweep

OtherData = Annotated[
    bool,
    typer.Option("--other-data", help="Of a sweep: keep runs whose data changed while they were "
                 "trained, or are not those of the other runs."),
]  # fmt: skip


def read_source(
    source: Path, *, loss: str | None, params: str | None, tokens: str | None, compute: str | None,
    group: str | None, chosen: dict[str, Any], other_data: bool = False, only: str | None = None,
    several: bool = False,
) -> Sweep:  # fmt: skip
    """Reads a table by its columns, or a sweep in the conventions that the same options name.

    Args:
        source: of `linscale fit` or `linscale forecast`.
        chosen: further options of `load_table`, by its argument.
        other_data, only: of `load_sweep`.
        several: whether the command takes several losses of a table.

    Raises:
        AnalysisError: it cannot be read, or an option is for the other kind of source.
    """
    from analysis.errors import AnalysisError
    from analysis.io.sweep_files import is_table

    if is_table(source):
        from analysis.io.tables import load_table

        if other_data:
            raise AnalysisError("--other-data is for the runs of a sweep; a table tells nothing of "
                                "their data")  # fmt: skip
        if only is not None:
            raise AnalysisError("--only chooses runs of a sweep; rows of a table are chosen with "
                                "--where")  # fmt: skip
        asked = [part.strip() for part in (loss or "").split(",")]
        if len(asked) > 1 and not several:
            raise AnalysisError(f"--loss {loss}: several losses are for linscale fit; name one")
        if len(asked) > 1:
            from analysis.io.several_targets import load_targets

            return load_targets(
                source, asked, params=params, tokens=tokens, compute=compute, group=group, **chosen
            )
        return load_table(
            source, loss=loss, params=params, tokens=tokens, compute=compute, group=group, **chosen
        )
    from analysis.io.records import load_sweep

    if tokens is not None or group is not None or any(chosen.values()):
        raise AnalysisError(
            "--tokens, --group, --runs, --unique, --total, --bits, --share, --where, --last-per "
            "and --best-per are for the columns and rows of a table; a sweep needs none of them; "
            "--params, --compute and --loss choose conventions there"
        )
    conventions = conventions_of(loss, params, compute)
    return load_sweep(source, conventions=conventions, other_data=other_data, only=only)


def noise_of(sweep: Sweep, asked: str | None, weights: str | None) -> str | None:
    """The column of the noise of each loss: the one named ("" is none), else what follows ± in a
    table where every row has it. Which of it is used is noted.
    """
    from analysis.io.frames import numbers

    known = sweep.points.attrs.get("noise")
    if asked is not None or weights is not None or known is None:
        return asked or None
    noise = numbers(sweep.points, known)
    missing = int((~(noise > 0)).sum())
    if missing:
        sweep.notes.append(f"{missing} of {len(noise)} rows have no ± above zero: all rows weigh "
                           "alike")  # fmt: skip
        return None
    sweep.notes.append("rows weigh as 1 / (their ±)^2; --noise '' lets all weigh alike")
    return str(known)


def conventions_of(loss: str | None, params: str | None, compute: str | None) -> Conventions:
    """What --loss, --params and --compute choose for a sweep; None: the default."""
    from analysis.io.sweep import Conventions

    how: dict[str, Any] = {"parameters": params, "compute": compute, "loss": loss}
    return Conventions(**{k: v for k, v in how.items() if v is not None})
