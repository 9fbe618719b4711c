"""How well a model predicts text: blocks, sliding windows, whole documents, and by position.

For a text of tokens x_1..x_n with losses l_i = -ln p(x_i | what the model is given of x_<i):

    nats_per_token  = sum_i l_i / n
    bits_per_byte   = sum_i l_i / (ln 2 * UTF-8 bytes)
    word_perplexity = exp(sum_i l_i / words),  words separated by white space

| task         | text                        | what a token is predicted from                      |
|--------------|-----------------------------|-----------------------------------------------------|
| `perplexity` | the run's validation blocks | its block; equals the milestone's val_loss          |
| `position`   | the same                    | the same, by position in the block                  |
| `context`    | blocks `beyond` times as long | its block, by position beyond the training length |
| `sliding`    | documents                   | at least window - stride tokens before it           |
| `document`   | documents                   | all of the document, carried in the state           |

A document begins after one end-of-document token, as in training, and its first token is scored.
Sums run over all documents, so long ones weigh more; the standard error is that of a ratio of
sums over documents (the delta method, Cochran 1977, equation 6.13).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.language_model import LanguageModel
from scaling.data.loader import to_batch
from scaling.data.prepared import PreparedData
from scaling.data.token_store import Split
from scaling.data.tokenizers import Tokenizer
from scaling.evaluation.results import EvaluationError, Measure
from scaling.training.loss import token_losses

CHUNK = 2048
"""Tokens of a whole document that pass through the model at once."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text and its tokens."""

    tokens: tuple[int, ...]
    """Without document ends."""
    text_bytes: int
    """Its length in UTF-8."""
    words: int
    """Pieces between white space."""


def as_document(text: str, tokenizer: Tokenizer) -> Document:
    """A text as the tokenizer's tokens."""
    tokens = tuple(int(t) for t in tokenizer.encode(text))
    return Document(tokens=tokens, text_bytes=len(text.encode()), words=len(text.split()))


def read_documents(paths: Sequence[Path], tokenizer: Tokenizer) -> list[Document]:
    """One document a file.

    Raises:
        EvaluationError: a file is missing, not UTF-8, or without text.
    """
    return [as_document(read_text(path), tokenizer) for path in paths]


