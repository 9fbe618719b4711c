# %% [markdown]
# # Design your sweep
#
# You will learn to turn a budget into the runs that narrow an answer most: fit what you have, list
# candidates, rank them, and buy within the budget. On the command line this is
# `linscale plan FILE --refine DIR`.

# %%
import pandas as pd

from analysis.judge.refine import shrinkage
from linscale import attempt, load_sweep, records, refine

SWEEP = records("quickstart")  # your own: records("runs/quickstart")
BUDGET = 2e15  # FLOPs for all new runs together
QUANTITY = "alpha"  # or E, a, b, "loss@1e16", "n@1e16", ...

# %% [markdown]
# ## Candidates
# The same runs with another seed. Any table with these columns will do.

# %%
sweep = load_sweep(SWEEP)
cost = sweep.points.groupby("run_id")["flops"].transform("max")
columns = ["run_id", "arch", "size", "n_params", "tokens", "flops"]
candidates = sweep.points[columns].assign(cost=cost)
candidates["run_id"] = "seed1-" + candidates["run_id"].astype(str)
print(f"{candidates['run_id'].nunique()} candidate runs")

# %% [markdown]
# ## Rank, and buy

# %%
plan = attempt(lambda: refine(sweep, candidates, quantity=QUANTITY, budget=BUDGET))
plan and plan.frame

# %%
pd.DataFrame(shrinkage(plan.frame) if plan else {}, index=["half-width now", "after the plan"]).T
