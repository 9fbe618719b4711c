"""What `linscale fit` makes of messy tables, as a page.

    python -m experiments.messy_tables [-o docs/messy_tables.md]

Reads every file of `experiments.messy_files` and writes what was read, said, left out or refused.
A test holds the page to it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from analysis.errors import AnalysisError
from analysis.io.frames import numbers
from analysis.io.sweep import Sweep
from analysis.io.tables import load_table
from experiments.messy_files import MESSY, Messy

PAGE = Path(__file__).resolve().parents[1] / "docs" / "messy_tables.md"
_INTRODUCTION = """# Messy tables

What [`linscale fit`](fitting.md) makes of {count} small files, each messy in its own way. The
page is written by `python -m experiments.messy_tables`, and a test fails where it no longer tells
the truth.
"""
_LETTERS = {"n_params": "N", "tokens": "D", "flops": "C", "loss": "loss",
            "loss_stderr": "noise", "unique_tokens": "U"}  # fmt: skip


def outcome(case: Messy, folder: Path) -> tuple[bool, str]:
    """Whether a file is read, and what was read, or why not, in a line."""
    path = folder / case.name
    path.write_bytes(case.data)
    try:
        sweep = load_table(path, **case.options)
    except AnalysisError as error:
        return False, f"{error}".replace(str(path), case.name)
    return True, "; ".join([_read(sweep), *_said(sweep)])


def _read(sweep: Sweep) -> str:
    """How many rows, and the range of every number."""
    points = sweep.points
    found = [f"{len(points)} rows"]
    for name, letter in _LETTERS.items():
        values = numbers(points, name) if name in points else np.empty(0)
        values = values[np.isfinite(values)]
        if len(values):
            found.append(f"{letter} {values.min():g} to {values.max():g}")
    return ", ".join(found)


def _said(sweep: Sweep) -> list[str]:
    left = [f"left out: {row['run_id']}: {row['reason']}"
            for row in sweep.exclusions.to_dict("records")]  # fmt: skip
    bad: list[str] = []
    for name in ("loss", "n_params", "tokens", "flops"):
        if name in sweep.points:
            values = numbers(sweep.points, name)
            count = int((~(np.isfinite(values) & (values > 0))).sum())
            bad += [f"{count} row without a positive {_LETTERS[name]}, which no law takes"] * (
                count > 0
            )
    return [*sweep.notes, *left, *bad]


def page() -> str:
    """The whole page."""
    count = sum(len(cases) for cases in MESSY.values())
    parts = [_INTRODUCTION.format(count=count)]
    with tempfile.TemporaryDirectory() as folder:
        for title, cases in MESSY.items():
            lines = [f"## {title}", "", "| file | | what happens |", "|---|---|---|"]
            for case in cases:
                good, text = outcome(case, Path(folder))
                options = " ".join(
                    f"`--{k.replace('_', '-')} {v}`" for k, v in case.options.items()
                )
                about = f"{case.about} {options}".strip()
                escaped = text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
                lines.append(f"| {about} | {'read' if good else 'refused'} | {escaped} |")
            parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    options = parser.parse_args()
    options.output.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