def read_text(path: Path) -> str:
    """The text of a file; raises EvaluationError as `read_documents`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as UTF-8 text ({error}); give text files with --text."
        ) from None
    if not text.split():
        raise EvaluationError(f"{path}: holds no text; give another file with --text.")
    return text


def validation_documents(prepared: PreparedData, most: int) -> list[Document]:
    """The first `most` documents of the validation split."""
    tokenizer, found = prepared.tokenizer(), []
    for shard in prepared.index.validation.shards:
        dtype = np.dtype(prepared.index.dtype).newbyteorder("<")
        flat = np.memmap(prepared.folder / shard.file, dtype=dtype, mode="r")
        start = 0
        for end in np.flatnonzero(flat == prepared.index.eos_id):
            tokens, start = flat[start:end].astype(np.int64), int(end) + 1
            if not len(tokens):
                continue
            text = tokenizer.decode(tokens)
            found.append(
                Document(
                    tokens=tuple(tokens.tolist()),
                    text_bytes=len(text.encode()),
                    words=len(text.split()),
                )
            )
            if len(found) == most:
                return found
    return found


@torch.no_grad()
def block_losses(
    model: LanguageModel, blocks: NDArray[np.int64], batch_size: int, boundary: int | None = None
) -> NDArray[np.float64]:
    """Loss of every token of blocks (n, T + 1), from its block alone: (n, T) nats; `boundary` as
    in `scaling.data.loader.to_batch`."""
    device = model.embedding.weight.device
    rows = []
    for first in range(0, len(blocks), batch_size):
        batch = to_batch(blocks[first : first + batch_size], boundary)
        losses = token_losses(model, tuple(x.to(device) for x in batch))  # (b, T)
        rows.append(losses.double().cpu().numpy())
    return np.concatenate(rows)


@torch.no_grad()
def sliding_losses(
    model: LanguageModel,
    tokens: Sequence[int],
    *,
    start: int,
    window: int,
    stride: int,
    batch_size: int,
) -> NDArray[np.float64]:
    """Loss of every token of a document, each predicted once: (n,) nats.

    A window holds `window` inputs. The first scores all of its tokens; each further one is
    `stride` tokens on and scores its last `stride`; the last one ends with the document and is as
    long as the others.

    Args:
        start: the token before the document.
        window: inputs of a window.
        stride: tokens between windows, from 1 to `window`.

    Raises:
        EvaluationError: a stride that skips tokens, or a window without any.
    """
    if not 1 <= stride <= window:
        raise EvaluationError(
            f"stride={stride} with window={window}: must be from 1 to the window, or tokens would "
            "go unscored; choose --stride between them."
        )
    text = torch.tensor([start, *tokens])
    n = len(tokens)
    ends = [n] if n <= window else [*range(window, n, stride), n]
    device = model.embedding.weight.device
    out = np.empty(n)
    done = 0
    for number in range(0, len(ends), batch_size):
        group = ends[number : number + batch_size]
        begins = [max(0, end - window) for end in group]
        length = group[0] - begins[0]
        rows = torch.stack([text[begin : begin + length + 1] for begin in begins]).to(device)
        losses = model.loss(rows[:, :-1], rows[:, 1:]).double().cpu().numpy()  # (b, W)
        for row, end in zip(losses, group, strict=True):
            out[done:end] = row[len(row) - (end - done) :]
            done = end
    return out


@torch.no_grad()
def document_losses(
    model: LanguageModel, tokens: Sequence[int], *, start: int, chunk: int = CHUNK
) -> NDArray[np.float64]:
    """Loss of every token from the whole document before it: (n,) nats.

    The document passes in chunks with the state carried on: the memory of a linear model does not
    grow with its length, a key-value cache does.
    """
    device = model.embedding.weight.device
    text = torch.tensor([[start, *tokens]], device=device)
    state, parts = None, []
    for first in range(0, len(tokens), chunk):
        last = min(first + chunk, len(tokens))
        hidden, state = model.hidden(text[:, first:last], state, keep_state=True)
        losses = model.losses(hidden, text[:, first + 1 : last + 1])
        parts.append(losses[0].double().cpu().numpy())
    return np.concatenate(parts)


def document_measures(
    documents: Sequence[Document], losses: Iterable[NDArray[np.float64]]
) -> list[Measure]:
    """Nats per token, bits per byte and word perplexity over documents."""
    nats = np.array([of_one.sum() for of_one in losses])
    count = len(nats)
    by_token = _ratio(nats, [len(d.tokens) for d in documents])
    by_byte = _ratio(nats / math.log(2), [d.text_bytes for d in documents])
    by_word = _ratio(nats, [d.words for d in documents])
    try:
        perplexity = math.exp(by_word[0])
    except OverflowError:
        raise EvaluationError(
            f"word perplexity: exp({by_word[0]:.0f}) is beyond all numbers; the text has "
            "hardly any white space. Give text with words in --text."
        ) from None
    spread = None if by_word[1] is None else perplexity * by_word[1]
    return [
        Measure(metric="nats_per_token", value=by_token[0], stderr=by_token[1], n=count),
        Measure(metric="bits_per_byte", value=by_byte[0], stderr=by_byte[1], n=count),
        Measure(metric="word_perplexity", value=perplexity, stderr=spread, n=count),
    ]


def block_measures(losses: NDArray[np.float64], bytes_per_token: float) -> list[Measure]:
    """Nats per token and bits per byte of blocks (n, T)."""
    loss = _mean("nats_per_token", losses.mean(axis=1))
    scale = 1 / (math.log(2) * bytes_per_token)
    spread = None if loss.stderr is None else loss.stderr * scale
    bits = Measure(metric="bits_per_byte", value=loss.value * scale, stderr=spread, n=loss.n)
    return [loss, bits]


def position_measures(losses: NDArray[np.float64]) -> list[Measure]:
    """In-context learning curve: mean loss at positions 1, 2, 3-4, 5-8, ... of blocks (n, T)."""
    length = losses.shape[1]
    ends = [2**i for i in range(length.bit_length()) if 2**i < length] + [length]
    return list(_by_range(losses, ends))


def context_measures(losses: NDArray[np.float64], trained: int) -> list[Measure]:
    """Mean loss of each stretch of `trained` positions of blocks (n, m * trained)."""
    return list(_by_range(losses, range(trained, losses.shape[1] + 1, trained)))


def long_blocks(prepared: PreparedData, length: int, most: int) -> NDArray[np.int64]:
    """Evenly spread validation blocks of another length, (at most `most`, length + 1).

    Raises:
        EvaluationError: the validation split is shorter than one block.
    """
    split = Split(prepared.folder, prepared.index.validation, prepared.index.dtype, length)
    if split.n_blocks == 0:
        raise EvaluationError(
            f"context: the validation split has {split.tokens} tokens, less than one block of "
            f"{length}; choose a smaller --beyond, or a corpus with more text."
        )
    count = min(most, split.n_blocks)
    return split.gather([i * split.n_blocks // count for i in range(count)])


def _by_range(losses: NDArray[np.float64], ends: Iterable[int]) -> Iterator[Measure]:
    first = 0
    for end in ends:
        name = f"{first + 1}" if end == first + 1 else f"{first + 1}-{end}"
        yield _mean(f"nats_per_token@{name}", losses[:, first:end].mean(axis=1))
        first = end


def _mean(metric: str, values: NDArray[np.float64]) -> Measure:
    n = len(values)
    spread = float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return Measure(metric=metric, value=float(values.mean()), stderr=spread, n=n)


def _ratio(sums: NDArray[np.float64], sizes: Sequence[int]) -> tuple[float, float | None]:
    """Ratio of sums and its standard error over documents."""
    weights = np.array(sizes, dtype=np.float64)
    ratio = float(sums.sum() / weights.sum())
    n = len(weights)
    if n < 2:
        return ratio, None
    residuals = sums - ratio * weights
    return ratio, math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(weights.sum())


def check_documents(documents: Sequence[Document]) -> None:
    """Raises EvaluationError when there is nothing to score."""
    if not documents or not all(d.tokens and d.words for d in documents):
        raise EvaluationError(
            "there is no document with words to score; give text files with --text."
        )
