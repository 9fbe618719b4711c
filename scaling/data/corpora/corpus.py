"""What is known of a kind of corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from models.errors import ConfigError
from scaling.data.documents import Documents
from scaling.data.settings import DataSettings, Work

if TYPE_CHECKING:
    from scaling.data.prepared import PreparedData
    from scaling.data.tokenizers import Tokenizer

S = TypeVar("S")
"""What `Corpus.parse` makes of a `data.corpus`."""


def _accept(settings: Any, data: DataSettings) -> None:
    """No rule beyond how the corpus is written."""


@dataclass(frozen=True, kw_only=True)
class Corpus(Generic[S]):
    """One kind of corpus: everything that the rest of the suite may ask about it."""

    prefix: str
    """What a `data.corpus` of this kind begins with, before the colon."""
    form: str
    """How it is written, for messages: `text:GLOB`."""
    parse: Callable[[str], S]
    """What a `data.corpus` says. Raises ConfigError where it is not well written. Free of numpy
    and torch, and reads no file, as configuration is made on machines without the data."""
    check: Callable[[S, DataSettings], None] = field(default=_accept)
    """Raises ConfigError where other fields of the configuration do not suit it; as free."""
    prepare: Callable[[S, DataSettings, Work], PreparedData]
    """Makes, or opens, the data of a run. Raises LinscaleError."""
    documents: Callable[[S, DataSettings], Documents] | None = None
    """Opens its texts, one after another; None where it is not made of such, and cannot be mixed
    with others. Raises LinscaleError where it does not exist here."""
    tokenizer: Callable[[str], Tokenizer] | None = None
    """The tokenizer of a `data.corpus` whose tokens are no text, in the place of
    `data.tokenizer`."""
    masked: bool = False
    """Whether targets count in some places only: answers."""
    packed: bool = False
    """Whether a row of a batch may hold several examples that do not see each other, whatever
    `data.document_mask` says."""
    not_text: str = ""
    """Why the perplexity of its held-out part says nothing, and what to evaluate in its place; ""
    where it does."""


def argument_of(corpus: str) -> str:
    """What follows the prefix of a `data.corpus`."""
    return corpus.partition(":")[2]


def needs_argument(kinds: str) -> Callable[[str], str]:
    """A `parse` for kinds that are a prefix and one argument.

    Args:
        kinds: how such a corpus is written, as `Corpus.form`.
    """

    def parse(corpus: str) -> str:
        if not (argument := argument_of(corpus)):
            raise ConfigError(f"data.corpus={corpus!r}: must be written {kinds}.")
        return argument

    return parse


def without_argument(corpus: str) -> None:
    """A `parse` for kinds that are one word."""
    if ":" in corpus:
        name = corpus.partition(":")[0]
        raise ConfigError(f"data.corpus={corpus!r}: must be written {name}, without an argument.")


def prepare_texts(open_texts: Callable[[S, DataSettings], Documents]) -> Callable[..., Any]:
    """The `prepare` of kinds that are made of documents: tokenised once, into the cache.

    Args:
        open_texts: their `documents`.
    """

    def prepare(settings: S, data: DataSettings, work: Work) -> PreparedData:
        from scaling.data.tokenised import prepare_documents  # with numpy

        return prepare_documents(open_texts(settings, data), data, work)

    return prepare
