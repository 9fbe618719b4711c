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
import pandas as pd

from analysis.figures import recovery_figures as figures
from analysis.judge import linearization_law
from analysis.judge import recovery as linearization
from analysis.judge.comparison import compare, layers
from analysis.judge.recovery import CONTINUED, LINEARIZED, SCRATCH
from linscale import attempt, load_sweep, records

SWEEP = records("linearize_loop")  # your own: records("runs/linearize_loop")
FROM_SCRATCH = records("quickstart")  # same data, more of the frontier

# %%
recovery = attempt(lambda: linearization.read(SWEEP))
if recovery:
    points = recovery.points
    largest = points.loc[points["n_params"].idxmax(), "size"]
    at_size = points[points["size"] == largest]
    linear = at_size[at_size["kind"] == LINEARIZED]
recovery and points.groupby("kind").agg(
    runs=("run_id", "nunique"), milestones=("run_id", "size"), sizes=("size", "nunique")
)

# %% [markdown]
# ## How much is recovered
# r is 1 at the teacher's loss. Its zero is each method's own: for LoLCATs the loss of its window
# alone on the teacher's weights, without a linear part and without training; for SUPRA, which has
# no window, the loss right after surgery. Controls: the same models from random weights (dashed,
# as many tokens), and the teacher itself trained on, which tells how much of r is merely a
# teacher that had not finished. The table also has teacher and windows with the low-rank training
# of the student, at the tokens of that stage.

# %%
recovery and figures.recovered(at_size)

# %%
recovery and linearization.summarise(at_size[at_size["kind"] != CONTINUED], "recovered").round(3)

# %% [markdown]
# The share of the gap that surgery opens is another number: random feature maps open that gap, and
# a window alone closes most of it.

# %%
recovery and linearization.summarise(linear, "of_surgery").round(3)

# %% [markdown]
# ## What the linear part is worth
# LoLCATs at its largest budget beside the teacher, windows alone, and itself with one part switched
# off. Open: untrained.

# %%
table = attempt(lambda: compare(recovery, "lolcats (linearized)", largest)) if recovery else None
None if table is None else figures.compared(table, f"LoLCATs, size {largest}")

# %%
None if table is None else table.round(4)

# %% [markdown]
# Layer by layer, nats more without the part:

# %%
None if table is None else layers(recovery, "lolcats (linearized)", largest).round(4)

# %% [markdown]
# ## What it costs
# Filled: the compute of linearizing; open: with the teacher's pretraining. The frontier is that of
# all models from scratch on the same text.

# %%
edge = scratch = load_sweep(FROM_SCRATCH).points[["flops", "loss"]]
if recovery:
    own = points.loc[points["kind"] == SCRATCH, ["flops", "loss"]]
    scratch = pd.concat([own, scratch], ignore_index=True)
    edge = linearization.frontier(scratch)
recovery and figures.on_frontier(linear, scratch, edge)

# %% [markdown]
# How many times as much compute the frontier needs for the same loss: above 1, linearizing is
# cheaper. NaN is a loss outside those that the frontier spans.

# %%
if recovery:
    costs = linear.groupby(["base", "tokens"])[["loss", "flops", "teacher_flops"]].mean()
    needed = linearization.equivalent(edge, costs["loss"])
    costs = costs.assign(
        alone=needed / costs["flops"],
        with_teacher=needed / (costs["flops"] + costs["teacher_flops"]),
    ).drop(columns=["flops", "teacher_flops"])
recovery and costs.round(2)

# %% [markdown]
# ## A law of linearization
# What is not recovered, by the same zeros, over tokens D of all stages and parameters N:
# 1 - r = a (D / 1e5)^-b (N / 1e5)^c. Intervals are those of refits to whole groups of runs.

# %%
groups = sorted(set(recovery.of(LINEARIZED)["group"])) if recovery else []
tried = [attempt(lambda g=g: linearization_law.fit(recovery, g, draws=500)) for g in groups]
laws = [law for law in tried if law]
figures.laws(laws) if laws else None

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
