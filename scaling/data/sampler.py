"""Data order as a pure function of (seed, samples consumed).

Sample number k of a run is block `order.blocks(k, 1)` of the training split. Nothing is stored and
nothing is advanced, so a run resumed at sample k continues exactly, and the order is the same for
any number of loader workers, any world size and any split of the batch.

Each epoch visits every block once, in an order drawn from (seed, epoch). The permutation is never
written out: it is a Feistel network over a rectangle a x b that just covers [0, n), walked on until
it lands inside (Black and Rogaway, *Ciphers with Arbitrary Finite Domains*, CT-RSA 2002):

    x = (l, r),  l in Z_a, r in Z_b;   odd rounds: l += F(r) mod a;   even rounds: r += F(l) mod b

Every round is invertible, so the whole is a bijection; a b - n < a, so walking on is rare. Memory
is O(1) and 10^12 blocks cost the same as ten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
"""Feistel rounds. Four suffice in theory for large domains; small ones need a few more, and a
round costs nanoseconds."""

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: a bijection of 64-bit words with full avalanche."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    """One 64-bit key per round, from two independent words: seed and epoch."""
    words = np.array([seed & _MASK, epoch], dtype=np.uint64)
    start = int(mix(mix(words[:1]) ^ words[1:] * np.uint64(_GOLDEN))[0])
    steps = np.array([(start + i * _GOLDEN) & _MASK for i in range(1, ROUNDS + 1)], dtype=np.uint64)
    return list(mix(steps))


def permute(positions: NDArray[np.int64], n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Images of `positions`, each in [0, n), under the permutation of [0, n) of (seed, epoch)."""
    keys = _round_keys(seed, epoch)
    a = np.uint64(isqrt(n - 1) + 1 if n > 1 else 1)  # ceil(sqrt(n))
    b = np.uint64(-(-n // int(a)))
    x = positions.astype(np.uint64)
    outside = np.ones(x.shape, dtype=bool)
    while outside.any():
        left, right = x[outside] // b, x[outside] % b
        for i, key in enumerate(keys):
            if i % 2 == 0:
                left = (left + mix(right ^ key) % a) % a
            else:
                right = (right + mix(left ^ key) % b) % b
        x[outside] = left * b + right
        outside = x >= np.uint64(n)
    return x.astype(np.int64)


class Order(Protocol):
    """An endless sequence of training blocks."""

    def blocks(self, first: int, count: int) -> NDArray[np.int64]:
        """Block numbers of samples first, ..., first + count - 1: (count,)."""
        ...


@dataclass(frozen=True, kw_only=True)
class BlockOrder:
    """The endless sequence of training blocks of one run."""

    n_blocks: int
    """Blocks in the training split, at least 1."""
    seed: int
    """Seed of the run."""

    def __post_init__(self) -> None:
        if self.n_blocks < 1:
            raise ValueError(f"n_blocks={self.n_blocks}: must be at least 1.")

    def blocks(self, first: int, count: int) -> NDArray[np.int64]:
        """Block numbers of samples first, ..., first + count - 1: (count,)."""
        return self.at(np.arange(first, first + count, dtype=np.int64))

    def at(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Block numbers of any samples: (n,)."""
        epochs, positions = np.divmod(samples, self.n_blocks)
        out = np.empty(len(samples), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            out[chosen] = permute(positions[chosen], self.n_blocks, self.seed, int(epoch))
        return out


@dataclass(frozen=True, kw_only=True)
class StepSampler:
    """Micro-batches of one rank: the batch sampler of the training loader.

    Step s of the run uses samples [s B, (s + 1) B) whatever the layout. Within the step,
    micro-batch i of rank r holds m consecutive samples from s B + (i W + r) m.
    """

    order: Order
    start_samples: int
    """Samples that the run has consumed already, over all ranks."""
    batch_sequences: int
    """Global batch B in sequences."""
    micro_batch_sequences: int
    """Sequences m in one forward pass of one rank; W m divides B."""
    rank: int = 0
    world_size: int = 1
    """Data-parallel ranks W."""

    def __post_init__(self) -> None:
        if self.batch_sequences % (self.world_size * self.micro_batch_sequences):
            raise ValueError(
                f"batch_sequences={self.batch_sequences} is not a multiple of world_size="
                f"{self.world_size} times micro_batch_sequences={self.micro_batch_sequences}."
            )

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start_samples + self.rank * self.micro_batch_sequences
        while True:
            yield self.order.blocks(first, self.micro_batch_sequences).tolist()
            first += self.world_size * self.micro_batch_sequences
