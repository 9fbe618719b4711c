"""Continue prompts: prefill in parallel, then decode one token a sequence and step.

1. Prompts of any lengths pass through the model's parallel form once: packed into one row with
   boundaries (`cu_seqlens`) where padding would change the state, padded behind their ends where it
   would not (`LanguageModel.keeps_tokens`).
2. The states that come out are stepped as a batch. Recurrent states keep their size; LLaMA's cache
   grows, up to its window where it has one. A sequence that ends leaves the batch.
3. Each sequence draws from a generator of its own, seeded with `seed` plus its number in the batch,
   so that a prompt is continued alike alone and in any company.

How a token is chosen is `models.sampling`; how tokens become text, `models.text_stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from models.config import ConfigError
from models.language_model import LanguageModel, State
from models.sampling import Sampling, filter_logits
from models.text_stream import TextStream

__all__ = [
    "Completion",
    "Decoder",
    "Sampling",
    "TextStream",
    "filter_logits",
    "generate",
    "generate_tokens",
    "prefill",
    "read",
]

Reason = Literal["length", "end", "stop"]


class TextTokenizer(Protocol):
    """What text generation needs of a tokenizer."""

    eos_id: int
    vocab_size: int
    prefix: tuple[int, ...]
    """Tokens before every text."""

    def encode(self, text: str) -> Iterable[int]:
        """Token numbers of a text."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token numbers."""
        ...


class Decoder:
    """A batch of sequences that are being continued.

    decoder = Decoder(model, prompts, sampling, eos_ids)
    while decoder.running:
        for sequence, token in decoder.advance():
            ...  # decoder.finish(sequence) ends one for a reason of the caller's
    """

    @torch.no_grad()
    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        eos_ids: Iterable[int] = (),
        vocab_size: int | None = None,
    ) -> None:
        """Prefill.

        Args:
            model: in evaluation mode.
            prompts: token numbers, at least one each.
            sampling: shared by all.
            eos_ids: tokens that end a sequence.
            vocab_size: tokens of the tokenizer, where the embedding is padded beyond them: the
                rows of the padding are never drawn. None: all rows.

        Raises:
            ConfigError: no prompts, an empty one, or a token that the model does not have.
        """
        rows = model.config.vocab_size
        self._vocab_size = rows if vocab_size is None else min(vocab_size, rows)
        _check(prompts, self._vocab_size)
        self._model, self._sampling, self._eos = model, sampling, frozenset(eos_ids)
        self._device = model.embedding.weight.device
        self.reasons: list[Reason | None] = [None] * len(prompts)
        """Why each sequence has ended; None while it runs."""
        self._rows = list(range(len(prompts)))  # sequence in each row of the batch
        self._count = 0
        self._generators = [
            torch.Generator().manual_seed(sampling.seed + number) for number in self._rows
        ]
        self._seen: Tensor | None = None
        if sampling.repetition_penalty != 1:
            self._seen = torch.zeros(len(prompts), self._vocab_size, dtype=torch.bool)
            for row, prompt in enumerate(prompts):
                self._seen[row, torch.as_tensor(prompt)] = True
            self._seen = self._seen.to(self._device)
        self._logits, self._state = prefill(model, prompts)

    @property
    def running(self) -> bool:
        """Whether a sequence has not ended."""
        return None in self.reasons

    @property
    def state(self) -> State:
        """State of the running sequences, in their order."""
        return self._state

    def finish(self, sequence: int, reason: Reason = "stop") -> None:
        """End a sequence; it leaves the batch before the next step."""
        self.reasons[sequence] = reason

    @torch.no_grad()
    def advance(self) -> list[tuple[int, int]]:
        """The next token of every running sequence, as (sequence, token).

        A sequence whose token ends it is part of the list, with that token.
        """
        if self._count:
            self._step()
        tokens = self._choose()
        self._last = torch.tensor(tokens, device=self._device)
        if self._seen is not None:
            self._seen[torch.arange(len(tokens), device=self._device), self._last] = True
        self._count += 1
        chosen = list(zip(self._rows, tokens, strict=True))
        for sequence, token in chosen:
            if token in self._eos:
                self.reasons[sequence] = "end"
            elif self._count == self._sampling.max_new_tokens:
                self.reasons[sequence] = "length"
        return chosen

    def _step(self) -> None:
        keep = [row for row, number in enumerate(self._rows) if self.reasons[number] is None]
        if len(keep) < len(self._rows):
            index = torch.tensor(keep, device=self._device)
            self._rows = [self._rows[row] for row in keep]
            self._last = self._last[index]
            self._seen = None if self._seen is None else self._seen[index]
            self._state = tree_map(lambda tensor: tensor[index], self._state)
        self._logits, self._state = self._model.step(self._last, self._state)

    def _choose(self) -> list[int]:
        logits = filter_logits(self._logits[:, : self._vocab_size], self._sampling, self._seen)
        if self._sampling.temperature == 0:
            return logits.argmax(-1).tolist()
        # Inversion of the distribution function: one number from each sequence's own generator.
        heap = logits.double().softmax(-1).cumsum(-1)  # (B, V)
        draws = [
            torch.rand(1, generator=self._generators[n], dtype=torch.float64) for n in self._rows
        ]
        points = torch.stack(draws).to(self._device) * heap[:, -1:]
        tokens = torch.searchsorted(heap, points, right=True)  # (B, 1)
        likeliest = logits.argmax(-1, keepdim=True)
        # A draw at the very end may round to one past the last token.
        return torch.where(tokens < logits.shape[-1], tokens, likeliest)[:, 0].tolist()


