"""Our models behind the interface of lm-evaluation-harness.

Log-likelihoods are those of `scaling.evaluation.likelihood`, which reads once what texts share.
Numbers equal those of the harness's `hf` model on the same weights up to rounding: the same
encoding of pairs, truncation from the left to `max_length` inputs, and greedy check. Texts of
`generate_until` are decoded recurrently.
"""

from __future__ import annotations

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from models.generation import Sampling, generate_tokens
from scaling.evaluation.likelihood import Score, score
from scaling.evaluation.perplexity import sliding_losses
from scaling.evaluation.results import EvaluationError
from scaling.record.pretrained import Pretrained


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
        self.truncated = 0
        """Prompts that have lost their beginning so far."""
        self._model = pretrained.model

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
        for _, context, continuation in requests:
            self.truncated += len(context) + len(continuation) - 1 > self.max_length
        return score(
            self._model,
            [(context, continuation) for _, context, continuation in requests],
            max_length=self.max_length,
            batch_size=self._batch_size,
        )

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
        whole = [self.tok_encode(prompt) for prompt in prompts]
        self.truncated += sum(len(context) > room for context in whole)
        contexts = [context[-room:] or [self.eot_token_id] for context in whole]
        return [
            completion.text
            for completion in generate_tokens(
                self._model, tokenizer, contexts, sampling, eos_ids=self._pretrained.eos_ids
            )
        ]


def _arguments(request: Instance) -> tuple[Any, ...]:
    """What the harness asks: texts and options."""
    return request.args
