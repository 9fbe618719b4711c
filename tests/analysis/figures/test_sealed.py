"""Open stars for what was sealed, points for what came, and the score in words."""

from __future__ import annotations

from datetime import UTC, datetime

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.collections import PathCollection

from analysis.figures import sealed_forecasts
from analysis.forecast.decays import decay_forecast
from analysis.forecast.scoring import Seal, score, score_words, stars
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
