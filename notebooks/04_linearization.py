# %% [markdown]
# # From softmax to linear attention
#
# You will learn how much of a transformer survives when its attention is made linear, with how
# many tokens (SUPRA, LoLCATs), how much of that a window of softmax attention does alone, whether
# it is cheaper than training a linear model from scratch, with and without the teacher's compute,
# and what a scaling law of linearization may claim. The records are those of `make linearize`,
# kept in the repository without checkpoints: byte-level models of 7 to 200 thousand parameters,
# whose teachers are the quickstart's.

# %%
# %matplotlib inline
from pathlib import Path

import pandas as pd

from analysis.figures import recovery_figures as figures
from analysis.judge import linearization_law
from analysis.judge import recovery as linearization
from analysis.judge.comparison import compare, layers
from analysis.judge.recovery import CONTINUED, LINEARIZED, SCRATCH
from linscale import load_sweep

SWEEP = Path("experiments/results/linearize_loop.zip")  # your own: Path("runs/linearize_loop")
FROM_SCRATCH = Path("experiments/results/quickstart.zip")  # same data, more of the frontier

# %%
recovery = linearization.read(SWEEP)
points = recovery.points
largest = points.loc[points["n_params"].idxmax(), "size"]
points.groupby("kind").agg(
    runs=("run_id", "nunique"), milestones=("run_id", "size"), sizes=("size", "nunique")
)

# %% [markdown]
# ## How much is recovered
# r is 1 at the teacher's loss. Its zero is each method's own: for LoLCATs the loss of its window
# alone on the teacher's weights, without a linear part and without training; for SUPRA, which has
# no window, the loss right after surgery. Controls: the same models from random weights (dashed,
# as many tokens), the teacher itself trained on, which tells how much of r is merely a teacher
# that had not finished, and teacher and windows with the low-rank training of the student
# (dotted).

# %%
at_size = points[points["size"] == largest]
figures.recovered(at_size)

# %%
linearization.summarise(at_size[at_size["kind"] != CONTINUED], "recovered").round(3)

# %% [markdown]
# The share of the gap that surgery opens is another number: random feature maps open that gap, and
# a window alone closes most of it.

# %%
linearization.summarise(at_size[at_size["kind"] == LINEARIZED], "of_surgery").round(3)

# %% [markdown]
# ## What the linear part is worth
# LoLCATs at its largest budget beside the teacher, windows alone, and itself with one part switched
# off. Open: untrained.

# %%
table = compare(recovery, "lolcats (linearized)", largest)
figures.compared(table, f"LoLCATs, size {largest}")

# %%
table.round(4)

# %% [markdown]
# Layer by layer, nats more without the part:

# %%
layers(recovery, "lolcats (linearized)", largest).round(4)

# %% [markdown]
# ## What it costs
# Filled: the compute of linearizing; open: with the teacher's pretraining. The frontier is that of
# all models from scratch on the same text.

# %%
scratch = pd.concat(
    [points[points["kind"] == SCRATCH], load_sweep(FROM_SCRATCH).points], ignore_index=True
)[["flops", "loss"]]
edge = linearization.frontier(scratch)
linear = at_size[at_size["kind"] == LINEARIZED]
figures.on_frontier(linear, scratch, edge)

# %% [markdown]
# How many times as much compute the frontier needs for the same loss: above 1, linearizing is
# cheaper. NaN is a loss outside those that the frontier spans.

# %%
costs = linear.groupby(["base", "tokens"])[["loss", "flops", "teacher_flops"]].mean()
needed = linearization.equivalent(edge, costs["loss"])
costs.assign(
    alone=needed / costs["flops"],
    with_teacher=needed / (costs["flops"] + costs["teacher_flops"]),
).drop(columns=["flops", "teacher_flops"]).round(2)

# %% [markdown]
# ## A law of linearization
# What is not recovered, by the same zeros, over tokens D of all stages and parameters N:
# 1 - r = a (D / 1e5)^-b (N / 1e5)^c. Intervals are those of refits to whole groups of runs.

# %%
groups = sorted(set(recovery.of(LINEARIZED)["group"]))
laws = [linearization_law.fit(recovery, group, draws=500) for group in groups]
figures.laws(laws)

# %%
pd.DataFrame(
    [(law.group, name, law.params[name], *law.interval(name)) for law in laws for name in "abc"],
    columns=["method", "parameter", "value", "low", "high"],
).round(3)

# %% [markdown]
# What speaks against believing them:

# %%
for law in laws:
    print(law.group, f"(scatter {law.residual:.2f}, hold-out {law.holdout:.2f} in ln)")
    print("\n".join(f"- {warning}" for warning in law.warnings))
