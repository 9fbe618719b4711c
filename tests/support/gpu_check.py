"""`make gpu-check`: at which shapes, which tests come first, which are done, and how gradients of
slopes are judged."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

FIRST = (
    "bfloat16", "128, 128", "rows", "None", "mild", "loss_and_gradients", "cuda_graph", "compiles",
)  # fmt: skip
"""What makes a test worth running early, the most telling first: what models run with."""


SHAPES = [
    # batch, tokens, heads, key_dim, value_dim
    (2, 63, 2, 16, 16),
    (1, 200, 3, 60, 36),
    (2, 1000, 4, 64, 64),
    (1, 513, 4, 128, 128),
    (1, 300, 2, 128, 64),
    (1, 257, 2, 256, 256),
]
"""That every family's kernels are checked at on a GPU: a tile, masked and unequal head dimensions,
and the largest."""


def slope_error(found: Tensor, terms: Tensor) -> float:
    """Error of the gradient of slopes (H,), from its terms by token (B, T, H).

    Against the sum of the terms' absolute values: the terms of a head may nearly cancel, and what
    is left is then smaller than the rounding of any one of them in sound arithmetic.
    """
    expected, scale = terms.sum((0, 1)), terms.abs().sum((0, 1))
    return float((found.double() - expected).norm() / scale.norm().clamp_min(1e-30))


def in_order(names: Sequence[str], done: Sequence[str] = ()) -> list[str]:
    """Names of tests that have not passed yet, the most telling first, else as they were."""
    passed = set(done)

    def value(name: str) -> int:
        return sum(2 ** (len(FIRST) - i) for i, word in enumerate(FIRST) if word in name)

    return sorted((name for name in names if name not in passed), key=value, reverse=True)
