# %% [markdown]
# # Three approaches to one table
#
# You will learn to reproduce a published fit, to challenge it by changing one choice at a time, and
# to compare envelope, IsoFLOP and parametric fits. With `LINSCALE_DATA` set to a folder that holds
# `chinchilla_epoch/svg_extracted_data.csv`, the points are those extracted from Chinchilla's
# figure by Besiroglu et al. (arXiv 2404.10102); otherwise they are one architecture of the
# quickstart.

# %%
import os
from pathlib import Path

import pandas as pd

from linscale import attempt, fit_law, load_sweep, records, sensitivity, three_approaches, where

SWEEP = records("quickstart")  # your own: records("runs/quickstart")
PUBLIC = Path(os.environ.get("LINSCALE_DATA", "data")) / "chinchilla_epoch/svg_extracted_data.csv"

# %%
if PUBLIC.is_file():
    table = pd.read_csv(PUBLIC)
    points = table.rename(columns={"Model Size": "n_params", "Training FLOP": "flops"})
    points["tokens"] = points["flops"] / (6 * points["n_params"])
    points = points.sort_values("loss").iloc[:-5].reset_index(drop=True)  # five outliers
    source = "Chinchilla, extracted from its figure"
else:
    points = load_sweep(SWEEP).points
    names = [*dict.fromkeys(points["arch"])]
    arch = "llama" if "llama" in names or not names else names[0]
    points = where(points, arch=arch)
    source = f"{arch} of {SWEEP.stem} (set LINSCALE_DATA to use Chinchilla's points)"
print(f"{source}: {len(points)} points")

# %% [markdown]
# ## Reproduce
# Huber loss of width 1e-3 on log loss, summed.

# %%
fit = attempt(lambda: fit_law("chinchilla", points, bootstrap=200))
fit and fit.table()

# %%
for warning in fit.warnings if fit else ():
    print(warning)

# %% [markdown]
# ## Challenge
# The same data under other forms and objectives.

# %%
fit and sensitivity("chinchilla", points, reference=fit)

# %% [markdown]
# ## Compare
# An approach that the data cannot support is listed with its reason.

# %%
attempt(lambda: three_approaches(points, bootstrap=0).table())
