"""Instructions with answers, Alpaca-style: prompt, loss on the answer alone, packed rows.

    data.corpus = "instructions:PATH.jsonl"             one object a line, or
    data.corpus = "instructions:hf:yahma/alpaca-cleaned"

An example has the texts `instruction`, `output` and, where there is one, `input`. Alpaca's template
makes a prompt of instruction and input; the answer is the output and the end-of-document token, and
its tokens alone are targets. One in so many examples is held out, by the hash of its text, as
documents are (`scaling.data.tokenised`).

Packing: whole examples share a row of T tokens and do not see each other (`cu_seqlens`): longest
first, each into the row with the least room that holds it (best-fit decreasing). What is left of a
row is a sequence of its own without targets. An example longer than T is cut at its end, and left
out where nothing of its answer remains.

Nothing is stored: the 52 thousand examples of Alpaca are tokenised in seconds.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from models.cross_entropy import IGNORE_INDEX
from scaling.data.corpora.files import decoded, find_files, object_of, read_lines
from scaling.data.corpora.hf import open_dataset
from scaling.data.prepared import PreparedData
from scaling.data.settings import DataSettings, Work
from scaling.data.token_store import Contents, Index
from scaling.data.tokenizers import Tokenizer, load_tokenizer

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
"""Alpaca's templates (github.com/tatsu-lab/stanford_alpaca)."""

Rows = NDArray[np.int64]
"""Inputs, targets and number of the example in its row, (n, 3, T)."""


class Example(NamedTuple):
    """One instruction."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class PackedRows:
    """Training rows by number, as `scaling.data.token_store.Split` has blocks."""

    rows: Rows

    @property
    def n_blocks(self) -> int:
        """Rows."""
        return len(self.rows)

    def gather(self, blocks: NDArray[np.int64] | list[int]) -> Rows:
        """The rows of the given numbers: (n, 3, T)."""
        return self.rows[np.asarray(blocks, dtype=np.int64)]

    def will_need(self, blocks: NDArray[np.int64] | list[int]) -> None:
        """Nothing: they are in memory."""


@dataclass(frozen=True, kw_only=True)
class PreparedInstructions(PreparedData):
    """Instructions in the place of a tokenised corpus."""

    counts: dict[str, int]
    """Examples cut and left out; tokens of the answers in both splits; slots of training rows."""

    @property
    def train_tokens(self) -> int:
        """Tokens of the answers to learn."""
        return self.counts["train_targets"]

    @property
    def validation_tokens(self) -> int:
        """Tokens of the held-out answers."""
        return self.counts["validation_targets"]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the examples."""
        return load_tokenizer(self.data.tokenizer)

    def verify(self) -> None:
        """Nothing is stored."""

    def verify_changed(self) -> None:
        """Nothing is stored."""

    def fingerprint(self) -> dict[str, Any]:
        """As that of a corpus, with what packing did."""
        return super().fingerprint() | self.counts


def prepare_instructions(source: str, data: DataSettings, work: Work) -> PreparedInstructions:
    """Read, tokenise and pack.

    Args:
        source: pattern of files, or `hf:NAME`.
        data: tokenizer, split and sequence length.
        work: nothing is stored.

    Raises:
        LinscaleError: the examples cannot be read, or there are too few for one training and one
            validation row.
    """
    if data.tokenizer.startswith("bpe:"):
        raise LinscaleError(
            f"data.tokenizer={data.tokenizer} with data.corpus={data.corpus}: instructions are "
            "answered by a model that has a tokenizer; give that one, bytes or file:PATH."
        )
    tokenizer = load_tokenizer(data.tokenizer)
    length, examples = data.sequence_length, list(read_examples(source, data.corpus, work.cache))
    sides: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        sides[_held_out(example, data.validation_fraction)].append(example)
    counts = {"cut": 0, "left_out": 0}
    train, validation = (_rows(side, tokenizer, length, counts) for side in sides)
    for rows, what in ((train, "training"), (validation, "validation")):
        if not len(rows):
            raise LinscaleError(
                f"corpus {data.corpus}: too short: of its {len(examples)} examples none is left "
                f"for {what} ({counts['left_out']} have no room for an answer in "
                f"data.sequence_length={length}); add examples, lengthen data.sequence_length or "
                f"change data.validation_fraction (now {data.validation_fraction})."
            )
    counts["train_targets"], counts["validation_targets"] = _targets(train), _targets(validation)
    counts["slots"] = train[:, 0].size
    validation = validation[: data.validation_blocks]
    index = Index(
        source={"corpus": data.corpus},
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        tokenizer_sha256=tokenizer.fingerprint,
        dtype="uint32",
        corpus_sha256=hashlib.sha256(repr(examples).encode()).hexdigest(),
        documents_read=len(examples),
        complete=True,
        train=_contents(sides[0]),
        validation=_contents(sides[1]),
    )
    return PreparedInstructions(
        folder=work.cache,
        data=data,
        index=index,
        train=PackedRows(train),
        validation=validation,
        validation_sha256=hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest(),
        counts=counts,
    )


