"""Tokens to whole optimizer steps: how budgets and horizons are rounded, for runs and readers."""

from __future__ import annotations


def whole_steps(tokens: int, per_step: int) -> int:
    """The nearest whole number of steps of `per_step` tokens, at least one; halves go up."""
    return max(1, (2 * tokens + per_step) // (2 * per_step))
