"""Tokenizers: from `data.tokenizer` to token numbers and back.

| tokenizer                   | vocabulary                                                        |
|-----------------------------|-------------------------------------------------------------------|
| `bytes`                     | 256: the bytes of UTF-8; byte 0xFF ends a document                |
| `bpe:VOCAB`                 | byte-level BPE, trained on the training documents of the corpus   |
| `file:PATH/tokenizer.json`  | any tokenizer of the Hugging Face `tokenizers` library            |
| `tiktoken:NAME`             | an encoding of `tiktoken`, such as `cl100k_base`                  |

UTF-8 never holds the byte 0xFF, so the byte vocabulary needs no 257th entry. Every tokenizer has an
end-of-document token that ordinary text never encodes to; `encode` does not add it.

BPE is trained on at most the first 256 MiB of training text. The result depends only on that text
and the vocabulary.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from models.errors import ConfigError
from scaling.data import text_pieces
from scaling.data.json_tokenizer import (
    END_OF_TEXT,
    JsonTokenizer,
    load_json_tokenizer,
    named_end,
)
from scaling.data.tokenizer_base import Tokenizer
from scaling.system.freed_memory import give_back_memory

if TYPE_CHECKING:
    import tiktoken

_BPE_MINIMUM = 257  # 256 bytes and the end-of-document token
_TIKTOKEN = {"gpt2": 50_257, "r50k_base": 50_257, "p50k_base": 50_281, "p50k_edit": 50_284,
             "cl100k_base": 100_277, "o200k_base": 200_019, "o200k_harmony": 201_088}  # fmt: skip
"""n_vocab of tiktoken's encodings, which are downloaded when they are first used."""
_BPE_TRAINING_BYTES = 256 * 2**20
_TRAINING_PIECE = 16 * 2**10
"""Characters; the library holds 256 pieces at once while it counts words."""


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8."""

    name = "bytes"
    vocab_size = 256
    eos_id = 0xFF
    fingerprint = hashlib.sha256(b"utf-8 bytes, 0xff ends a document").hexdigest()
    cut_rule = text_pieces.ANYWHERE
    costly = False

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) for text in texts]

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> str:
        values = np.asarray(tokens)
        return values[values != self.eos_id].astype(np.uint8).tobytes().decode(errors="replace")


class TiktokenTokenizer(Tokenizer):
    """An encoding of tiktoken."""

    cut_rule = text_pieces.BETWEEN_WORDS

    def __init__(self, name: str, inner: tiktoken.Encoding) -> None:
        self.name = name
        self.inner = inner
        self.eos_id = inner.eot_token
        self.vocab_size = inner.n_vocab
        digest = hashlib.sha256(f"{inner.name} {self.eos_id} {self.vocab_size}".encode())
        for token in sorted(inner.token_byte_values()):
            digest.update(f"{inner.encode_single_token(token)} ".encode() + token + b"\n")
        self.fingerprint = digest.hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        encodings = self.inner.encode_ordinary_batch(list(texts))
        return [np.array(ids, dtype=np.int64) for ids in encodings]

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> str:
        return self.inner.decode([int(t) for t in tokens if t != self.eos_id])


def bpe_vocabulary(name: str) -> int:
    """VOCAB of `bpe:VOCAB`.

    Raises:
        ConfigError: it is not a number, or too small for the bytes and the end-of-document token.
    """
    argument = name.partition(":")[2]
    if not argument.isdecimal() or int(argument) < _BPE_MINIMUM:
        raise ConfigError(
            f"data.tokenizer={name!r}: the vocabulary must be a whole number of at least "
            f"{_BPE_MINIMUM}, 256 bytes and one end-of-document token; for example bpe:4096."
        )
    return int(argument)


def vocabulary_of(name: str) -> int | None:
    """Tokens of a tokenizer by its name alone, so that a plan has the model that a run will have.

    Returns:
        None where that cannot be said here: an encoding of tiktoken that is not in the table, or a
        file that the `tokenizers` library, which is not installed, would have to read.

    Raises:
        LinscaleError: a file is missing or is no tokenizer.
        ConfigError: a name that cannot work.
    """
    kind, _, argument = name.partition(":")
    if kind == "bytes":
        return ByteTokenizer.vocab_size
    if kind == "bpe":
        return bpe_vocabulary(name)
    if kind == "tiktoken":
        return _TIKTOKEN.get(argument)
    if kind == "file" and importlib.util.find_spec("tokenizers") is not None:
        return load_tokenizer(name).vocab_size
    return None


def signature(name: str) -> str:
    """Changes when the tokenizer's file or its end of a document does; empty for tokenizers that
    are known by name."""
    kind, _, argument = name.partition(":")
    if kind != "file":
        return ""
    path = _file(name, argument)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    end = named_end(path)
    return digest if end is None else f"{digest} {end}"


def load_tokenizer(name: str, trained: Path | None = None) -> Tokenizer:
    """The tokenizer of a name.

    Args:
        name: `data.tokenizer`.
        trained: for `bpe:`, the `tokenizer.json` that `train_bpe` led to.

    Raises:
        LinscaleError: a file is missing or is no tokenizer, or tiktoken cannot get its vocabulary.
        ConfigError: a name that cannot work.
    """
    kind, _, argument = name.partition(":")
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "tiktoken":
        return _tiktoken(name, argument)
    if kind == "bpe":
        if trained is None:
            raise ValueError("a bpe tokenizer is loaded from the file that its training wrote")
        return load_json_tokenizer(name, trained)
    return load_json_tokenizer(name, _file(name, argument))


def train_bpe(
    name: str, texts: Iterable[str], read: Callable[[], object] = lambda: None
) -> JsonTokenizer:
    """Byte-level BPE of exactly the named vocabulary.

    Args:
        name: `bpe:VOCAB`.
        texts: of which the first 256 MiB are read.
        read: called when they have been read and pairs are merged.

    Raises:
        LinscaleError: the text has too few distinct pieces for that many tokens.
        ConfigError: the vocabulary is not a number or too small.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    vocabulary = bpe_vocabulary(name)
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces = (
        piece
        for text in _first_bytes(texts, _BPE_TRAINING_BYTES)
        for piece in text_pieces.cut(text, text_pieces.BEFORE_SPACES, _TRAINING_PIECE)
    )
    source = _Interruptible(pieces, read)
    source.run(lambda: inner.train_from_iterator(source, trainer))
    give_back_memory()
    reached = inner.get_vocab_size()
    if reached < vocabulary:
        raise LinscaleError(
            f"data.tokenizer={name!r}: the training text is too small for {vocabulary} tokens, its "
            f"words run out at {reached}; choose data.tokenizer=bpe:{reached} or less."
        )
    return JsonTokenizer(name, inner)


