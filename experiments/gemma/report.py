"""Table and figure of `experiments/linearize_gemma.py`, from its folder or its kept records.

    python -m experiments.gemma.report                       # the kept records: the table
    python -m experiments.gemma.report -o docs/images/gemma.png
    python -m experiments.gemma.report runs/gemma --keep     # pack the folder's records

Every difference is paired: of the blocks that both rows have, each another document, with the
standard error and the 90 % t interval over blocks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analysis.figures import style
from analysis.io.sweep_files import Place, open_sweep, pack
from experiments.gemma.rows import STAGES
from experiments.gemma.scores import PARTS, Difference, Losses, difference, parse
from linscale.errors import LinscaleError
from linscale.recovery import recovered

KEPT = Path(__file__).parent.parent / "results" / "linearize_gemma.zip"
CAPTION = "90 % t intervals of paired differences over blocks."
PARTS_OF_A_RECORD = ("rows", "scores", "trained")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row with its losses."""

    facts: dict[str, Any]
    losses: Losses
    log: list[dict[str, Any]]
    """Last lines of the logs of its trainings."""

    @property
    def name(self) -> str:
        """With the tokens of its training."""
        tokens = [self.facts[f"{stage}_tokens"] for stage in ("transfer", "lora")]
        text = " + ".join(f"{count // 1000}k" for count in tokens if count)
        return f"{self.facts['name']} ({text})" if text else self.facts["name"]


def read(source: Path) -> dict[str, Line]:
    """The rows that have been scored, by the name of their files.

    Raises:
        LinscaleError: the teacher has not been scored.
    """
    files = open_sweep(source)
    trained = [p for p in _members(files / "trained") if p.name.endswith(".jsonl")]
    logs = {p.name: p.read_bytes().decode() for p in trained}
    found: dict[str, Line] = {}
    for path in _members(files / "rows"):
        facts, slug = json.loads(path.read_bytes()), path.name.removesuffix(".json")
        scored = files / "scores" / f"{slug}.jsonl"
        if scored.is_file() and (losses := parse(scored.read_bytes().decode())):
            ends = [json.loads(logs[name].split("\n")[-2]) for name in facts["logs"]]
            found[slug] = Line(facts=facts, losses=losses, log=ends)
    if "teacher" not in found:
        raise LinscaleError(f"{source}: the teacher has not been scored; give the command again.")
    return dict(sorted(found.items(), key=lambda item: _place(item[1].facts)))


def table(lines: dict[str, Line]) -> str:
    """The rows beside the teacher, as Markdown."""
    teacher = lines["teacher"]
    mean = _mean(teacher.losses)
    head = (
        "row",
        "held, MB",
        "needed, MB",
        "blocks",
        "loss",
        "above the teacher",
        "first half",
        "second half",
    )
    text = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for line in lines.values():
        gap = difference(line.losses, teacher.losses)
        half = len(gap.by_position) // 2
        first, second = (sum(p) / half for p in (gap.by_position[:half], gap.by_position[half:]))
        own = "" if line is teacher else f"{gap.mean:.4f}{_error(gap)}"
        cells = (
            line.name, *(f"{line.facts[n] / 1e6:.2f}" for n in ("held_bytes", "needed_bytes")),
            str(len(line.losses)),
            f"{mean + gap.mean:.4f}", own, f"{first:.4f}", f"{second:.4f}",
        )  # fmt: skip
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def trainings(lines: dict[str, Line]) -> str:
    """What the rows' trainings have cost, as Markdown."""
    head = ("trained", "tokens of transfer", "of low-rank training", "FLOPs", "hours", "load")
    text = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    found: dict[tuple[str, ...], None] = {}
    for line in (x for x in lines.values() if x.log):
        facts = line.facts
        hours = sum(end["seconds"] for end in line.log) / 3600
        found[
            facts["model"], f"{facts['transfer_tokens']:,}", f"{facts['lora_tokens']:,}",
            f"{facts['training_flops']:.2e}", f"{hours:.2f}", f"{line.log[-1]['load']:.0f}",
        ] = None  # fmt: skip
    return "\n".join([*text, *("| " + " | ".join(cells) + " |" for cells in found)])


def answers(lines: dict[str, Line]) -> list[str]:
    """What the linear branch adds, in words: each student less what it is compared with.

    Untrained windows after attention transfer, those with the same low-rank training after that; a
    hybrid whose layers were chosen, its own window. The share counts from the student's window.
    """
    found: list[str] = []
    for student in (x for x in lines.values() if x.facts["linear"] and x.facts["reads"] == "both"):
        for index, other in enumerate(_compared(student.facts, lines)):
            found.append(f"{student.name}, less {other.name}: {_verdict(_less(student, other))}")
            three = [x.losses for x in (student, other, lines["teacher"])]
            both = set[int].intersection(*map(set, three))
            share = recovered(*(_mean({b: x[b] for b in both}) for x in three))
            if index == 0 and share is not None and student.facts["stage"] == "transfer":
                found.append(f"    recovered beyond the window: {share:.0%}")
    return found


