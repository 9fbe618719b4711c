# %% [markdown]
# # Kernels: speed against floors and peers
#
# You will learn how the linear mixers scale with the sequence beside softmax attention on this
# machine, how many bytes the GPU kernels move against the least possible, and what has been
# measured on a GPU and what has not. Times are taken here, in this notebook; the rest is read from
# the results that the benchmarks left in the repository.

# %%
# %matplotlib inline
from pathlib import Path
from statistics import median

import pandas as pd
import torch

from analysis.figures import style
from analysis.io.looks import look
from experiments.benchmarks.mixers import BASE, DIM, HEADS, floor, measure
from linscale import shipped

RESULTS = shipped.folder() / "benchmarks" / "results"  # where `make bench` writes
SWEEP = shipped.folder() / "results"  # where the decoding benchmark writes
LENGTHS = (256, 512, 1024, 2048)
REPEATS = 3


def markdown_tables(path: Path) -> list[pd.DataFrame]:
    """The tables of a Markdown file, as text."""
    blocks = [b for b in path.read_text("utf-8").split("\n\n") if b.lstrip().startswith("|")]
    rows = [
        [[c.strip() for c in r.strip("| ").split("|")] for r in b.split("\n") if r] for b in blocks
    ]
    return [pd.DataFrame(table[2:], columns=table[0]) for table in rows]


# %% [markdown]
# ## On this machine
# Forward and backward of one mixer with the compiled kernels, median of a few turns. Softmax costs
# T squared, a linear mixer T; the floor is the recurrence's FLOPs at the rate of a large product.

# %%
taken = {length: measure(1, length, REPEATS) for length in LENGTHS}
medians = {
    (name, length): median(turns)
    for length, found in taken.items()
    for (name, kind), turns in found.items()
    if kind == "native"
}
times = pd.DataFrame(
    {
        (name, length): {"ms": ms, "speed against softmax": medians[BASE, length] / ms}
        for (name, length), ms in medians.items()
    }
).T.rename_axis(["mixer", "T"])
print(f"{HEADS} heads of {DIM}, float32, {torch.get_num_threads()} threads")
print(f"the floor at T = 2048: {floor(1, 2048)[1]:.1f} ms")
times["speed against softmax"].unstack("T").round(2)

# %%
SHOWN = (BASE, "no decay", "decay per head", "decay per channel")
with style.context():
    figure, axes = style.panels(1, 1, width=style.SINGLE, height=3.2)
    ax = axes[0, 0]
    ends = []
    for name in SHOWN:
        ms = times.loc[name, "ms"]
        drawn = look(name, SHOWN)
        ax.plot(ms.index, ms, marker=drawn.marker, color=drawn.color)
        ends.append(style.End(ms.index[-1], ms.iloc[-1], name, drawn.color))
    ax.set(xlabel="sequence length T (tokens)", ylabel="forward + backward (ms)")
    style.log_axis(ax, "x")
    style.log_axis(ax, "y")
    ax.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    style.lay_out(figure)
    style.label_ends(ax, ends, at=1.02)
figure

# %% [markdown]
# ## Decoding
# The state of a linear mixer does not grow, so a token costs the same after 128 tokens as after
# 8192.

# %%
decoding = pd.read_csv(SWEEP / "decoding.csv")
decoding.pivot_table(index="context", columns="arch", values="milliseconds_per_token").round(2)

# %% [markdown]
# ## Bytes of the GPU kernels
# A kernel for attention of this kind is bound by memory: what counts is how often each input and
# output crosses it. `python -m models.kernels.tools.report` compiles every kernel for a target
# without a GPU and counts the bytes that its launches must move, ours and those of
# flash-linear-attention.

# %%
report = sorted(RESULTS.glob("*-compile-report.md"))[-1]
launches, compiled = markdown_tables(report)[:2]
print(report.name)
launches

# %%
moved = launches[~launches["operation"].str.contains("decode")].set_index("operation")
share = moved[["of floor f", "of floor b"]].apply(lambda c: c.str.rstrip("%").astype(float))
with style.context():
    figure, axes = style.panels(1, 1, width=style.DOUBLE, height=3.4)
    ax = axes[0, 0]
    at = range(len(share))
    ax.barh([i - 0.2 for i in at], share["of floor f"], 0.38, color="#0072B2", label="forward")
    ax.barh([i + 0.2 for i in at], share["of floor b"], 0.38, color="#E69F00", label="backward")
    ax.set_yticks(list(at), share.index)
    ax.invert_yaxis()
    ax.axvline(100, color=style.GREY, lw=1)
    ax.set(xlabel="least bytes as a share of bytes moved (%)", xlim=(0, 112))
    ax.legend(loc="lower right")
figure

# %% [markdown]
# Registers, spills and tensor-core instructions of every compiled kernel:

# %%
compiled.groupby("target")["spills"].agg(lambda s: (s.astype(int) > 0).sum()).rename(
    "kernels that spill"
)

# %% [markdown]
# ## On a GPU

# %%
measured = sorted(p for p in RESULTS.glob("*.md") if "NVIDIA" in p.name or "AMD-Instinct" in p.name)
if measured:
    print(measured[-1].read_text("utf-8"))
else:
    print("No GPU result is in the repository yet: on one, run `make gpu-check` and `make bench`.")
