"""The order of data: a bijection in each epoch, and a function of the sample number alone."""

from __future__ import annotations

from itertools import chain, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.data.sampler import BlockOrder, StepSampler, permute

seeds = st.integers(0, 2**63 - 1)


@given(n=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 2**40))
@settings(deadline=None)
def test_each_epoch_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    image = permute(np.arange(n), n, seed, epoch)
    assert np.array_equal(np.sort(image), np.arange(n))


@given(n=st.integers(1, 10**12), seed=seeds, position=st.integers(0, 10**12 - 1))
@settings(deadline=None)
def test_huge_domains_cost_nothing_and_stay_inside(n: int, seed: int, position: int) -> None:
    image = permute(np.array([position % n]), n, seed, 0)
    assert 0 <= image[0] < n


def test_distinct_positions_of_a_huge_domain_have_distinct_images() -> None:
    n = 10**9 + 7
    rng = np.random.default_rng(0)
    positions = np.unique(rng.integers(0, n, 200_000))
    assert len(np.unique(permute(positions, n, 1, 2))) == len(positions)


@given(
    n=st.integers(1, 500),
    seed=seeds,
    first=st.integers(0, 2000),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=8),
)
@settings(deadline=None)
def test_resuming_anywhere_gives_the_same_samples(
    n: int, seed: int, first: int, cuts: list[int]
) -> None:
    order = BlockOrder(n_blocks=n, seed=seed)
    whole = order.blocks(first, sum(cuts))
    starts = first + np.cumsum([0, *cuts[:-1]])
    parts = [order.blocks(int(s), c) for s, c in zip(starts, cuts, strict=True)]
    assert np.array_equal(np.concatenate(parts), whole)


@given(
    seed=seeds,
    micro=st.integers(1, 4),
    world=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    start_step=st.integers(0, 40),
)
@settings(deadline=None)
def test_a_step_holds_the_same_samples_for_any_layout(
    seed: int, micro: int, world: int, accumulation: int, start_step: int
) -> None:
    batch = micro * world * accumulation
    order = BlockOrder(n_blocks=97, seed=seed)
    ranks = [
        iter(
            StepSampler(
                order=order,
                start_samples=start_step * batch,
                batch_sequences=batch,
                micro_batch_sequences=micro,
                rank=rank,
                world_size=world,
            )
        )
        for rank in range(world)
    ]
    for step in range(start_step, start_step + 3):
        # Micro-batch by micro-batch and rank by rank this is the order of one process.
        seen = [b for _ in range(accumulation) for rank in ranks for b in next(rank)]
        assert seen == order.blocks(step * batch, batch).tolist()


def test_permutations_of_a_small_domain_look_uniform() -> None:
    # 4000 keys, n = 12: each (position, image) cell expects 333. Rows and columns of the table are
    # fixed sums, so for uniform permutations (n - 1) / n times the statistic is chi-square with
    # (n - 1)^2 = 121 degrees of freedom: mean 132, standard deviation 17. The bound is 5 of them.
    n, trials = 12, 4000
    counts = np.zeros((n, n))
    for seed in range(trials):
        counts[np.arange(n), permute(np.arange(n), n, seed, 0)] += 1
    chi_square = ((counts - trials / n) ** 2 / (trials / n)).sum()
    assert chi_square < 217


def test_neighbours_and_epochs_are_unrelated() -> None:
    n = 20_000
    first = permute(np.arange(n), n, 7, 0).astype(float)
    second = permute(np.arange(n), n, 7, 1).astype(float)
    other = permute(np.arange(n), n, 8, 0).astype(float)
    # A correlation of independent orders has standard deviation n^-1/2 = 0.007.
    for x, y in ((first[:-1], first[1:]), (first, second), (first, other)):
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.03
    assert abs(np.corrcoef(first, np.arange(n))[0, 1]) < 0.03


def test_order_is_pinned() -> None:
    # Records of finished runs rely on this order: a change here is a change of every run.
    order = BlockOrder(n_blocks=10, seed=0)
    pinned = [0, 7, 4, 2, 1, 8, 5, 6, 9, 3, 6, 2, 7, 4, 3, 5, 8, 9, 0, 1]
    assert order.blocks(0, 20).tolist() == pinned


def test_bad_layouts_are_refused() -> None:
    order = BlockOrder(n_blocks=10, seed=0)
    with pytest.raises(ValueError, match="batch_sequences=6"):
        StepSampler(order=order, start_samples=0, batch_sequences=6, micro_batch_sequences=4)
    with pytest.raises(ValueError, match="n_blocks=0"):
        BlockOrder(n_blocks=0, seed=0)


def test_sampler_never_ends() -> None:
    sampler = StepSampler(
        order=BlockOrder(n_blocks=3, seed=0),
        start_samples=0,
        batch_sequences=2,
        micro_batch_sequences=2,
    )
    batches = list(islice(sampler, 30))
    assert len(batches) == 30
    assert sorted(chain.from_iterable(batches)) == sorted([0, 1, 2] * 20)
