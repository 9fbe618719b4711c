"""Synthetic recall tasks by name: what a model can hold in its state and find again.

    data.corpus = "task:mqar:pairs=8,vocab=64"

`mqar`: `pairs` keys with their values; later every key once more, whose value is to be given.

`noisy`: the same, with pairs strewn among tokens of noise, which fill the sequence: a quarter of
the vocabulary is noise alone. A longer sequence has more of it.

`compositional`: `chains` of two pairs each, a key with a middle and the middle with a value, all
pairs in random order; later every key once, whose value is to be given: two lookups, one after the
other. In training, half of the questions are a middle's.

`copying`: `items` tokens strewn among blanks, then as many marks; at the marks, the items are to be
given in their order.

`induction`: random tokens, among them once a mark and the token after it; at the end the mark comes
again, and that token is to be given.

`parity`, `s3`, `s5`: `steps` permutations of 2, 3 or 5 things, one a token; at each, the
permutation that they make together is to be given. This is state tracking: what must be held is
small, but every token changes all of it. A recurrence whose steps only shrink its state cannot do
parity at all lengths, one whose steps may reflect it can (arXiv 2411.12537, `negative_eigenvalues`
of the delta rule); no finite group is harder than S5 (arXiv 2404.08819).

Sources: multi-query associative recall of arXiv 2312.04927, noisy recall of arXiv 2403.17844
(section 3.1; there noise also stands between a key and its value), selective copying of arXiv
2312.00752 (section 4.1.1), induction heads of arXiv 2212.14052 and 2312.00752 (section 4.1.2).

A run on a task is a run like any other, but that only the answers are scored, nothing is held out
of a text (`validation_fraction` has no meaning) and there is no tokenizer: tokens are numbers. The
sequences are made by `scaling.data.recall_data`, answers are counted by `linscale evaluate --tasks
recall`. This module is free of numpy and torch, as all configuration is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from models.errors import ConfigError

PREFIX = "task"
BLANK, MARK = 0, 1
"""The token that means nothing, and the one that asks for an answer."""
SPECIAL = 2
"""Tokens from here on are content."""


@dataclass(frozen=True)
class Kind:
    """What is known of a task before its parameters."""

    load: str
    """Parameter that says how many things must be remembered at once; "" where it is one."""
    default_load: int
    default_vocab: int
    room: int
    """Least tokens of a sequence for each thing to remember."""
    symbols: int
    """Least content tokens of the vocabulary for each thing to remember, and in any case."""
    least_symbols: int
    grows: bool = False
    """Longer sequences hold more: each token is one of the things. In other tasks they hold more
    that means nothing."""


KINDS: dict[str, Kind] = {
    # Keys are all different, and there are as many values.
    "mqar": Kind("pairs", 8, 64, room=4, symbols=2, least_symbols=4),
    # A quarter of the symbols is noise; the others as above.
    "noisy": Kind("pairs", 8, 64, room=4, symbols=3, least_symbols=6),
    # Keys, middles and values; two pairs and a question.
    "compositional": Kind("chains", 4, 32, room=6, symbols=3, least_symbols=3),
    "copying": Kind("items", 8, 16, room=2, symbols=0, least_symbols=2),
    "induction": Kind("", 1, 16, room=3, symbols=0, least_symbols=2),
    # As many symbols as there are permutations.
    "parity": Kind("steps", 32, 4, room=1, symbols=0, least_symbols=2, grows=True),
    "s3": Kind("steps", 32, 8, room=1, symbols=0, least_symbols=6, grows=True),
    "s5": Kind("steps", 32, 122, room=1, symbols=0, least_symbols=120, grows=True),
}


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A task with its difficulty."""

    task: str
    """One of `KINDS`."""
    load: int
    """Things to remember at once: pairs, items, or 1; permutations to follow."""
    vocab: int
    """Tokens, blank and mark included; `model.vocab_size` must be at least that."""

    def at_length(self, length: int, trained: int) -> Recall:
        """The task in sequences of another length than that of training (tokens): as much to
        remember, or where the task grows with its sequences, in proportion more."""
        if not KINDS[self.task].grows:
            return self
        return replace(self, load=max(1, self.load * length // trained))

    def check_length(self, length: int) -> None:
        """Raises ConfigError when a sequence of `length` tokens is too short for the task."""
        least = KINDS[self.task].room * self.load
        if length < least:
            raise ConfigError(
                f"data.sequence_length={length}: {self.task} with {self.load} to remember needs "
                f"sequences of at least {least} tokens."
            )


def parse(corpus: str) -> Recall:
    """The task of a `data.corpus`; parameters that it leaves out take their defaults.

    Raises:
        ConfigError: a task or parameter that does not exist, or a value that cannot work.
    """
    _, _, spec = corpus.partition(":")
    name, _, text = spec.partition(":")
    if name not in KINDS:
        raise ConfigError(f"data.corpus={corpus!r}: the tasks are {', '.join(KINDS)}.")
    kind = KINDS[name]
    values = {kind.load: kind.default_load} if kind.load else {}
    values["vocab"] = kind.default_vocab
    example = f"{PREFIX}:{name}:" + ",".join(f"{key}={value}" for key, value in values.items())
    for part in text.split(",") if text else ():
        key, _, number = part.partition("=")
        if key not in values or not number.isdecimal():
            raise ConfigError(f"data.corpus={corpus!r}: {part!r} is unclear; write {example!r}.")
        values[key] = int(number)
    vocab, load = values.pop("vocab"), next(iter(values.values()), kind.default_load)
    if load < 1:
        raise ConfigError(f"data.corpus={corpus!r}: {kind.load} must be at least 1.")
    least = SPECIAL + max(kind.symbols * load, kind.least_symbols)
    if vocab < least:
        raise ConfigError(f"data.corpus={corpus!r}: vocab must be at least {least}.")
    return Recall(task=name, load=load, vocab=vocab)
