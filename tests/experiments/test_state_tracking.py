"""The state-tracking experiment and its table."""

from __future__ import annotations

import pandas as pd
import pytest

from experiments.state_tracking import MIXERS, SEEDS, TASKS, runs
from experiments.state_tracking_table import COLUMNS, markdown
from scaling.data.recall_tasks import parse


@pytest.mark.parametrize("toy", [True, False])
def test_every_run_can_name_its_answers(toy: bool) -> None:
    configs = runs(toy)
    assert len({c.run_id for c in configs}) == len(configs) == len(MIXERS) * len(TASKS) * len(SEEDS)
    for config in configs:
        assert parse(config.data.corpus).vocab <= config.model.vocab_size
        assert config.data.sequence_length >= parse(config.data.corpus).load


def test_cells_are_the_range_over_seeds() -> None:
    accuracy = {("parity", 0): 0.5, ("parity", 1): 0.999, ("s3", 0): 0.25, ("s3", 1): 0.25}
    frame = pd.DataFrame(
        [(task, "tnl", seed, 32, x) for (task, seed), x in accuracy.items()], columns=list(COLUMNS)
    )
    lines = markdown(frame).splitlines()
    assert lines[0] == "| mixer | parity, 32 | s3, 32 | s5, 32 |"
    (row,) = [line for line in lines if line.startswith("| tnl |")]
    assert row == "| tnl | 50-100 | 25 | not run |"
    assert lines[-1] == "| guessing | 50 | 16.7 | 0.833 |"
