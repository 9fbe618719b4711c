# %% [markdown]
# # Forecast, seal, score
#
# You will learn to forecast runs before they are made, to seal the forecast, and to score it by
# what came: first the largest size from the smaller ones, then the decay of a trunk from its curve.
# On the command line this is `linscale forecast SWEEP --for FILE -o f.json`,
# `linscale forecast SWEEP --decays`, and `linscale forecast --score f.json SWEEP`.

# %%
# %matplotlib inline
from dataclasses import replace
from datetime import UTC, datetime

from analysis.forecast.decays import decay_forecast
from analysis.forecast.forecasting import forecast
from analysis.forecast.scoring import Seal, score, score_words, stars
from analysis.forecast.seal import seal
from analysis.forecast.targets import Target
from linscale import attempt, figures, load_sweep, records

SWEEP = records("quickstart")  # your own: records("runs/quickstart")

# %% [markdown]
# ## What is known, and what is asked
# The largest size of each architecture is put aside, as if it had not been trained.

# %%
sweep = load_sweep(SWEEP)
points = sweep.points
largest = points.groupby("arch")["n_params"].transform("max")
known = replace(sweep, points=points[points["n_params"] < largest].reset_index(drop=True))
asked = [
    Target(name=f"{p.arch} {p.size} at {p.tokens:.2g} tokens", n=p.n_params, d=p.tokens, c=p.flops,
           group=str(p.arch), run_id=str(p.run_id))
    for p in points[points["n_params"] == largest].itertuples()
]  # fmt: skip
print(f"{len(known.points)} losses known, {len(asked)} asked for")

# %% [markdown]
# ## Forecast and seal
# The seal is a hash over the rows used, the law and the answers: `linscale forecast -o` writes it
# to a file, which is then committed, before the runs begin.


# %%
def sealed(body):
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return seal({"sealed_at": now, "git_revision": None, **body})


record = attempt(lambda: sealed(forecast(known, asked)))
for name, group in record["groups"].items() if record else ():
    print(name, *group["notes"], sep="\n  ")

# %% [markdown]
# ## Score
# The outcomes are read from the whole sweep. Here they are older than the seal, which a real score
# says of each row: this forecast was made afterwards, without looking.

# %%
seals = [Seal("largest size", record, [])] if record else []
scores = attempt(lambda: score(seals, sweep))
columns = ["question", "leap", "forecast", "lo_90", "hi_90", "observed", "error", "in_90", "crps"]
scores.table[columns].round(3) if scores else None

# %%
lines = {
    str(arch): score_words(own.to_dict("records")) for arch, own in scores.table.groupby("group")
} if scores else {}  # fmt: skip
attempt(lambda: figures.sealed_forecasts(stars(seals, scores), lines)) if scores else None

# %% [markdown]
# ## The decay of a trunk
# One architecture's largest run has a trunk that is taken as not yet decayed. A law of loss over
# tokens, fitted to all other trunks and decays, says what its decays will give.

# %%
decays = attempt(lambda: sealed(decay_forecast(sweep, hide="hgrn2-d64")))
outcome = attempt(lambda: score([Seal("decays", decays, [])], sweep)) if decays else None
outcome.table[columns].round(3) if outcome else None
