"""How many FLOPs does an adaptive sweep need for the grid's interval? Replays and simulations.

    python -m experiments.benchmarks.adaptive --seeds 100 --rows FILE.jsonl -o FILE.md --figure FILE

A grid is a set of runs whose losses are known (experiments/results) or drawn from a law. The goal
is the width of the 90 % interval that the whole grid gives, of a (of each architecture), of the
compute multiplier, or of a forecast, the lowest loss at four times the largest compute. Four ways
to it are compared by what they spent when they had it, as a share of the grid's FLOPs:

    adaptive               what `linscale run --adaptive` decides; runs up to any of their horizons
    in order, random, cheapest first     whole runs, intervals looked at after every fifth of the
                                         grid's FLOPs

All choose from one pool, and end at 1.6 times the grid's FLOPs. Of a kept ladder the pool is the
ladder itself: fewer of its runs can never be worth as much as all, so only intervals that are
narrow by luck come below 100 % there, and a goal of 1.1 times the grid's width is shown beside. In
simulated worlds (adaptive_worlds.py) the truth is known, and how often intervals hold it.

Rows are appended to --rows as they come, and a world that is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import scipy

from analysis.figures import style
from analysis.forecast.score import binomial_interval
from analysis.io.frames import numbers, rows, where, words
from experiments.benchmarks.adaptive_ways import DRAWS, MOST, QUANTITIES, SLACKS, study_one
from experiments.benchmarks.adaptive_worlds import WORLDS, world_of

WAYS = ("adaptive", "in order", "random", "cheapest first")
WORDS = {"a": "a of both", "multiplier": "multiplier", "loss": "forecast"}


def interval_of(hits: int, count: int) -> str:
    """Share with its 90 % binomial interval."""
    low, high = binomial_interval(hits, count, 0.9)
    return f"{hits / count:.2f} ({low:.2f} to {high:.2f})"


def table(found: pd.DataFrame, slack: float) -> list[str]:
    """Markdown: FLOPs over the grid's and coverage, by quantity and way."""
    lines = ["| quantity | way | worlds | FLOPs / grid: median | mean | 90th | had it | coverage |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for quantity in QUANTITIES:
        for way in ("grid", *WAYS):
            own = where(found, quantity=quantity, way=way,
                        slack=1.0 if way == "grid" else slack)  # fmt: skip
            if not len(own):
                continue
            share = numbers(own, "share")
            hits = [hit for held in own["holds"] for hit in held]
            cover = interval_of(sum(hits), len(hits)) if hits else ""
            lines.append(
                f"| {WORDS[quantity]} | {way} | {len(own)} | {np.median(share):.2f} | "
                f"{share.mean():.2f} | {np.quantile(share, 0.9):.2f} | "
                f"{own['reached'].mean():.0%} | {cover} |"
            )
    return lines


def figure(found: pd.DataFrame, path: Path) -> None:
    """Share of the grid's FLOPs by way: median, quartiles and the inner four fifths of the
    worlds."""
    with style.context():
        drawing, axes = style.panels(1, 3, width=style.DOUBLE, height=2.2, sharey=True)
        for axis, quantity in zip(axes[0], QUANTITIES, strict=True):
            for at, way in enumerate(reversed(WAYS)):
                share = numbers(where(found, quantity=quantity, way=way, slack=1.0), "share")
                low, first, middle, third, high = np.quantile(share, [0.1, 0.25, 0.5, 0.75, 0.9])
                colour = "#0072B2" if way == "adaptive" else style.GREY
                axis.plot([low, high], [at, at], color=colour, lw=0.9)
                axis.plot([first, third], [at, at], color=colour, lw=5, alpha=0.5,
                          solid_capstyle="butt")  # fmt: skip
                axis.plot([middle], [at], "o", color=colour)
            axis.axvline(1.0, color="black", lw=0.7, ls=":")
            axis.set_yticks(range(len(WAYS)), list(reversed(WAYS)))
            axis.set_xlim(0, MOST + 0.05)
            axis.set_title(WORDS[quantity])
            axis.set_xlabel("FLOPs / those of the grid")
        worlds = len(set(words(found, "world")))
        style.save(drawing, path, caption=f"FLOPs until the 90 % interval is as narrow as that of "
                   f"the whole grid, in {worlds} simulated worlds: median (dot), quartiles (bar), "
                   "inner four fifths (line). Ways that end without it count as "
                   f"{MOST:g}.", runs=[])  # fmt: skip


def main() -> None:
    """Measure what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no world later")
    parser.add_argument("--rows", type=Path, default=Path("adaptive.jsonl"))
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    names = [f"{kind} {seed}" for seed in range(options.seeds) for kind in WORLDS]
    names = [*names[:3], "small_ladder", "quickstart", *names[3:]]
    begin = time.monotonic()
    known = read(options.rows)
    for name in names:
        if name in set(known["world"]) or time.monotonic() - begin > 60 * options.minutes:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            more = study_one(world_of(name), len(known))
        with options.rows.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in more)
    text = report(read(options.rows))
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    if options.figure:
        figure(simulated_rows(read(options.rows)), options.figure)


def read(path: Path) -> pd.DataFrame:
    """The rows so far."""
    if not path.exists():
        return pd.DataFrame({"world": []})
    with path.open(encoding="utf-8") as file:
        return pd.DataFrame([json.loads(line) for line in file])


def simulated_rows(found: pd.DataFrame) -> pd.DataFrame:
    """Of worlds whose law is known."""
    return rows(found, [" " in name for name in words(found, "world")])


def report(found: pd.DataFrame) -> str:
    """The dated page."""
    lines = [
        f"# FLOPs to the grid's interval, {date.today()}",
        "",
        f"`python -m experiments.benchmarks.adaptive`; {platform.machine()}, Python "
        f"{platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}, "
        f"intervals from {DRAWS} refits.",
    ]
    worlds = dict.fromkeys(words(found, "world"))
    for name in (w for w in worlds if " " not in w):
        for slack in SLACKS:
            lines += ["", f"## {name}, {slack:g} times the grid's width", "",
                      *table(where(found, world=name), slack)]  # fmt: skip
    many = simulated_rows(found)
    if len(many):
        kinds = [name.partition(" ")[0] for name in words(many, "world")]
        lines += ["", "## Simulated worlds", "", *table(many, 1.0)]
        for kind in WORLDS:
            own = rows(many, [each == kind for each in kinds])
            if len(own):
                lines += ["", f"### {kind}", "", *table(own, 1.0)]
        ours = where(many, way="adaptive")
        lines += ["", f"A sweep takes {ours['decisions'].median():.0f} decisions (median), "
                  f"{ours['seconds'].median():.1f} s of CPU for all of them."]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
