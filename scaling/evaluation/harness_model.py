"""Our models behind the interface of lm-evaluation-harness.

Log-likelihoods of the choices of one question share their context: it is read once, and each choice
continues from a copy of its state. For softmax attention the copy is of the key-value cache, for
the linear models of a state of fixed size.

1. Requests with equal context tokens form a question; a question with one continuation is read in
   one piece instead.
2. Contexts are ordered by length, longest first, and read in batches; so are the choices of each
   batch of contexts, by their own length. Little of either is padding.
3. Contexts: padded on the right and cut back where every mixer has a cache; packed without padding
   for recurrent states, which padding would change.
4. Choices: padded on the right, one row each, from the state of their context.

Numbers equal those of the harness's `hf` model on the same weights up to rounding: the same
encoding of pairs, truncation from the left to `max_length` inputs, and greedy check. Texts of
`generate_until` are decoded recurrently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from torch import Tensor
from torch.utils._pytree import tree_map

from models.generation import Sampling, generate_tokens, prefill_hidden
from models.language_model import Block, State
from scaling.evaluation.perplexity import sliding_losses
from scaling.evaluation.results import EvaluationError
from scaling.pretrained import Pretrained

Pair = tuple[list[int], list[int]]
"""Tokens of a context and of its continuation."""
Score = tuple[float, bool]
"""Log-likelihood in nats, and whether greedy decoding gives the continuation."""


class HarnessModel(TemplateLM):
    """A loaded model for `lm_eval.evaluator.evaluate`."""

    def __init__(self, pretrained: Pretrained, *, max_length: int, batch_size: int = 16) -> None:
        """
        Args:
            pretrained: model and tokenizer.
            max_length: inputs that a prediction may see; longer contexts lose their beginning.
            batch_size: sequences that pass through the model at once.
        """
        super().__init__()
        self._pretrained, self._batch_size = pretrained, batch_size
        self.max_length = max_length
        self._model = pretrained.model
        self._device = pretrained.model.embedding.weight.device

    @property
    def eot_token_id(self) -> int:
        return self._pretrained.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        prefix = self._pretrained.tokenizer.prefix
        return prefix[-1] if prefix else self.eot_token_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens; those that a foreign model expects before a text come unless it is a piece."""
        tokenizer = self._pretrained.tokenizer
        prefix = [] if add_special_tokens is False else list(tokenizer.prefix)
        return [*prefix, *map(int, tokenizer.encode(string))]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[Score]:
        """Scores in the order of the requests."""
        return self.score([(context, continuation) for _, context, continuation in requests])

    @torch.no_grad()
    def score(self, pairs: Sequence[Pair]) -> list[Score]:
        """Log-likelihood of each continuation after its context.

        Raises:
            EvaluationError: a continuation is empty or longer than `max_length`.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        inputs: list[Pair] = []
        for number, (context, continuation) in enumerate(pairs):
            if not 0 < len(continuation) <= self.max_length:
                raise EvaluationError(
                    f"a continuation of {len(continuation)} tokens does not fit the "
                    f"{self.max_length} tokens of context; raise --max-length, or leave the task "
                    "out for this model."
                )
            kept = context[-(self.max_length + 1 - len(continuation)) :]
            inputs.append((kept, continuation))
            groups.setdefault(tuple(kept), []).append(number)
        scores: list[Score] = [(0.0, False)] * len(pairs)
        alone = [numbers[0] for numbers in groups.values() if len(numbers) == 1]
        alone.sort(key=lambda number: -sum(map(len, inputs[number])))
        for first in range(0, len(alone), self._batch_size):
            batch = alone[first : first + self._batch_size]
            found = self._whole([inputs[number] for number in batch])
            for number, score in zip(batch, found, strict=True):
                scores[number] = score
        shared = [numbers for numbers in groups.values() if len(numbers) > 1]
        shared.sort(key=lambda numbers: -len(inputs[numbers[0]][0]))
        for first in range(0, len(shared), self._batch_size):
            questions = shared[first : first + self._batch_size]
            found = self._questions([[inputs[n] for n in numbers] for numbers in questions])
            for number, score in zip((n for q in questions for n in q), found, strict=True):
                scores[number] = score
        return scores

    def _whole(self, pairs: list[Pair]) -> list[Score]:
        """Scores of pairs read in one piece each."""
        rows = [[*context, *continuation][:-1] for context, continuation in pairs]
        hidden, _ = self._model.hidden(self._padded(rows))  # (B, T, d)
        return [
            self._score(hidden[row, len(tokens) - len(pair[1]) : len(tokens)], pair[1])
            for row, (tokens, pair) in enumerate(zip(rows, pairs, strict=True))
        ]

    def _questions(self, questions: list[list[Pair]]) -> list[Score]:
        """Scores of the choices of questions, whose contexts are read once."""
        last, state = self._read([pairs[0][0] for pairs in questions])  # (Q, d)
        choices = [
            (question, continuation)
            for question, pairs in enumerate(questions)
            for _, continuation in pairs
        ]
        order = sorted(range(len(choices)), key=lambda number: -len(choices[number][1]))
        scores: list[Score] = [(0.0, False)] * len(choices)
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            found = self._choices([choices[number] for number in batch], last, state)
            for number, score in zip(batch, found, strict=True):
                scores[number] = score
        return scores

    def _choices(
        self, choices: list[tuple[int, list[int]]], last: Tensor, state: State
    ) -> list[Score]:
        """Scores of (question, continuation), from `last` (Q, d) and the state of the contexts."""
        owner = torch.tensor([question for question, _ in choices], device=self._device)
        hidden = last[owner][:, None]  # (R, 1, d)
        longest = max(len(continuation) for _, continuation in choices)
        if longest > 1:
            own = tree_map(lambda tensor: tensor[owner], state)
            rows = self._padded([continuation[:-1] for _, continuation in choices], longest - 1)
            more, _ = self._model.hidden(rows, own)
            hidden = torch.cat([hidden, more], dim=1)  # (R, longest, d)
        return [
            self._score(hidden[row, : len(continuation)], continuation)
            for row, (_, continuation) in enumerate(choices)
        ]

    def _read(self, contexts: list[list[int]]) -> tuple[Tensor, State]:
        """Hidden states after the contexts (N, d), and the states."""
        blocks = cast(list[Block], list(self._model.blocks))
        if not all(block.mixer.growing for block in blocks):
            return prefill_hidden(self._model, contexts)
        lengths = torch.tensor([len(context) for context in contexts], device=self._device)
        hidden, state = self._model.hidden(self._padded(contexts), keep_state=True)
        assert state is not None
        # Slots behind a context hold the padding's keys; a choice overwrites them before it, or
        # its mask, gets there.
        last = hidden[torch.arange(len(contexts), device=self._device), lengths - 1]
        return last, state._replace(position=lengths)

    def _padded(self, rows: list[list[int]], length: int | None = None) -> Tensor:
        """(B, longest), padded on the right."""
        width = max(map(len, rows)) if length is None else length
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows]).to(self._device)

    def _score(self, hidden: Tensor, continuation: list[int]) -> Score:
        logits = torch.nn.functional.linear(hidden, self._model.head_weight)
        targets = torch.tensor(continuation, device=self._device)
        logs = logits.log_softmax(-1).gather(-1, targets[:, None])
        return float(logs.sum()), bool((logits.argmax(-1) == targets).all())

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once in windows of `max_length`."""
        found = []
        for request in requests:
            (text,) = request.args
            tokens = self.tok_encode(text)
            losses = sliding_losses(
                self._model,
                tokens,
                start=self.prefix_token_id,
                window=self.max_length,
                stride=self.max_length,
                batch_size=self._batch_size,
            )
            found.append(-float(losses.sum()))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop string, greedy unless the task samples."""
        texts: list[str] = [""] * len(requests)
        kinds: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            kinds.setdefault(repr(_arguments(request)[1]), []).append(number)
        for numbers in kinds.values():
            numbers.sort(key=lambda n: -len(_arguments(requests[n])[0]))
            for first in range(0, len(numbers), self._batch_size):
                batch = numbers[first : first + self._batch_size]
                prompts = [_arguments(requests[n])[0] for n in batch]
                options = normalize_gen_kwargs(_arguments(requests[batch[0]])[1])
                for number, text in zip(batch, self._generate(prompts, options), strict=True):
                    texts[number] = text
        return texts

    def _generate(self, prompts: list[str], options: Any) -> list[str]:
        most = options["max_gen_toks"]
        room = self.max_length - most
        if room < 1:
            raise EvaluationError(
                f"the task generates {most} tokens, and the context is {self.max_length}; raise "
                "--max-length, or leave the task out for this model."
            )
        tokenizer = self._pretrained.tokenizer
        sampling = Sampling(
            max_new_tokens=most,
            temperature=float(options.get("temperature") or 0.0),
            stop=tuple(text for text in handle_stop_sequences(options["until"], None) if text),
        )
        contexts = [self.tok_encode(prompt)[-room:] or [self.eot_token_id] for prompt in prompts]
        return [
            completion.text
            for completion in generate_tokens(
                self._model, tokenizer, contexts, sampling, eos_ids=self._pretrained.eos_ids
            )
        ]


def _arguments(request: Instance) -> tuple[Any, ...]:
    """What the harness asks: texts and options."""
    return request.args
