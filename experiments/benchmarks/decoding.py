"""Decoding: time for a token and bytes of state by context length, for the four architectures.

    python -m experiments.benchmarks.decoding [--write]

Questions: is a token of the linear models as cheap after 8192 tokens as after 128, and is their
state as small? What does recurrent decoding save over running the whole context again for each
token, as a model without a state must?
Method: random models of one shape on one CPU thread. Prompts of each length are prefilled once;
then the models take turns, a few steps for every context in each round, and the median over rounds
counts. Time is CPU time of the thread that decodes, which other work on the machine disturbs less
than the wall clock. Recomputation is one parallel pass over the context for the token.
Expected: TNL no slower at 8192 than at 128 within 10 %, and at least 5 times as fast as
recomputation at 8192; LLaMA slower with the context, its cache growing with it.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor
from torch.utils._pytree import tree_leaves

from analysis.figures import style
from analysis.io.looks import look
from experiments.benchmarks.tables import DOCS, put_table
from models.architecture import find
from models.config import ARCHS, Arch, toy_config
from models.generation import prefill
from models.language_model import LanguageModel, State, build
from scaling.record.environment import cpu_name

RESULTS = Path(__file__).parents[1] / "results" / "decoding.csv"
CONTEXTS = (128, 512, 2048, 8192)
DIM, LAYERS, HEAD_DIM, VOCAB = 256, 6, 64, 4096
STEPS = 8
"""Tokens of one measurement."""


def clocked(work: Callable[[], object]) -> float:
    """CPU seconds of this thread for a piece of work."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


class Sequence:
    """One model after a prompt of some length."""

    def __init__(self, arch: Arch, model: LanguageModel, context: int) -> None:
        self.arch: Arch = arch
        self.model, self.context = model, context
        prompt = torch.randint(0, VOCAB, (context,)).tolist()
        logits, state = prefill(model, [prompt])
        self.token: Tensor = logits.argmax(-1)
        self.bytes = sum(tensor.nbytes for tensor in tree_leaves((state.stem, state.blocks)))
        # Room for all that is measured, so that no measurement pays for a larger cache.
        self.state: State = model.reserve(state, 1024)
        self.times: list[float] = []

    def steps(self, count: int = STEPS) -> None:
        """Decode some tokens greedily."""
        for _ in range(count):
            logits, self.state = self.model.step(self.token, self.state, reserve=False)
            self.token = logits.argmax(-1)

    def again(self) -> Tensor:
        """One token by running the whole context."""
        tokens = torch.zeros(1, self.context, dtype=torch.int64)
        with torch.no_grad():
            hidden, _ = self.model.hidden(tokens)
            return self.model.logits(hidden[:, -1]).argmax(-1)


def measure(rounds: int) -> tuple[list[Sequence], dict[str, float]]:
    """Step times of every architecture and context, and recomputation at the longest."""
    torch.manual_seed(0)
    sequences: list[Sequence] = []
    for arch in ARCHS:
        config = toy_config(arch, DIM, vocab_size=VOCAB, layers=LAYERS, head_dim=HEAD_DIM)
        model = build(config).eval()
        sequences += [Sequence(arch, model, context) for context in CONTEXTS]
    for number in range(rounds + 1):
        for sequence in sequences:
            seconds = clocked(sequence.steps) / STEPS
            if number:  # the first round warms up
                sequence.times.append(seconds)
    longest = [s for s in sequences if s.context == CONTEXTS[-1]]
    again = {sequence.arch: clocked(sequence.again) for sequence in longest}
    return sequences, again