class _Interruptible:
    """Texts for work outside Python, which runs in a thread so that Ctrl-C is heard meanwhile.

    The library takes no notice of signals, and merging pairs takes minutes. The thread cannot be
    stopped while it merges; it is a daemon, and ends with the process.
    """

    def __init__(self, texts: Iterable[str], read: Callable[[], object]) -> None:
        self._texts, self._read = texts, read
        self._error: BaseException | None = None
        self._stopped = False

    def __iter__(self) -> Iterator[str]:
        try:
            for text in self._texts:
                if self._stopped:
                    return
                yield text
            self._read()
        except BaseException as error:  # the library would make another of it
            self._error = error

    def run(self, work: Callable[[], object]) -> None:
        """Do the work to its end; raises what iterating over the texts or the work raised."""

        def target() -> None:
            try:
                work()
            except BaseException as error:
                self._error = self._error or error

        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
        except BaseException:
            self._stopped = True  # while it reads, it ends at the next text
            thread.join(0.5)
            raise
        if self._error is not None:
            raise self._error


def _first_bytes(texts: Iterable[str], limit: int) -> Iterable[str]:
    for text in texts:
        if limit <= 0:
            return
        limit -= sum(len(piece.encode()) for piece in text_pieces.cut(text, text_pieces.ANYWHERE))
        yield text


def _file(name: str, argument: str) -> Path:
    path = Path(argument).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise LinscaleError(
            f"tokenizer {name}: there is no file {path} (seen from {Path.cwd()}); give the path of "
            "a tokenizer.json in data.tokenizer."
        )
    return path


def _tiktoken(name: str, encoding: str) -> TiktokenTokenizer:
    import tiktoken

    known = tiktoken.list_encoding_names()
    if encoding not in known:
        raise ConfigError(f"data.tokenizer={name!r}: tiktoken knows {', '.join(known)}.")
    try:
        return TiktokenTokenizer(name, tiktoken.get_encoding(encoding))
    except OSError as error:  # requests' errors are OSErrors
        fetch = f"import tiktoken; tiktoken.get_encoding('{encoding}')"
        raise LinscaleError(
            f"tokenizer {name}: tiktoken cannot download its vocabulary "
            f"({type(error).__name__}). On a machine with network, set TIKTOKEN_CACHE_DIR to an "
            f'empty folder and run `python -c "{fetch}"`; copy the folder here and set '
            "TIKTOKEN_CACHE_DIR to it; or choose data.tokenizer=bytes or bpe:32768."
        ) from error
