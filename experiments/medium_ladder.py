"""The medium ladder: the four architectures over a 100-fold range of parameters, with forecasts.

Question: do laws of softmax attention and of three linear mixers, fitted at small compute, say
beforehand what models with 64 times the compute will lose?
Command, in a folder that holds the text as data/prose (`python -m experiments.corpora build
data/prose` makes it, `python -m experiments.corpora leaks experiments/medium_ladder.py` looks for
leaks):

    nice linscale run experiments/medium_ladder.py --in-order --jobs 1    (resumable)

Forecasts are sealed in experiments/forecasts before the runs that they predict are begun:
medium_ladder_from_small.json from the small ladder, which read another text, so that its losses are
not expected to hold; then, each time that a size is finished, one from this ladder's own records.

Expected: 52 runs, 208 decayed models. Runs are in the order of their compute, so that what is
finished is a ladder at any time: the three smallest sizes, which cost at most a 64th of the
largest runs, then their other seeds, then the others by size.

Seven sizes of 27 thousand to 2.7 million parameters besides the embedding; from the fifth on, the
longest run of LLaMA costs 1.5e14 FLOPs. All architectures see the same bytes, at most two thirds
of the text once; every size is decayed at the last horizon, a half, a quarter and an eighth of it.

A token is a byte. With a vocabulary of four thousand, the output layer would do three quarters and
more of the smallest models' work and a fifth of the largest ones', so that small models would
differ in little but their embedding; and 67 MB of text would be less than 20 million tokens, too
few for one pass.

Learning rate and batch follow from a search of the same size for each architecture
(`experiments.medium_rates`), by width: `RATES` says what it found.
"""

from __future__ import annotations

from models.config import ARCHS, Arch, toy_config
from scaling.config.recipes import TOY_VOCAB, toy_recipe
from scaling.config.run import RunConfig

CORPUS = (
    "mix:0.201 jsonl:data/prose/essays.jsonl + 0.072 jsonl:data/prose/handbooks.jsonl"
    " + 0.456 jsonl:data/prose/manuals.jsonl + 0.271 jsonl:data/prose/kernel.jsonl"
)
"""In proportion to the bytes, as `experiments.corpora` prints it."""
VALIDATION_BLOCKS = 512
PRECISION = "bf16"
TOKENS = {
    32: 7_600_000,
    48: 4_200_000,
    64: 1_800_000,
    80: 20_000_000,
    96: 44_000_000,
    128: 20_800_000,
    176: 8_300_000,
}
"""Bytes that each width is trained on: the three smallest cost LLaMA 2.3e12 FLOPs, the three
largest 1.5e14."""
SEEDED = (32, 48, 64)
SEEDS = (0, 1, 2)
LARGEST = (128, 176)
"""The sizes that forecasts are judged by."""
BATCHES = {32: 2048, 48: 2048, 64: 2048, 80: 4096, 96: 4096, 128: 4096, 176: 4096}

RATES: dict[Arch, tuple[float, float]] = {
    "llama": (2**-6.16, -1.04),
    "tnl": (2**-6.91, -0.77),
    "hgrn2": (2**-6.31, -1.15),
    "cosformer2": (2**-6.39, -1.28),
}
"""Best peak rate at width 32 with the batch of 2048, and the power of width by which it falls, as
`experiments/medium_rates.py` prints them."""
BATCH_FACTOR = {2048: 1.0, 4096: 2**0.5}
"""The rate goes with the root of the batch: between the shifts of the search, which are from none
(LLaMA) to more than an octave (cosFormer2)."""


def runs() -> list[RunConfig]:
    """The smallest sizes, then their other seeds, then the larger sizes."""
    order = [(seed, dim) for seed in SEEDS for dim in SEEDED]
    order += [(0, dim) for dim in TOKENS if dim not in SEEDED]
    return [
        rung(
            f"{arch}-d{dim}-s{seed}",
            arch,
            dim,
            tokens=TOKENS[dim],
            horizons=tuple(TOKENS[dim] // part for part in (8, 4, 2)),
            rate=rate(arch, dim),
            batch=BATCHES[dim],
            seed=seed,
        )
        for seed, dim in order
        for arch in ARCHS
    ]


def rate(arch: Arch, dim: int) -> float:
    """Peak learning rate of an architecture at a width and its batch."""
    at, power = RATES[arch]
    return round(at * (dim / 32) ** power * BATCH_FACTOR[BATCHES[dim]], 6)


def rung(
    name: str,
    arch: Arch,
    dim: int,
    *,
    tokens: int,
    horizons: tuple[int, ...],
    rate: float,
    batch: int,
    seed: int = 0,
) -> RunConfig:
    """A model of one width on the text, as all runs of this ladder and of its search have it.

    Args:
        name: slug of the run.
        arch: architecture.
        dim: width.
        tokens: budget in bytes.
        horizons: where decayed models are taken.
        rate: peak learning rate.
        batch: bytes of a step.
        seed: of initialisation and data order.
    """
    model = toy_config(arch, dim, vocab_size=TOY_VOCAB)
    run = toy_recipe(
        name,
        f"d{dim}",
        model,
        tokens=tokens,
        horizons=horizons,
        tokens_per_step=batch,
        lr=rate,
        seed=seed,
    )
    return run.override(
        [
            f"data.corpus={CORPUS}",
            "data.validation_fraction=0.02",
            f"data.validation_blocks={VALIDATION_BLOCKS}",
            f"parallel.precision={PRECISION}",
        ]
    )