def read_examples(source: str, corpus: str, cache: Path) -> Iterator[Example]:
    """The examples of files or of a dataset.

    Args:
        source: pattern of files, or `hf:NAME`.
        corpus: the `data.corpus`, for errors.
        cache: folder of the prepared corpora, which knows revisions of the hub.

    Raises:
        LinscaleError: no such files or dataset, or an example without instruction and output.
    """
    kind, _, name = source.partition(":")
    if kind == "hf":
        for row, record in enumerate(open_dataset(name, corpus, cache)):
            yield _example(f"corpus {corpus}, row {row}", dict(record))
        return
    for path in find_files(corpus, source, ".jsonl"):
        for where, line in read_lines(path):
            yield _example(where, object_of(where, decoded(where, line)))


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a row: best-fit decreasing. No length may exceed the capacity."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # room left and row, sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[item], -1))
        left, row = room.pop(place) if place < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(item)
        insort(room, (left - lengths[item], row))
    return rows


def _example(where: str, record: dict[str, Any]) -> Example:
    texts = {name: record.get(name) or "" for name in ("instruction", "input", "output")}
    for name, text in texts.items():
        if not isinstance(text, str) or (name != "input" and not text.strip()):
            raise LinscaleError(
                f"{where}: the field {name!r} holds no text; an example has the texts instruction "
                f"and output, and may have input. It has {', '.join(map(repr, record)) or 'none'}."
            )
    template = WITH_INPUT if texts["input"] else WITHOUT_INPUT
    return Example(template.format(**texts), texts["output"])


def _held_out(example: Example, fraction: float) -> bool:
    digest = hashlib.sha256("\0".join(example).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def _rows(
    examples: list[Example], tokenizer: Tokenizer, length: int, counts: dict[str, int]
) -> Rows:
    """The packed rows of some examples; adds those cut and left out to `counts`."""
    prompts = tokenizer.encode_batch([example.prompt for example in examples])
    answers = tokenizer.encode_batch([example.answer for example in examples])
    kept: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        start = len(tokenizer.prefix) + len(prompt)
        tokens = np.concatenate([tokenizer.prefix, prompt, answer, [tokenizer.eos_id]])
        inputs, targets = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
        targets[: start - 1] = IGNORE_INDEX
        counts["cut"] += start <= length < len(inputs)
        if start > length:
            counts["left_out"] += 1
            continue
        kept.append((inputs[:length], targets[:length]))
    packed = pack([len(inputs) for inputs, _ in kept], length)
    rows = np.empty((len(packed), 3, length), dtype=np.int64)
    rows[:, 0], rows[:, 1] = tokenizer.eos_id, IGNORE_INDEX
    for row, items in zip(rows, packed, strict=True):
        place = 0
        for number, item in enumerate(items):
            inputs, targets = kept[item]
            here = slice(place, place := place + len(inputs))
            row[0, here], row[1, here], row[2, here] = inputs, targets, number
        row[2, place:] = len(items)
    return rows


def _targets(rows: Rows) -> int:
    return int((rows[:, 1] != IGNORE_INDEX).sum())


def _contents(examples: list[Example]) -> Contents:
    """What a split holds; its bytes are those of the answers, which bits per byte are about."""
    size = sum(len(example.answer.encode()) for example in examples)
    return Contents(documents=len(examples), text_bytes=size)
