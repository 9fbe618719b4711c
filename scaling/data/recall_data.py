"""Sequences of the recall tasks of `scaling.data.recall_tasks`, made when they are asked for.

Sequence number n of a task is a pure function of n, the task and the length: its random numbers are
SplitMix64 words of (n, place). Nothing is stored and nothing repeats within a run; the order of the
numbers is drawn from the run's seed like that of the blocks of a text. The held-out sequences are
the numbers that training never reaches, the same for every seed.

Sequences to train on hold 1 to `load` things each, drawn uniformly, held-out ones hold `load`:
small loads are learnt first and lead to large ones, which alone take many times longer to learn. In
`compositional`, half of the questions that are trained on ask for a middle: one lookup, not two.

In `mqar` the places where keys are asked for follow a power law, as repeats in text do: slot t
after the pairs (a slot is a key and a blank) has weight t^(POWER - 1), arXiv 2312.04927. Slots
where nothing is asked are blank. An answer never stands in the sequence: with the others in sight,
what is left over could be guessed without any recall.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from models.cross_entropy import IGNORE_INDEX
from models.errors import ConfigError
from scaling.data.prepared import PreparedData
from scaling.data.recall_tasks import BLANK, MARK, SPECIAL, Recall, parse
from scaling.data.sampler import mix
from scaling.data.settings import DataSettings, Work
from scaling.data.token_store import Index
from scaling.data.tokenizers import Tokenizer

TRAINING_SEQUENCES = 2**40
"""Numbers below are trained on, those from there on are held out."""
POWER = 0.1

Rows = NDArray[np.int64]
"""Inputs and targets (n, 2, T); a target that is not scored is -100."""
Held = NDArray[np.bool_]
"""Which of the `load` things a sequence holds (n, load)."""


class Words:
    """Random numbers of some sequences, drawn one array after another."""

    def __init__(self, numbers: NDArray[np.int64]) -> None:
        self.trained_on = (numbers < TRAINING_SEQUENCES)[:, None]  # (n, 1)
        self._keys = mix(numbers.astype(np.uint64))[:, None]  # (n, 1)
        self._drawn = 0

    def words(self, count: int) -> NDArray[np.uint64]:
        """Uniform 64-bit words, (n, count)."""
        places = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        return mix(self._keys + mix(places))

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Strictly between 0 and 1, (n, count)."""
        return ((self.words(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def integers(self, count: int, low: int, high: int) -> NDArray[np.int64]:
        """From `low` to below `high`, (n, count)."""
        return low + (self.uniform(count) * (high - low)).astype(np.int64)

    def distinct(self, count: int, population: int) -> NDArray[np.int64]:
        """Different numbers from 0 to below `population`, in random order, (n, count)."""
        return self.words(population).argsort(axis=1, kind="stable")[:, :count]


def rows(
    task: Recall,
    numbers: Sequence[int] | NDArray[np.int64],
    length: int,
    load: int | None = None,
) -> Rows:
    """The sequences of the given numbers.

    Args:
        task: what they are.
        numbers: from 0.
        length: T.
        load: things in each sequence, at most `task.load`; None: mixed in those to be trained on,
            `task.load` in the others.

    Raises:
        ConfigError: `length` is too short for the task.
    """
    task.check_length(length)
    chosen = np.asarray(numbers, dtype=np.int64)
    words = Words(chosen)
    loads = words.integers(1, 1, task.load + 1)  # (n, 1)
    loads[chosen >= TRAINING_SEQUENCES] = task.load
    if load is not None:
        loads[:] = load
    held = np.arange(task.load) < loads  # (n, load): what is there at all
    shape = (len(chosen), length)
    inputs = np.full(shape, BLANK, dtype=np.int64)
    targets = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    _FILL[task.task](task, words, held, inputs, targets)
    return np.stack([inputs, targets], axis=1)


def _mqar(task: Recall, words: Words, held: Held, inputs: Rows, targets: Rows) -> None:
    pairs, length = task.load, inputs.shape[1]
    values_from = SPECIAL + (task.vocab - SPECIAL) // 2
    keys = SPECIAL + words.distinct(pairs, values_from - SPECIAL)  # (n, D)
    values = words.integers(pairs, values_from, task.vocab)  # (n, D)
    keys[~held] = values[~held] = BLANK
    inputs[:, 0 : 2 * pairs : 2], inputs[:, 1 : 2 * pairs : 2] = keys, values
    slots = length // 2 - pairs
    # The D largest of log weight + Gumbel noise are D weighted draws without replacement.
    noise = -np.log(-np.log(words.uniform(slots)))
    weights = (POWER - 1) * np.log(np.arange(1, slots + 1))
    drawn = np.argsort(-(weights + noise), axis=1, kind="stable")[:, :pairs]  # (n, D)
    asked = 2 * (pairs + drawn)
    np.put_along_axis(inputs, asked, keys, axis=1)
    np.put_along_axis(targets, asked, np.where(held, values, IGNORE_INDEX), axis=1)


def _noisy(task: Recall, words: Words, held: Held, inputs: Rows, targets: Rows) -> None:
    pairs, length = task.load, inputs.shape[1]
    symbols = task.vocab - SPECIAL
    noise_from = task.vocab - symbols // 4
    values_from = SPECIAL + (noise_from - SPECIAL) // 2
    inputs[:] = words.integers(length, noise_from, task.vocab)
    keys = SPECIAL + words.distinct(pairs, values_from - SPECIAL)  # (n, D)
    values = words.integers(pairs, values_from, noise_from)  # (n, D)
    half = length // 4  # slots of two tokens: so many with pairs among them, then the questions
    told = 2 * words.distinct(pairs, half)
    asked = 2 * (half + words.distinct(pairs, length // 2 - half))
    for places, what in ((told, keys), (told + 1, values), (asked, keys)):
        noise = np.take_along_axis(inputs, places, axis=1)
        np.put_along_axis(inputs, places, np.where(held, what, noise), axis=1)
    np.put_along_axis(targets, asked, np.where(held, values, IGNORE_INDEX), axis=1)


def _compositional(task: Recall, words: Words, held: Held, inputs: Rows, targets: Rows) -> None:
    chains, length = task.load, inputs.shape[1]
    third = (task.vocab - SPECIAL) // 3
    keys = SPECIAL + words.distinct(chains, third)  # (n, D)
    middles = SPECIAL + third + words.distinct(chains, third)
    values = words.integers(chains, SPECIAL + 2 * third, task.vocab)
    told = 2 * words.distinct(2 * chains, 2 * chains)  # (n, 2 D), places of all pairs
    first, second = told[:, :chains], told[:, chains:]
    asked = 2 * (2 * chains + words.distinct(chains, length // 2 - 2 * chains))
    # To be trained on are questions of one lookup, too: it is learnt first, and leads to two.
    short = words.trained_on & (words.uniform(chains) < 0.5)
    questions = np.where(short, middles, keys)
    for places, what in ((first, keys), (first + 1, middles), (second, middles),
                         (second + 1, values), (asked, questions)):  # fmt: skip
        np.put_along_axis(inputs, places, np.where(held, what, BLANK), axis=1)
    np.put_along_axis(targets, asked, np.where(held, values, IGNORE_INDEX), axis=1)


def _copying(task: Recall, words: Words, held: Held, inputs: Rows, targets: Rows) -> None:
    start = inputs.shape[1] - task.load
    places = np.sort(words.distinct(task.load, start), axis=1)  # (n, M)
    items = words.integers(task.load, SPECIAL, task.vocab)
    np.put_along_axis(inputs, places, np.where(held, items, BLANK), axis=1)
    inputs[:, start:] = np.where(held, MARK, BLANK)
    targets[:, start:] = np.where(held, items, IGNORE_INDEX)


def _induction(task: Recall, words: Words, held: Held, inputs: Rows, targets: Rows) -> None:
    length = inputs.shape[1]
    inputs[:] = words.integers(length, SPECIAL, task.vocab)
    place = words.integers(1, 0, length - 2)  # (n, 1)
    np.put_along_axis(inputs, place, MARK, axis=1)
    inputs[:, -1] = MARK
    targets[:, -1:] = np.take_along_axis(inputs, place + 1, axis=1)


def _tracking(things: int) -> Callable[[Recall, Words, Held, Rows, Rows], None]:
    """Permutations of so many things and, at each token, the product of those so far. They are
    numbered in the order of their texts, the identity first; later ones act on what earlier ones
    have left: place i gets what was at place p(i)."""
    elements = list(itertools.permutations(range(things)))
    number = {element: i for i, element in enumerate(elements)}
    product = np.array([[number[tuple(a[i] for i in b)] for b in elements] for a in elements])

    def fill(task: Recall, words: Words, held: Held, inputs: Rows, targets: Rows) -> None:
        steps = words.integers(task.load, 0, len(elements))  # (n, load)
        states = steps.copy()
        for t in range(1, task.load):
            states[:, t] = product[states[:, t - 1], steps[:, t]]
        inputs[:, : task.load] = np.where(held, SPECIAL + steps, BLANK)
        targets[:, : task.load] = np.where(held, SPECIAL + states, IGNORE_INDEX)

    return fill


_FILL: dict[str, Callable[[Recall, Words, Held, Rows, Rows], None]] = {
    "mqar": _mqar,
    "noisy": _noisy,
    "compositional": _compositional,
    "copying": _copying,
    "induction": _induction,
    "parity": _tracking(2),
    "s3": _tracking(3),
    "s5": _tracking(5),
}


@dataclass(frozen=True)
class Sequences:
    """The training sequences of a task, by number, as `scaling.data.token_store.Split` has
    blocks."""

    task: Recall
    length: int
    n_blocks: int = TRAINING_SEQUENCES

    def gather(self, blocks: Sequence[int] | NDArray[np.int64]) -> Rows:
        """The sequences of the given numbers: (n, 2, T)."""
        return rows(self.task, blocks, self.length)

    def will_need(self, blocks: Sequence[int] | NDArray[np.int64]) -> None:
        """Nothing: they are computed."""


@dataclass(frozen=True, kw_only=True)
class PreparedTask(PreparedData):
    """A task in the place of a tokenised corpus. A token counts as one byte."""

    @property
    def bytes_per_token(self) -> float:
        return 1.0

    def tokenizer(self) -> NoReturn:
        """Raises ConfigError: a task has none."""
        raise ConfigError(f"data.corpus={self.data.corpus!r}: tokens of a task are not text.")

    def check_rows(self, vocab_size: int) -> None:
        if vocab_size < self.vocab_size:
            raise ConfigError(
                f"model.vocab_size={vocab_size}: data.corpus={self.data.corpus!r} has "
                f"{self.vocab_size} tokens; set model.vocab_size={self.vocab_size} or more."
            )

    def verify(self) -> None:
        """Nothing is stored."""

    def verify_changed(self) -> None:
        """Nothing is stored."""

    def fingerprint(self) -> dict[str, Any]:
        return {
            "corpus": self.data.corpus,
            "vocab_size": self.vocab_size,
            "validation_blocks": len(self.validation),
            "validation_sha256": self.validation_sha256,
            "bytes_per_token": self.bytes_per_token,
        }


def held_out(task: Recall, count: int, length: int, load: int | None = None) -> Rows:
    """The first `count` sequences that no run is trained on; arguments as in `rows`."""
    return rows(task, np.arange(TRAINING_SEQUENCES, TRAINING_SEQUENCES + count), length, load)


def prepare_task(task: Recall, data: DataSettings, work: Work) -> PreparedTask:
    """The data of a run on a task; costs nothing and writes nothing.

    Raises:
        ConfigError: sequences that are too short for it.
    """
    validation = held_out(task, data.validation_blocks, data.sequence_length)
    index = Index(
        source={"corpus": data.corpus},
        vocab_size=task.vocab,
        eos_id=BLANK,
        tokenizer_sha256="",
        dtype="uint32",
        complete=True,
    )
    return PreparedTask(
        folder=work.cache,
        data=data,
        index=index,
        train=Sequences(task, data.sequence_length),
        validation=validation,
        validation_sha256=hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest(),
    )


class Symbols(Tokenizer):
    """Tokens of a task as text: their numbers with spaces between."""

    eos_id = BLANK
    prefix = ()

    def __init__(self, corpus: str) -> None:
        self.name, self.vocab_size = corpus, parse(corpus).vocab
        self.fingerprint = hashlib.sha256(f"symbols {self.vocab_size}".encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Raises ConfigError: a word that is not the number of a token."""
        return [self._numbers(text.split()) for text in texts]

    def _numbers(self, words: list[str]) -> NDArray[np.int64]:
        for word in words:
            if not word.isdecimal() or int(word) >= self.vocab_size:
                raise ConfigError(
                    f"{word!r} is no token of {self.name}: give numbers below {self.vocab_size} "
                    "with spaces between."
                )
        return np.array([int(word) for word in words], dtype=np.int64)

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> str:
        return "".join(f" {int(token)}" for token in tokens)
