"""Window dropout: in some steps a layer's window is masked, and its linear part is on its own.

A window that sees nearly all of what matters leaves the linear part nothing to learn. Dropping the
window at random while the student learns, less and less, is a published remedy (arXiv 2510.05901).
Here each hybrid layer draws for itself in each step, from the run's seed and the step alone; the
probability falls linearly from `linearize.window_dropout` to 0 over each stage of the run. In
evaluation nothing is dropped (`models.linearize.lolcats`).
"""

from __future__ import annotations

import itertools

import numpy as np

from models.language_model import LanguageModel
from models.linearize.parts import hybrid_mixers
from scaling.config.run import RunConfig


def probability(config: RunConfig, step: int) -> float:
    """With which a window is masked in the step after `step`."""
    counts = [stage.steps for stage in config.objectives]
    for start, count in zip(itertools.accumulate(counts, initial=0), counts, strict=False):
        if step < start + count:
            return config.linearize.window_dropout * (1 - (step - start) / count)
    return 0.0


def drop(net: LanguageModel, config: RunConfig, step: int) -> None:
    """Mask the windows of the layers that the step after `step` draws."""
    mixers = hybrid_mixers(net).values()
    draws = np.random.default_rng([config.seed, step]).random(len(mixers))
    for mixer, draw in zip(mixers, draws, strict=True):
        mixer.dropped = bool(draw < probability(config, step))
