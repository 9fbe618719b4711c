"""Needle in a haystack: can a model repeat a fact that stands somewhere in a long text?

    haystack[: depth] + needle + haystack[depth :] + question   ->   does the answer follow?

`needle` (the paper's easy mode) hides question and answer together; `needle_standard` hides the
answer's sentence alone, and the question is asked at the end only. A cell of the grid is a success
when greedy decoding begins with the answer, upper and lower case aside: an exact match that a base
model without instruction tuning can reach (scorer `exact`). Scorer `contains` is content with the
answer anywhere in the continuation. Default grid: 35 lengths from 1,000 to 16,000 tokens
times 35 depths from 0 to 100 % (arXiv 2406.16690, section 3.4; its needle and scorer are not
stated, these are ours).

Scores of a grid s (depths D, lengths L) of zeros and ones, arXiv 2406.16690, appendix B:

    acc@len       = mean over depths of the longest length that is at most len
    acc<=len      = mean over all cells of lengths up to len
    weighted      = sum_dl w_d w_l s / sum_dl w_d w_l,  w_d = depth_growth^(d-1),
                    w_l = length_growth^(l-1): deep and long cells weigh more
    NIAH score    = sum_l w_l p_l sum_d w_d s / sum_dl w_d w_l, with the penalty
                    p = 0 without a success at that length, 1 if all depths succeed, else
                    2^((1-n)/2) for n runs of equal outcomes along the depths

The growth factors are above 1 and not stated in the paper; the defaults here are explicit, and part
of the recorded settings. The exponent reading of the penalty is ours (the print has 2(1-n)/2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.accounting import kv_cache_bytes
from models.config import ModelConfig
from models.generation import Sampling, generate_tokens
from scaling.evaluation.results import EvaluationError, Measure
from scaling.evaluation.settings import Scorer
from scaling.record.pretrained import Pretrained

LENGTHS = tuple(int(n) for n in np.linspace(1000, 16000, 35).round())
"""The default lengths of a prompt, in tokens."""
BEYOND = 2
"""How many training lengths softmax attention is asked at most: the paper's 16K after 8K."""


@dataclass(frozen=True, kw_only=True)
class Needle:
    """What is hidden and asked."""

    question: str = "What is the secret number of the old harbour?"
    """Asked at the end; in easy mode hidden as well."""
    cue: str = " The secret number of the old harbour is"
    """Begins the sentence with the answer, hidden and at the end of the prompt."""
    answer: str = " 4831"
    """What must follow the cue."""

    def hidden(self, easy: bool) -> str:
        """The text that is put into the haystack."""
        sentence = f"{self.cue}{self.answer}.\n"
        return f"\n{self.question}{sentence}" if easy else f"\n{sentence.lstrip()}"

    @property
    def asked(self) -> str:
        """The end of the prompt."""
        return f"\n{self.question}{self.cue}"


def check_lengths(
    config: ModelConfig, lengths: Sequence[int], trained: int | None, allowed: int | None = None
) -> str | None:
    """What to say of lengths beyond the training of a model; None: nothing.

    Softmax attention over all keys meets rotary angles there that it has never seen, and is worth
    asking a little beyond only: up to `BEYOND` times, as far as the paper goes. A recurrent state,
    or a window, carries on at any length.

    Args:
        config: model.
        lengths: asked for.
        trained: tokens of its training sequences; None: not known, and anything goes.
        allowed: tokens that the user says it can take.

    Raises:
        EvaluationError: softmax attention, and a length far beyond.
    """
    longest = max(lengths)
    if trained is None or longest <= max(trained, allowed or 0):
        return None
    bounded = kv_cache_bytes(config, longest) == kv_cache_bytes(config, trained)
    beyond = f"{longest:,} tokens are {longest / trained:,.3g} times the {trained:,} of training"
    if bounded:
        return f"{beyond}; its state carries on there, but has never been trained at such distances"
    most = BEYOND * max(trained, allowed or 0)
    if longest > most:
        raise EvaluationError(
            f"{beyond}, and softmax attention has never seen such positions; choose --lengths up "
            f"to {most:,}, or --max-length {longest} if the model can take them."
        )
    return f"{beyond}, positions that softmax attention has never seen"


def depths(count: int) -> NDArray[np.float64]:
    """Depths from 0 to 1; a single one is in the middle."""
    return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


def prompt(
    haystack: Sequence[int],
    needle: Sequence[int],
    asked: Sequence[int],
    length: int,
    depth: float,
    start: Sequence[int] = (),
) -> list[int]:
    """Tokens of a cell, exactly `length`, those that begin a text (`start`) included.

    Raises:
        EvaluationError: the haystack is too short, or the length does not hold needle and question.
    """
    taken = len(start) + len(needle) + len(asked)
    room = length - taken
    if room < 1:
        raise EvaluationError(
            f"a length of {length} tokens does not hold needle and question, which take {taken}; "
            "choose larger --lengths."
        )
    if len(haystack) < room:
        raise EvaluationError(
            f"the haystack has {len(haystack)} tokens and {room} are needed for a length of "
            f"{length}; give a longer text with --haystack, or smaller --lengths."
        )
    cut = round(depth * room)
    return [*start, *haystack[:cut], *needle, *haystack[cut:room], *asked]


