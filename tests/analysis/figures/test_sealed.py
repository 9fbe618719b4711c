"""Open stars for what was sealed, points for what came, and the score in words."""

from __future__ import annotations

from datetime import UTC, datetime

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection

from analysis.figures import sealed_forecasts
from analysis.forecast.decays import decay_forecast
from analysis.forecast.scoring import Seal, fitted_on, score, score_words, stars
from analysis.forecast.seal import seal
from tests.support.trajectories import Run, sweep_of


def test_stars_and_outcomes() -> None:
    sizes = (2e4, 5e4, 1e5, 2e5)
    world = sweep_of([*(Run(n, 100) for n in sizes), Run(4e5, 100, done=False)])
    now = datetime.now(UTC).isoformat(timespec="seconds")
    body = decay_forecast(world, hide="n3")
    assert len(body["forecasts"]) == 4  # two hidden, two not made
    seals = [Seal("f.json", seal({"sealed_at": now, "git_revision": None, **body}), [])]
    scores = score(seals, world)
    table = stars(seals, scores)
    assert len(table) == 4
    assert np.isfinite(table["observed"]).sum() == 2
    line = score_words(scores.table.to_dict("records"))
    assert line.startswith("2 of 2 in 90 %, mean error ")
    assert score_words([]) == "no outcome yet"
    figure = sealed_forecasts(table, {"llama": line})
    drawn = [
        np.asarray(c.get_offsets()) for c in figure.axes[0].collections
        if isinstance(c, PathCollection)
    ]  # fmt: skip
    assert sorted(len(offsets) for offsets in drawn) == [2, 4]
    np.testing.assert_allclose(sorted(drawn[1][:, 1]), sorted(scores.table["observed"].to_list()))
    assert line in [text.get_text() for text in figure.axes[0].texts]
    plt.close(figure)


def test_what_the_law_was_fitted_to_is_small_beside_the_forecasts() -> None:
    row = {"group": "llama", "run_id": "a", "c": 1e12, "loss": 3.0}
    record = {"data": {"used": [row, row, {**row, "run_id": "b", "c": None}]}}
    fitted = fitted_on([Seal("f.json", record, []), Seal("g.json", record, [])])
    assert fitted.to_dict("records") == [{"arch": "llama", "name": "a", "flops": 1e12, "loss": 3.0}]
    table = pd.DataFrame([{"arch": "llama", "seal": "f.json", "name": "x", "flops": 1e14,
                           "loss": 2.0, "lo": 1.9, "hi": 2.1, "observed": np.nan}])  # fmt: skip
    figure = sealed_forecasts(table, {}, fitted)
    drawn = [
        np.asarray(c.get_offsets()) for c in figure.axes[0].collections
        if isinstance(c, PathCollection)
    ]  # fmt: skip
    assert sorted(tuple(o[0]) for o in drawn if len(o)) == [(1e12, 3.0), (1e14, 2.0)]
    plt.close(figure)