def figure(rows: list[dict[str, Any]]) -> Figure:
    """Time and state against the context: the rows of the table, drawn by `make figures`."""
    with style.context():
        drawn, panels = style.panels(1, 2, width=style.DOUBLE, height=2.8)
        times, sizes = panels.flat
        ends: list[style.End] = []
        for arch in ARCHS:
            mine = [row for row in rows if row["arch"] == arch]
            kind = look(arch)
            line = {"color": kind.color, "marker": kind.marker}
            contexts = [row["context"] for row in mine]
            mebibytes = [row["state_bytes"] / 2**20 for row in mine]
            times.plot(contexts, [row["milliseconds_per_token"] for row in mine], **line)
            low, high = ([row[name] for row in mine] for name in ("q1", "q3"))
            times.fill_between(contexts, low, high, color=kind.color, alpha=0.2, lw=0)
            sizes.plot(contexts, mebibytes, **line)
            ends.append(style.End(contexts[-1], mebibytes[-1], kind.label, kind.color))
        for axes, label in ((times, "milliseconds per token"), (sizes, "state (MiB)")):
            axes.set(xscale="log", xlabel="context (tokens)", ylabel=label)
            axes.set_xticks(CONTEXTS, [str(context) for context in CONTEXTS])
            axes.xaxis.set_minor_locator(NullLocator())
            style.log_axis(axes, "y")
        style.lay_out(drawn)
        style.label_ends(sizes, ends, at=1.02)
        return style.finish(drawn)


def caption(rows: list[dict[str, Any]]) -> str:
    """What the table of docs/generation.md shows."""
    first = rows[0]
    return (
        f"Milliseconds a token and MiB of state by context, one thread of an {first['machine']}, "
        f"PyTorch {first['torch']}, {first['date']} (width {DIM}, {LAYERS} layers, {VOCAB} tokens):"
    )


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each architecture: time and state at every context, and the two ratios."""
    lines: list[dict[str, Any]] = []
    for arch in ARCHS:
        mine = {row["context"]: row for row in rows if row["arch"] == arch}
        last = mine[CONTEXTS[-1]]
        times = {
            f"{context:,}": f"{mine[context]['milliseconds_per_token']:.1f} ms, "
            f"{mine[context]['state_bytes'] / 2**20:.2f} MiB"
            for context in CONTEXTS
        }
        lines.append(
            {
                "": find(arch).label,
                **times,
                f"{CONTEXTS[-1]:,} over {CONTEXTS[0]}": last["relative_to_shortest"],
                "recomputation over step": last["recompute_over_step"],
            }
        )
    return lines


def main() -> None:
    """Print the table; `--write` keeps it as the dated result, which `make figures` draws."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sequences, again = measure(arguments.rounds)
    shortest = {s.arch: statistics.median(s.times) for s in sequences if s.context == CONTEXTS[0]}
    rows: list[dict[str, Any]] = []
    for sequence in sequences:
        arch, ordered = sequence.arch, sorted(sequence.times)
        middle = statistics.median(ordered)
        longest = sequence.context == CONTEXTS[-1]
        row: dict[str, Any] = {
            "date": date.today().isoformat(),
            "arch": arch,
            "context": sequence.context,
            "milliseconds_per_token": round(middle * 1e3, 4),
            "q1": round(ordered[len(ordered) // 4] * 1e3, 4),
            "q3": round(ordered[-1 - len(ordered) // 4] * 1e3, 4),
            "relative_to_shortest": round(middle / shortest[arch], 3),
            "state_bytes": sequence.bytes,
            "recompute_over_step": round(again[arch] / middle, 1) if longest else "",
            "dim": DIM,
            "layers": LAYERS,
            "threads": 1,
            "torch": torch.__version__,
            "machine": cpu_name(),
        }
        rows.append(row)
        print(
            f"{find(arch).label:11} context {sequence.context:5}: "
            f"{row['milliseconds_per_token']:7.3f} ms a token ({row['q1']} to {row['q3']}), "
            f"{row['relative_to_shortest']:5.2f} of the shortest, "
            f"state {sequence.bytes / 2**20:6.2f} MiB"
            + (f", recomputation x {row['recompute_over_step']}" if longest else ""),
            flush=True,
        )
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        put_table(DOCS / "generation.md", "decoding", caption(rows), table(rows))


if __name__ == "__main__":
    main()