def grid(
    pretrained: Pretrained,
    haystack: str,
    *,
    lengths: Sequence[int],
    depth_count: int,
    easy: bool,
    scorer: Scorer = "exact",
    batch_size: int = 1,
    needle: Needle | None = None,
) -> NDArray[np.float64]:
    """Outcomes, (depths, lengths), 1 for a success.

    Raises:
        EvaluationError: see `prompt`.
    """
    needle = needle or Needle()
    tokenizer = pretrained.tokenizer
    hidden, asked = (
        [int(t) for t in tokenizer.encode(text)] for text in (needle.hidden(easy), needle.asked)
    )
    # A token is seldom as long as eight characters; where it is, the whole text is encoded.
    straw = [int(t) for t in tokenizer.encode(haystack[: 8 * max(lengths)])]
    if len(straw) < max(lengths):
        straw = [int(t) for t in tokenizer.encode(haystack)]
    start = list(tokenizer.prefix) or [tokenizer.eos_id]
    spare = 4 if scorer == "exact" else 32
    sampling = Sampling(
        max_new_tokens=len(tokenizer.encode(needle.answer)) + spare, temperature=0.0
    )
    out = np.zeros((depth_count, len(lengths)))
    for column, length in enumerate(lengths):
        prompts = [
            prompt(straw, hidden, asked, length, float(depth), start)
            for depth in depths(depth_count)
        ]
        for first in range(0, depth_count, batch_size):
            batch = prompts[first : first + batch_size]
            completions = generate_tokens(
                pretrained.model, tokenizer, batch, sampling, eos_ids=pretrained.eos_ids
            )
            for row, completion in enumerate(completions, start=first):
                out[row, column] = is_match(completion.text, needle.answer, scorer)
    return out


def is_match(text: str, answer: str, scorer: Scorer = "exact") -> bool:
    """Whether a continuation begins with the answer, or contains it, as a whole word."""
    pattern = rf"(?<!\w){re.escape(answer.strip().lower())}(?!\w)"
    search = re.match if scorer == "exact" else re.search
    return search(pattern, text.strip().lower()) is not None


def accuracy_at(outcomes: NDArray[np.float64], lengths: Sequence[int], length: int) -> float:
    """acc@len: mean over depths of the longest tested length that is at most `length`."""
    return float(outcomes[:, _upto(lengths, length)[-1]].mean())


def accuracy_upto(outcomes: NDArray[np.float64], lengths: Sequence[int], length: int) -> float:
    """acc<=len: mean over all cells of lengths up to `length`."""
    return float(outcomes[:, _upto(lengths, length)].mean())


def weighted_accuracy(
    outcomes: NDArray[np.float64], *, depth_growth: float, length_growth: float
) -> float:
    """Weighted average of outcomes (depths, lengths)."""
    weights = _weights(outcomes.shape, depth_growth, length_growth)
    return float((weights * outcomes).sum() / weights.sum())


def niah_score(
    outcomes: NDArray[np.float64],
    *,
    depth_growth: float,
    length_growth: float,
    threshold: float = 0.5,
) -> float:
    """Weighted average of binarised outcomes with each length's penalty."""
    binary = (outcomes >= threshold).astype(np.float64)
    factors = np.array([penalty(column) for column in binary.T])  # (L,)
    return weighted_accuracy(
        binary * factors, depth_growth=depth_growth, length_growth=length_growth
    )


def penalty(column: NDArray[np.float64]) -> float:
    """Factor of one length from its zeros and ones along the depths."""
    if not column.any():
        return 0.0
    runs = 1 + int((np.diff(column) != 0).sum())
    return 2.0 ** ((1 - runs) / 2)  # one run of successes: 1


def measures(
    outcomes: NDArray[np.float64],
    lengths: Sequence[int],
    *,
    depth_growth: float,
    length_growth: float,
) -> list[Measure]:
    """All scores of a grid; acc@ and acc<= at powers of two from 1,024 that are within it.

    The cells themselves go with `accuracy`, for heat maps.
    """
    n = outcomes.size
    growth = {"depth_growth": depth_growth, "length_growth": length_growth}
    values = {
        "niah_score": niah_score(outcomes, **growth),
        "weighted_accuracy": weighted_accuracy(outcomes, **growth),
        "accuracy": float(outcomes.mean()),
    }
    marks = [2**i for i in range(10, 31) if min(lengths) <= 2**i < 2 * max(lengths)]
    for mark in marks:
        values[f"acc@{mark}"] = accuracy_at(outcomes, lengths, mark)
        values[f"acc<={mark}"] = accuracy_upto(outcomes, lengths, mark)
    cells = {
        "lengths": list(lengths),
        "depths": depths(len(outcomes)).tolist(),
        "scores": outcomes.tolist(),
    }
    return [
        Measure(metric=k, value=v, stderr=None, n=n, grid=cells if k == "accuracy" else None)
        for k, v in values.items()
    ]


def _weights(
    shape: tuple[int, ...], depth_growth: float, length_growth: float
) -> NDArray[np.float64]:
    if depth_growth < 1 or length_growth < 1:
        raise EvaluationError(
            f"depth_growth={depth_growth} and length_growth={length_growth}: must be at least 1 "
            "(1: all cells weigh the same)."
        )
    by_depth = np.float64(depth_growth) ** np.arange(shape[0])
    by_length = np.float64(length_growth) ** np.arange(shape[1])
    return np.outer(by_depth, by_length).astype(np.float64)


def _upto(lengths: Sequence[int], length: int) -> NDArray[np.intp]:
    """Columns of lengths up to `length`, in increasing order of length."""
    array = np.asarray(lengths)
    order = np.argsort(array, kind="stable")
    found = order[array[order] <= length]
    if not len(found):
        raise EvaluationError(
            f"needle: no tested length is at most {length}; the shortest is {array.min()}."
        )
    return found
