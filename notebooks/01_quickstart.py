# %% [markdown]
# # From a plan to a law
#
# You will learn how a sweep becomes a scaling law: what was planned, how the runs went, and what
# the fitted laws say, with intervals. The records are those of `make quickstart`, kept in the
# repository without checkpoints (and with every fourth line of the training log). With a sweep of
# your own, a cell says what it lacks where that sweep has too few sizes or seeds.

# %%
# %matplotlib inline
from linscale import attempt, figures, load_sweep, records, study

SWEEP = records("quickstart")  # your own: records("runs/quickstart")
DRAWS = 60  # refits of the bootstrap; 2000 for a paper

# %% [markdown]
# A sweep holds runs, decayed checkpoints, curves, and everything that was left out with its reason.

# %%
sweep = load_sweep(SWEEP)
print(sweep.conventions)
sweep.runs[["run_id", "arch", "size", "state", "n_params"]]

# %%
sweep.exclusions

# %% [markdown]
# Training curves by architecture and size; the marks are decayed checkpoints.

# %%
attempt(lambda: figures.learning_curves(sweep.curves, sweep.points))

# %% [markdown]
# One law of N and D an architecture, resampled over runs. Failures are printed, never hidden.

# %%
results = attempt(lambda: study(sweep, bootstrap=DRAWS))
if results:
    print(results.failures or "every law, envelope and hold-out could be fitted")
for name in results.groups if results else ():
    print(name)
    print(results.laws[name].table().to_string(index=False))

# %%
results and figures.loss_compute(results.points, results.loss_bands())

# %% [markdown]
# How many times the compute must the baseline spend for the same loss?

# %%
results and attempt(
    lambda: figures.multipliers(results.multiplier_bands(), baseline=results.baseline)
)

# %% [markdown]
# The largest size, forecast by a law that never saw it.

# %%
COLUMNS = ["arch", "size", "tokens", "loss", "predicted", "lo", "hi", "leap"]
results and attempt(lambda: results.require_forecast()[COLUMNS])
