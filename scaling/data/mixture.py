"""Mixtures of corpora with weights.

    data.corpus = "mix:0.7 hf:DATASET + 0.2 text:books/*.txt + 0.1 stdlib"

Weights are shares of the training sequences, and so of the tokens, whatever the sizes of the
corpora, up to 1/4096: a run may see a small one many times and a large one not to its end. They
need not sum to 1. Which corpora can be mixed, `scaling.data.corpora.mix` says; what is made of it,
`scaling.data.mixture_data`.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import ConfigError

PREFIX = "mix"
PERIOD = 4096
"""Samples in which every corpus has its quota, the same in all periods. Part of the order: another
value is another run."""


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """One corpus of a mixture."""

    corpus: str
    """As in `data.corpus`."""
    weight: float
    """Share of the training sequences; all of a mixture's sum to 1."""


def parse(corpus: str) -> tuple[Ingredient, ...]:
    """The ingredients of a mixture.

    Raises:
        ConfigError: not `mix:WEIGHT CORPUS + WEIGHT CORPUS ...` with different corpora and positive
            weights, each at least 1 / 4096 of the whole.
    """
    weights: dict[str, float] = {}
    for part in corpus.partition(":")[2].split(" + "):
        number, _, name = part.strip().partition(" ")
        name = name.strip()
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not (0 < weight < float("inf")) or not name:
            raise mixture_error(corpus, f"{part.strip()!r} is not a positive weight and a corpus")
        if name in weights:
            raise mixture_error(corpus, f"{name} comes twice; add its weights up")
        weights[name] = weight
    if len(weights) < 2:
        raise mixture_error(corpus, "a mixture has at least two corpora")
    total = sum(weights.values())
    found = tuple(Ingredient(corpus=name, weight=w / total) for name, w in weights.items())
    for one in found:
        if one.weight < 1 / PERIOD:
            raise mixture_error(
                corpus, f"the share of {one.corpus}, {one.weight:.1g}, is below 1/{PERIOD}"
            )
    return found


def mixture_error(corpus: str, what: str) -> ConfigError:
    """The error for a mixture that cannot be."""
    return ConfigError(
        f"data.corpus={corpus!r}: {what}. Write, for example, 'mix:0.7 kjv + 0.3 stdlib': weights "
        "and corpora with ' + ' between them."
    )
