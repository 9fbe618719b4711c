"""How the next token is chosen: penalty, temperature, filters.

In their order, as in other libraries: repetition penalty (arXiv 1909.05858: positive logits of seen
tokens divided by it, negative ones multiplied), temperature, top-k, top-p (the smallest set of most
likely tokens that reaches probability p; arXiv 1904.09751), min-p (tokens at least min_p times as
likely as the likeliest; arXiv 2407.01082).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen, and when a sequence ends.

    Raises:
        ConfigError: a value is out of range.
    """

    max_new_tokens: int = 128
    """Tokens after which a sequence ends."""
    temperature: float = 1.0
    """Divides the logits; 0: always the likeliest token."""
    top_k: int | None = None
    """Keep this many of the likeliest tokens."""
    top_p: float | None = None
    """Keep the smallest set of likeliest tokens that has this probability."""
    min_p: float | None = None
    """Keep tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of prompt and continuation become less likely."""
    seed: int = 0
    """Sequence number i draws from a generator with seed + i."""
    stop: tuple[str, ...] = ()
    """A text that holds one of these ends before it."""

    def __post_init__(self) -> None:
        self._require("max_new_tokens", self.max_new_tokens >= 1, "at least 1")
        self._require("temperature", self.temperature >= 0, "at least 0 (0: greedy)")
        self._require("top_k", self.top_k is None or self.top_k >= 1, "at least 1")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            self._require(name, value is None or 0 < value <= 1, "above 0 and at most 1")
        self._require("repetition_penalty", self.repetition_penalty > 0, "above 0 (1: none)")
        self._require("stop", all(self.stop), "texts of at least one character")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{name}={getattr(self, name)!r}: must be {rule}.")


def filter_logits(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Logits after penalty, temperature and filters; what may not be drawn is -inf.

    Args:
        logits: (B, V).
        sampling: with a temperature above 0 (greedy choices need the penalty alone).
        seen: (B, V) bool, tokens of each sequence so far; needed for a repetition penalty.
    """
    logits = logits.float()
    if seen is not None and sampling.repetition_penalty != 1:
        penalty = sampling.repetition_penalty
        logits = torch.where(
            seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits
        )
    if sampling.temperature == 0:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(-1)
        # A token goes when those before it have the probability already; the first one stays.
        beyond = share.cumsum(-1) - share >= sampling.top_p
        gone = torch.zeros_like(beyond).scatter(-1, order, beyond)
        logits = logits.masked_fill(gone, -torch.inf)
    if sampling.min_p is not None:
        share = logits.softmax(-1)
        least = sampling.min_p * share.amax(-1, keepdim=True)
        logits = logits.masked_fill(share < least, -torch.inf)
    return logits