def _compared(facts: dict[str, Any], lines: dict[str, Line]) -> list[Line]:
    """What a student stands beside; its own window comes first."""
    if facts["keep"]:
        wanted = [{**_kind(facts), "reads": "window"}]
    else:
        stage = "lora" if facts["stage"] == "lora" else "untrained"
        wanted = [
            {**_kind(facts), "model": name, "stage": stage, "transfer_tokens": 0}
            for name in facts["beside"]
        ]
    pairs = ((line, w) for w in wanted for line in lines.values())
    return [line for line, w in pairs if _kind(line.facts) == w]


def _kind(facts: dict[str, Any]) -> dict[str, Any]:
    names = ("model", "stage", "reads", "keep", "transfer_tokens", "lora_tokens")
    return {name: facts[name] for name in names}


def _less(mine: Line, other: Line) -> Difference:
    return difference(mine.losses, other.losses)


def figure(lines: dict[str, Line], length: int) -> Figure:
    """Above the teacher, over bytes of state and over the position, on the blocks that all rows
    shown have. A colour is a model; low-rank training has squares and broken lines."""
    shown = {n: x for n, x in lines.items() if n != "teacher" and x.facts["reads"] == "both"}
    shown = {n: x for n, x in shown.items() if x.facts["model"].startswith(("globals", "teacher"))}
    common = set(lines["teacher"].losses).intersection(*(x.losses for x in shown.values()))
    teacher = {block: lines["teacher"].losses[block] for block in common}
    names = list(dict.fromkeys(x.facts["model"] for x in shown.values()))
    with style.context():
        drawn, axes = style.panels(1, 2, width=style.DOUBLE, height=3.4)
        left, right = axes[0]
        for line in shown.values():
            gap = difference(line.losses, teacher)
            color = COLORS[names.index(line.facts["model"]) % len(COLORS)]
            trained = line.facts["stage"] == "lora"
            how = {"color": color, "marker": "s" if trained else "o",
                   "linestyle": "--" if trained else "-",
                   "markerfacecolor": color if line.facts["linear"] else "white"}  # fmt: skip
            left.errorbar(
                line.facts["needed_bytes"] / 1e6, gap.mean, gap.half_width or 0, capsize=2,
                label=line.name, **how,
            )  # fmt: skip
            each = length / PARTS
            middles = [(part + 0.5) * each for part in range(PARTS)]
            right.plot(middles, gap.by_position, markersize=3, **how)
        left.set_xlabel("state that one sequence needs, MB")
        left.set_ylabel("above the teacher, nats a token")
        left.set_title("by bytes")
        right.set_xlabel("position, tokens")
        right.set_title("by position")
        for axis in (left, right):
            axis.axhline(0, color=style.GREY, linewidth=0.8)
        drawn.legend(loc="outside lower center", ncols=2)
        return style.finish(drawn)


COLORS = ("#0072B2", "#D55E00", "#009E73", "#B0568E", "#E69F00", "#56B4E9", "#000000", "#8a8a8a")


def keep(folder: Path, out: Path) -> None:
    """Pack the records of a folder, without what was learned."""
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place)
        shutil.copy(folder / "experiment.json", whole)
        for part in PARTS_OF_A_RECORD:
            (whole / part).mkdir()
            for path in (folder / part).glob("*.json*"):
                shutil.copy(path, whole / part)
        pack(whole, out)


def _members(folder: Place) -> Iterator[Place]:
    return iter(sorted(folder.iterdir(), key=lambda p: p.name)) if folder.is_dir() else iter(())


def _place(facts: dict[str, Any]) -> tuple[object, ...]:
    """In tables: the teacher, windows by bytes, students, and all again after low-rank training."""
    first = facts["model"] == "teacher" and facts["stage"] == "untrained"
    return not first, STAGES.index(facts["stage"]), facts["needed_bytes"], facts["name"]


def _mean(losses: Losses) -> float:
    return sum(sum(parts) / len(parts) for parts in losses.values()) / len(losses)


def _error(gap: Difference) -> str:
    return "" if gap.stderr is None else f" \u00b1 {gap.stderr:.4f}"


def _verdict(gap: Difference) -> str:
    text = f"{gap.mean:+.4f} nats"
    if gap.half_width is None:
        return f"{text}, one block: no interval"
    low, high = gap.mean - gap.half_width, gap.mean + gap.half_width
    word = "a tie" if low <= 0 <= high else "better" if high < 0 else "worse"
    return f"{text} [{low:+.4f}, {high:+.4f}], {gap.blocks} blocks: {word}"


def main(given: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, nargs="?", default=KEPT, help="folder or zip file")
    parser.add_argument("-o", "--out", type=Path, help="write the figure as PNG")
    parser.add_argument("--keep", action="store_true", help=f"pack the records into {KEPT.name}")
    arguments = parser.parse_args(given)
    lines = read(arguments.source)
    facts = json.loads((open_sweep(arguments.source) / "experiment.json").read_bytes())
    print(table(lines), trainings(lines), sep="\n\n", end="\n\n")
    print("\n".join(answers(lines)))
    if arguments.keep:
        keep(arguments.source, KEPT)
    if arguments.out is not None:
        drawn = figure(lines, facts["length"])
        style.save(
            drawn, arguments.out.with_suffix(""), title="Gemma 3 270M: windows and linear parts",
            caption=CAPTION, runs=list(lines), formats=("png",),
        )  # fmt: skip


if __name__ == "__main__":
    main()
