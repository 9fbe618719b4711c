"""The data of a run on a mixture of corpora (`scaling.data.mixture`): each prepared as if alone.

Every corpus has its own folder in the cache, shared with runs on that corpus alone and with other
mixtures, so that new weights cost no tokenising. The validation blocks are shared out by the same
weights; loss and bits per byte are those of the mixture.

The order of the training blocks is a pure function of (seed, samples consumed):

1. Samples are dealt out in periods of 4096. In each, source j gets a fixed quota of the slots
   (its weight, rounded by largest remainders), in an order drawn from (seed, period).
2. The n-th sample of source j is the n-th block of its own order
   (`scaling.data.sampler.BlockOrder`): every block once an epoch of that source.

So the quotas are met after every period, nothing is stored, and a run resumes at any sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from models.errors import ConfigError
from scaling.data.mixture import PERIOD, Ingredient
from scaling.data.prepared import PreparedData
from scaling.data.sampler import BlockOrder, permute
from scaling.data.settings import DataSettings, Work
from scaling.data.token_store import Contents, Index, Source


def quotas(weights: tuple[float, ...], total: int) -> NDArray[np.int64]:
    """`total` shared out by weights that sum to 1, by largest remainders, at least 1 each.

    Args:
        weights: one a source.
        total: at least as many as there are sources.
    """
    exact = np.asarray(weights) * total
    shares = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (left := total - int(shares.sum())) != 0:
        # Fewer than there are sources; the lower number wins among equals.
        step = 1 if left > 0 else -1
        gap = np.where((shares > 1) | (step > 0), step * (exact - shares), -np.inf)
        shares[int(np.argmax(gap))] += step
    return shares


@dataclass(frozen=True, kw_only=True)
class MixtureOrder:
    """The endless sequence of training blocks of one run on a mixture.

    Blocks are numbered through all sources, in their order.
    """

    n_blocks: tuple[int, ...]
    """Blocks of each source."""
    weights: tuple[float, ...]
    """Share of each source; they sum to 1."""
    seed: int
    """Seed of the run."""

    def blocks(self, first: int, count: int) -> NDArray[np.int64]:
        """Block numbers of samples first, ..., first + count - 1: (count,)."""
        shares = quotas(self.weights, PERIOD)
        ends = np.cumsum(shares)
        periods, places = np.divmod(np.arange(first, first + count, dtype=np.int64), PERIOD)
        slots = np.empty(count, dtype=np.int64)
        for period in np.unique(periods):
            chosen = periods == period
            slots[chosen] = permute(places[chosen], PERIOD, self.seed, int(period))
        sources = np.searchsorted(ends, slots, side="right")
        numbers = periods * shares[sources] + slots - (ends - shares)[sources]
        out = np.empty(count, dtype=np.int64)
        for source in np.unique(sources):
            chosen = sources == source
            # Sources of one size would otherwise be read in one order.
            order = BlockOrder(n_blocks=self.n_blocks[source], seed=self.seed + 1 + int(source))
            out[chosen] = order.at(numbers[chosen]) + sum(self.n_blocks[:source])
        return out


@dataclass(frozen=True)
class Sources:
    """The training blocks of several corpora, numbered through."""

    parts: tuple[Source, ...]

    @property
    def n_blocks(self) -> int:
        """Blocks of all."""
        return sum(part.n_blocks for part in self.parts)

    def gather(self, blocks: NDArray[np.int64] | list[int]) -> NDArray[np.int64]:
        """The blocks of the given numbers, in their order: (n, T + 1)."""
        rows: dict[int, NDArray[np.int64]] = {}
        for part, places, numbers in self._by_part(blocks):
            rows |= dict(zip(places.tolist(), part.gather(numbers), strict=True))
        return np.stack([rows[i] for i in range(len(blocks))])

    def will_need(self, blocks: NDArray[np.int64] | list[int]) -> None:
        """Start reading these blocks."""
        for part, _, numbers in self._by_part(blocks):
            part.will_need(numbers)

    def _by_part(
        self, blocks: NDArray[np.int64] | list[int]
    ) -> Iterator[tuple[Source, NDArray[np.intp], NDArray[np.int64]]]:
        """For each part that holds some of the blocks: their places among them, and their numbers
        in the part."""
        wanted = np.asarray(blocks, dtype=np.int64)
        ends = np.cumsum([part.n_blocks for part in self.parts])
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < ends[-1]:
            raise IndexError(f"block {wanted.min()}..{wanted.max()} of {ends[-1]}")
        owners = np.searchsorted(ends, wanted, side="right")
        for owner in np.unique(owners).tolist():
            places = np.flatnonzero(owners == owner)
            part = self.parts[owner]
            yield part, places, wanted[places] - (ends[owner] - part.n_blocks)


@dataclass(frozen=True, kw_only=True)
class PreparedMixture(PreparedData):
    """Several prepared corpora in the place of one."""

    ingredients: tuple[Ingredient, ...]
    parts: tuple[PreparedData, ...]
    """One for each ingredient; the validation blocks of each are its share of all."""

    @property
    def bytes_per_token(self) -> float:
        """Mean over the validation blocks, each counted with that of its corpus: total bits over
        total bytes is the loss over this mean."""
        blocks = [len(part.validation) for part in self.parts]
        return float(np.average([part.bytes_per_token for part in self.parts], weights=blocks))

    def order(self, seed: int) -> MixtureOrder:
        """The order of the training blocks."""
        return MixtureOrder(
            n_blocks=tuple(part.train.n_blocks for part in self.parts),
            weights=tuple(one.weight for one in self.ingredients),
            seed=seed,
        )

    def verify_changed(self) -> None:
        for part in self.parts:
            part.verify_changed()

    def fingerprint(self) -> dict[str, Any]:
        """As that of a corpus, with those of its own."""
        sources = [
            part.fingerprint() | {"weight": one.weight}
            for one, part in zip(self.ingredients, self.parts, strict=True)
        ]
        return super().fingerprint() | {"sources": sources}


def prepare_mixture(
    ingredients: tuple[Ingredient, ...],
    data: DataSettings,
    work: Work,
    prepare_one: Callable[[DataSettings], PreparedData],
) -> PreparedMixture:
    """Prepare, or open, every corpus of a mixture.

    Args:
        ingredients: of `data.corpus`.
        data: for all of them.
        work: where they lie.
        prepare_one: makes the data of one of them, from `data` with its corpus and its validation
            blocks.

    Raises:
        LinscaleError: a corpus cannot be prepared, or has too few validation blocks for its share.
        ConfigError: fewer validation blocks than corpora, or a tokenizer that would be another one
            for each of them.
    """
    if data.tokenizer.startswith("bpe:"):
        raise ConfigError(
            f"data.tokenizer={data.tokenizer!r} with a mixture: it would be trained on each corpus "
            "anew. Train it on one (its tokenizer.json lies in the prepared corpus), and use "
            "data.tokenizer=file:PATH/tokenizer.json."
        )
    if data.validation_blocks < len(ingredients):
        raise ConfigError(
            f"data.validation_blocks={data.validation_blocks}: a mixture of {len(ingredients)} "
            "corpora needs at least one for each."
        )
    weights = tuple(one.weight for one in ingredients)
    parts: list[PreparedData] = []
    for one, blocks in zip(ingredients, quotas(weights, data.validation_blocks), strict=True):
        alone = replace(data, corpus=one.corpus, validation_blocks=int(blocks))
        part = prepare_one(alone)
        if len(part.validation) < blocks:
            raise LinscaleError(
                f"corpus {one.corpus}: its validation split has {len(part.validation)} blocks of "
                f"data.sequence_length={data.sequence_length}, less than the {blocks} that are its "
                f"share of data.validation_blocks={data.validation_blocks}; lower that, or raise "
                f"data.validation_fraction (now {data.validation_fraction})."
            )
        parts.append(part)
    validation = np.concatenate([part.validation for part in parts])
    return PreparedMixture(
        folder=work.cache,
        data=data,
        index=_index(data, ingredients, parts),
        train=Sources(tuple(part.train for part in parts)),
        validation=validation,
        validation_sha256=hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest(),
        ingredients=ingredients,
        parts=tuple(parts),
    )


def _index(
    data: DataSettings, ingredients: tuple[Ingredient, ...], parts: list[PreparedData]
) -> Index:
    """What all corpora hold together; files are named from the cache."""
    first = parts[0].index
    content = [
        f"{one.weight!r} {part.index.corpus_sha256}"
        for one, part in zip(ingredients, parts, strict=True)
    ]

    def contents(split: str) -> Contents:
        each = [(part.folder.name, getattr(part.index, split)) for part in parts]
        return Contents(
            shards=[
                replace(shard, file=f"{folder}/{shard.file}")
                for folder, of_one in each
                for shard in of_one.shards
            ],
            documents=sum(of_one.documents for _, of_one in each),
            text_bytes=sum(of_one.text_bytes for _, of_one in each),
        )

    return Index(
        source={"corpus": data.corpus},
        vocab_size=first.vocab_size,
        eos_id=first.eos_id,
        tokenizer_sha256=first.tokenizer_sha256,
        dtype=first.dtype,
        corpus_sha256=hashlib.sha256("\n".join(content).encode()).hexdigest(),
        documents_read=sum(part.index.documents_read for part in parts),
        empty_documents=sum(part.index.empty_documents for part in parts),
        complete=True,
        train=contents("train"),
        validation=contents("validation"),
    )
