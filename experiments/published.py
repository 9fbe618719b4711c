"""Every figure of the README and the documentation, from the records kept in the repository.

Question: which runs is a published picture made of?
Command: make figures    (python -m experiments.published)
Expected: docs/images/*.png and *.pdf, byte for byte as committed where matplotlib and the records
are the same; each carries its caption and the ids of its runs in its metadata, and a .txt beside it
holds them for people.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import style
from analysis.frames import words
from analysis.records import load_sweep
from analysis.report_figures import basis, draw
from analysis.study import study

RECORDS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
PUBLISHED: dict[str, tuple[str, ...]] = {
    "quickstart": ("frontier",),
    "small_ladder": ("frontier", "multipliers", "learning_curves", "optimum", "residuals"),
}
"""Sweeps under experiments/results, and the figures of their reports that are published."""
BOOTSTRAP = 2000


def publish(sweep: str, names: Sequence[str], out: Path, bootstrap: int = BOOTSTRAP) -> list[Path]:
    """Draw some figures of one kept sweep; returns the files written."""
    result = study(load_sweep(RECORDS / sweep), bootstrap=bootstrap)
    runs = sorted(set(words(result.points, "run_id")))
    drawn = {figure.name: figure for figure in draw(result)}
    written: list[Path] = []
    for name in names:
        caption = f"{drawn[name].caption} {basis(result)}"
        stem = out / f"{sweep}_{name}"
        written += style.save(
            drawn[name].figure, stem, title=f"{sweep}: {name}", caption=caption, runs=runs
        )
        text = stem.with_suffix(".txt")
        text.write_text(f"{caption}\n\nRuns: {' '.join(runs)}\n", encoding="utf-8")
        written.append(text)
    return written


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.published", description=__doc__)
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder (docs/images)")
    options = parser.parse_args(argv)
    for sweep, names in PUBLISHED.items():
        for path in publish(sweep, names, options.out):
            print(path, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
