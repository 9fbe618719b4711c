# %% [markdown]
# # The paper's figures, with our points
#
# You will learn how the laws of Table 3 of arXiv 2406.16690 look next to recorded runs, and what
# these records cannot say. They feed training curves, L(C), N_opt(C) and D_opt(C). Task averages,
# aspect ratio, context length, needle heat maps and SCROLLS need sweeps that are not in these
# records and are therefore not drawn here.
#
# Ours are byte-level models far smaller than the paper's; the paper's law is for 70M to 7B and
# another tokenizer. Losses per token do not compare between the two: only slopes and shapes do.

# %%
# %matplotlib inline
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis import figures
from analysis.records import load_sweep
from analysis.study import study
from analysis.style import look

SWEEP = Path("experiments/results/quickstart")  # your own: Path("runs/paper_ladder")
DRAWS = 60  # refits of the bootstrap; 2000 for a paper
PF_DAY = 8.64e19  # FLOPs in a petaFLOP/s-day, the paper's unit of C

# %% [markdown]
# Table 3: coefficient and exponent of L(C), N_opt(C) and D_opt(C), C in petaFLOP/s-days.

# %%
TABLE_3 = pd.DataFrame(
    {
        "llama": (3.7087, -0.0798, 1.82e8, 0.7118, 2.56e10, 0.5102),
        "tnl": (3.5391, -0.0768, 2.74e8, 0.6470, 4.43e10, 0.4684),
        "hgrn2": (3.4788, -0.0753, 2.66e8, 0.6427, 4.80e10, 0.4500),
        "cosformer2": (3.5877, -0.0756, 2.65e8, 0.6516, 4.23e10, 0.4529),
    },
    index=["L", "L exponent", "N", "N exponent", "D", "D exponent"],
).T
TABLE_3

# %%
sweep = load_sweep(SWEEP)
results = study(sweep, bootstrap=DRAWS)
figures.learning_curves(sweep.curves, sweep.points)

# %% [markdown]
# Each line is a law, ours within our data and the paper's within the paper's compute.


# %%
def overlay(quantity: str, ours: pd.DataFrame, label: str):
    """Our optimum (solid) and the paper's law (dashed) of one quantity against compute."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for group in [g for g in results.groups if g in TABLE_3.index]:
        colour = look(group).color
        band = ours[(ours["group"] == group) & ours["inside"]]
        axes.loglog(band["x"], band["y"], color=colour, label=look(group).label)
        axes.fill_between(band["x"], band["lo"], band["hi"], color=colour, alpha=0.2, lw=0)
        paper = np.geomspace(0.4, 180)
        scale, power = TABLE_3.loc[group, quantity], TABLE_3.loc[group, f"{quantity} exponent"]
        axes.loglog(paper * PF_DAY, scale * paper**power, "--", color=colour)
    axes.set(xlabel="training compute (FLOPs)", ylabel=label)
    axes.legend(title="solid: ours, dashed: paper")
    plt.close(figure)  # the cell shows what it returns
    return figure


overlay("L", results.loss_bands(), "loss (nats per token; tokenizers differ)")

# %%
best = results.optimum_bands()
overlay("N", best[best["quantity"] == "n"], "N_opt (non-embedding parameters)")

# %%
overlay("D", best[best["quantity"] == "d"], "D_opt (tokens)")