@torch.no_grad()
def prefill(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
    """Logits after each prompt (N, V) and the states; arguments as `read`."""
    hidden, starts, state = read(model, prompts)
    ends = [start + len(prompt) - 1 for start, prompt in zip(starts, prompts, strict=True)]
    return model.logits(hidden[ends]), state


@torch.no_grad()
def read(model: LanguageModel, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[int], State]:
    """All that a model makes of some prompts, in one parallel pass.

    Args:
        model: in evaluation mode.
        prompts: token numbers, at least one each, of any lengths.

    Returns:
        Hidden states (M, d), those of a prompt one after another; the number of each prompt's
        first; and the states after the prompts.
    """
    device = model.embedding.weight.device
    rows = [torch.as_tensor(prompt, dtype=torch.int64) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    if model.keeps_tokens(int(lengths.max())) or (lengths == lengths[0]).all():
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
        hidden, state = model.hidden(tokens, keep_state=True)
        assert state is not None
        state = state._replace(position=lengths.to(device))
        starts = [row * tokens.shape[1] for row in range(len(rows))]
    else:
        boundaries = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        packed = torch.cat(rows)[None].to(device)  # (1, T)
        hidden, state = model.hidden(
            packed, keep_state=True, cu_seqlens=boundaries.to(device, torch.int32)
        )
        assert state is not None
        starts = boundaries[:-1].tolist()
    return hidden.flatten(0, 1), starts, state


def _check(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    if not prompts:
        raise ConfigError("prompts=[]: give at least one.")
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise ConfigError(
                f"prompt {number} has no tokens; start it with the end-of-document token, which "
                "precedes every document in training."
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            bad = next(token for token in prompt if not 0 <= token < vocab_size)
            raise ConfigError(
                f"prompt {number} holds token {bad}, and the model has {vocab_size}; this is not "
                "its tokenizer."
            )


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The continuation of one prompt."""

    text: str
    """Without the prompt, and without end or stop string."""
    tokens: tuple[int, ...]
    """All tokens that were generated, an end included."""
    reason: Reason
    """Why it ended: `length`, `end` (of the document) or `stop` (a stop string)."""


def generate(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    eos_ids: Iterable[int] | None = None,
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Continue texts.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        prompts: texts; an empty one starts a document, after an end-of-document token.
        sampling: shared by all.
        eos_ids: tokens that end a text; None: the tokenizer's.
        on_text: called with (prompt number, new text) as soon as text is certain.

    Raises:
        ConfigError: no prompts, or a tokenizer that is not the model's.
    """
    encoded = [
        [*tokenizer.prefix, *map(int, tokenizer.encode(text))] or [tokenizer.eos_id]
        for text in prompts
    ]
    ends = (tokenizer.eos_id,) if eos_ids is None else eos_ids
    return generate_tokens(model, tokenizer, encoded, sampling, eos_ids=ends, on_text=on_text)


def generate_tokens(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    eos_ids: Iterable[int],
    on_text: Callable[[int, str], None] | None = None,
) -> list[Completion]:
    """Continue texts that are token numbers already, at least one each; as `generate`."""
    decoder = Decoder(model, prompts, sampling, eos_ids)
    streams = [TextStream(tokenizer.decode, sampling.stop) for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    say = on_text or (lambda number, text: None)
    while decoder.running:
        for number, token in decoder.advance():
            tokens[number].append(token)
            stream = streams[number]
            if decoder.reasons[number] != "end" and (text := stream.add(token)):
                say(number, text)
            ended = stream.stopped or decoder.reasons[number] is not None
            if ended and (text := stream.finish()):
                say(number, text)
            if stream.stopped:
                decoder.finish(number)
    return [
        Completion(text=stream.text, tokens=tuple(ids), reason=reason or "length")
        for stream, ids, reason in zip(streams, tokens, decoder.reasons, strict=True)
    ]
