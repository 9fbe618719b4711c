# %% [markdown]
# # From a plan to a law
#
# You will learn how a sweep becomes a scaling law: what was planned, how the runs went, and what
# the fitted laws say, with intervals. The records are those of `make quickstart`, kept in the
# repository without checkpoints (and with every fourth line of the training log).

# %%
# %matplotlib inline
from pathlib import Path

from linscale import figures, load_sweep, study

SWEEP = Path("experiments/results/quickstart.zip")  # your own: Path("runs/quickstart")
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
figures.learning_curves(sweep.curves, sweep.points)

# %% [markdown]
# One law of N and D an architecture, resampled over runs. Failures are printed, never hidden.

# %%
results = study(sweep, bootstrap=DRAWS)
print(results.failures or "every law, envelope and hold-out could be fitted")
for name in results.groups:
    print(name)
    print(results.laws[name].table().to_string(index=False))

# %%
figures.loss_compute(results.points, results.loss_bands())

# %% [markdown]
# How many times the compute must the baseline spend for the same loss?

# %%
figures.multipliers(results.multiplier_bands(), baseline=results.baseline)

# %% [markdown]
# The largest size, forecast by a law that never saw it.

# %%
results.forecast[["arch", "size", "tokens", "loss", "predicted", "lo", "hi", "leap"]]
