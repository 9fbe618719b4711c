"""Overrides of any kind, by seed: refused by name, or kept as they were given."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from experiments.quickstart import runs
from linscale.errors import LinscaleError
from models.config import ARCHS
from scaling.config.run import RunConfig, dotted_names
from scaling.plan.plan import rung
from scaling.system.devices import find_device

TEXTS = (
    "", "none", "true", "false", "0", "1", "2", "3", "4", "7", "8", "16", "64", "-1", "1.5", "1e3",
    "1e400", "nan", "inf", "-inf", "1_000", "0x10", "9" * 30, "[]", "()", "1,2", "0.9,0.95",
    "0.5,nan", "wsd", "cosine", "constant", "fsdp", "block", "auto", "cuda", "bf16", "llama",
    "hgrn2*3+llama", "hgrn2*999999999", "llama(window=4)+tnl", "kjv", "bytes", "bpe:300", "bpe:x",
    "task:mqar:pairs=8,vocab=64", "mix:0.5 kjv + 0.5 stdlib", "mix:", "text:", "../../x", "a\nb",
    "\x1b[2J", "\u202e", "\x00", "x" * 5000, "{}", "=", "both", "post", "gelu_tanh",
)  # fmt: skip


def try_overrides(rounds: int, seed: int) -> tuple[int, int]:
    """So many runs with random fields; returns how many were refused, and how many planned."""
    draw = np.random.default_rng(seed)
    each = {run.model.arch: run for run in runs()}
    device = find_device("h100")
    refused = planned = 0
    for _ in range(rounds):
        start = time.process_time()
        run = each[ARCHS[draw.integers(len(ARCHS))]]
        names = list(dotted_names(run.to_json()))
        given = [
            f"{names[draw.integers(len(names))]}={TEXTS[draw.integers(len(TEXTS))]}"
            for _ in range(draw.integers(1, 4))
        ]
        try:
            made = run.override(given)
            values = made.to_json()
            assert RunConfig.from_json(values) == made, given
            assert finite(values), given
            assert made.run_id == RunConfig.from_json(values).run_id
            row = rung(made, device)
            assert finite(row.to_json()), given
            assert min(row.tokens, row.steps, row.flops, row.memory_per_device) > 0, given
            planned += 1
        except LinscaleError:
            refused += 1
        seconds = time.process_time() - start
        assert seconds < 20, given
    return refused, planned


def finite(value: Any) -> bool:
    """Whether no number in it is infinite or none."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def test_some_overrides() -> None:
    refused, planned = try_overrides(150, 0)
    assert refused > 50
    assert planned > 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_overrides(seed: int) -> None:
    refused, planned = try_overrides(2500, seed)
    assert refused > 800
    assert planned > 60
