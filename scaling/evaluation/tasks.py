"""Every task by its name.

`perplexity`, `position`, `context`, `sliding`, `document`, `recall`, `needle` and `needle_standard`
are at home here; every other name is one of lm-evaluation-harness, or a local file for it
(`scaling.evaluation.harness`).
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, cast

from linscale.json_reader import as_object
from scaling.config.run import DataConfig
from scaling.data.corpora.registry import open_corpus
from scaling.data.prepare import prepare
from scaling.data.prepared import PreparedData
from scaling.data.recall_tasks import Recall
from scaling.evaluation import needle
from scaling.evaluation import recall_probe as recall
from scaling.evaluation.perplexity import (
    Document,
    block_losses,
    block_measures,
    check_documents,
    context_measures,
    document_losses,
    document_measures,
    long_blocks,
    position_measures,
    read_documents,
    read_text,
    sliding_losses,
    validation_documents,
)
from scaling.evaluation.results import EvaluationError, Measure
from scaling.evaluation.settings import Scorer, Settings, file_sha256
from scaling.record.data_identity import COMPARED, changes
from scaling.record.pretrained import Pretrained
from scaling.system.files import read_json

DOCUMENTS = 32
"""Validation documents of `sliding` and `document` without --limit."""
RECALL_SEQUENCES = 1024
"""Sequences of `recall` without --limit."""


CORPUS = "corpus_sha256"
"""Of a run's data: texts that are not held out may change without changing an evaluation."""


@dataclass(frozen=True)
class Subject:
    """A loaded model that is evaluated."""

    pretrained: Pretrained
    settings: Settings
    say: Callable[[str], None] = lambda text: None
    """Receives what the user should know before a task runs."""

    @cached_property
    def prepared(self) -> PreparedData:
        """Data of the run that trained it.

        Raises:
            EvaluationError: no run trained it, or its validation blocks or tokenizer are others
                now.
        """
        run = self.pretrained.run
        if run is None:
            raise EvaluationError(
                f"{self.pretrained.name}: no run of this project, so it has no validation blocks; "
                "evaluate `sliding` or `document` with --text FILE."
            )
        if reason := run.data.kind.not_text:
            raise EvaluationError(
                f"{self.pretrained.name}: was trained on {run.data.corpus}, {reason}"
            )
        prepared = prepare(run.data)
        self._check_data(prepared)
        return prepared

    def _check_data(self, prepared: PreparedData) -> None:
        """A loss on other validation blocks than those of the run's milestones compares nothing."""
        if self.pretrained.run_dir is None:
            return
        before = as_object(read_json(self.pretrained.run_dir / "environment.json").get("data"))
        changed = [name for name in changes(before, prepared.fingerprint()) if name != CORPUS]
        if changed:
            raise EvaluationError(
                f"{self.pretrained.name}: {' and '.join(COMPARED[name] for name in changed)} are "
                "not those of the run any more (environment.json has their hashes); put the former "
                "data back, or evaluate `sliding` or `document` with --text FILE."
            )

    @property
    def start(self) -> int:
        """The token before every text."""
        tokenizer = self.pretrained.tokenizer
        return tokenizer.prefix[-1] if tokenizer.prefix else tokenizer.eos_id

    @property
    def context(self) -> int:
        """Tokens of a training sequence."""
        if self.pretrained.context is None:
            raise EvaluationError(
                f"{self.pretrained.name}: does not say on which length it was trained; give "
                "--max-length for the harness's tasks, or --window."
            )
        return self.pretrained.context

    def documents(self) -> list[Document]:
        """The texts of `sliding` and `document`."""
        if self.settings.text:
            found = read_documents(self.settings.text, self.pretrained.tokenizer)
            found = found[: self.settings.limit]
        else:
            found = validation_documents(self.prepared, self.settings.limit or DOCUMENTS)
        check_documents(found)
        return found


@dataclass(frozen=True)
class Task:
    """A task that is at home here."""

    options: tuple[str, ...]
    """Fields of `Settings` that change its numbers."""
    run: Callable[[Subject], list[Measure]]


def _perplexity(subject: Subject) -> list[Measure]:
    blocks = subject.prepared.validation[: subject.settings.limit]
    prepared, size = subject.prepared, subject.settings.batch_size
    losses = block_losses(subject.pretrained.model, blocks, size, prepared.boundary)
    return block_measures(losses, prepared.bytes_per_token)


def _say_unmasked(subject: Subject, task: str) -> None:
    """Numbers of a reading that the model was not trained for must not pass for others."""
    if subject.prepared.boundary is not None:
        subject.say(
            f"{subject.pretrained.name}, {task}: trained with data.document_mask=True; here the "
            "documents of a block see those before them, as they never did in training"
        )


def _position(subject: Subject) -> list[Measure]:
    _say_unmasked(subject, "position")
    blocks = subject.prepared.validation[: subject.settings.limit]
    losses = block_losses(subject.pretrained.model, blocks, subject.settings.batch_size)
    return position_measures(losses)


def _context(subject: Subject) -> list[Measure]:
    _say_unmasked(subject, "context")
    settings, trained = subject.settings, subject.context
    most = settings.limit or subject.prepared.data.validation_blocks
    blocks = long_blocks(subject.prepared, settings.beyond * trained, most)
    batch = max(1, settings.batch_size // settings.beyond)
    return context_measures(block_losses(subject.pretrained.model, blocks, batch), trained)


def _sliding(subject: Subject) -> list[Measure]:
    settings, documents = subject.settings, subject.documents()
    window = settings.window or subject.context
    losses = (
        sliding_losses(
            subject.pretrained.model,
            document.tokens,
            start=subject.start,
            window=window,
            stride=settings.stride or max(1, window // 2),
            batch_size=settings.batch_size,
        )
        for document in documents
    )
    return document_measures(documents, losses)


def _document(subject: Subject) -> list[Measure]:
    documents = subject.documents()
    model = subject.pretrained.model
    losses = (document_losses(model, d.tokens, start=subject.start) for d in documents)
    return document_measures(documents, losses)


def _haystack(subject: Subject) -> str:
    if subject.settings.haystack:
        return "\n\n".join(read_text(path) for path in subject.settings.haystack)
    return "\n\n".join(open_corpus(DataConfig(corpus="kjv")).read(0))


def _needle(subject: Subject, easy: bool) -> list[Measure]:
    settings = subject.settings
    pretrained, lengths = subject.pretrained, settings.lengths or needle.LENGTHS
    warning = needle.check_lengths(
        pretrained.model.config, lengths, pretrained.context, settings.max_length
    )
    if warning is not None:
        subject.say(f"{pretrained.name}, needle: {warning}")
    outcomes = needle.grid(
        pretrained,
        _haystack(subject),
        lengths=lengths,
        depth_count=settings.depths,
        easy=easy,
        scorer=cast(Scorer, settings.scorer),
        batch_size=settings.batch_size,
    )
    return needle.measures(
        outcomes,
        lengths,
        depth_growth=settings.depth_growth,
        length_growth=settings.length_growth,
    )


def _recall(subject: Subject) -> list[Measure]:
    pretrained, settings = subject.pretrained, subject.settings
    run = pretrained.run
    task = run.data.kind.parse(run.data.corpus) if run is not None else None
    if run is None or not isinstance(task, Recall):
        raise EvaluationError(
            f"{pretrained.name}: was not trained on a recall task; train one with "
            "data.corpus=task:mqar, or evaluate `needle`."
        )
    count = settings.limit or RECALL_SEQUENCES
    length = run.data.sequence_length
    return recall.measures(pretrained.model, task, length, settings.lengths, count)


_NEEDLE = ("haystack", "lengths", "depths", "scorer", "depth_growth", "length_growth")
TASKS: dict[str, Task] = {
    "perplexity": Task(("limit",), _perplexity),
    "position": Task(("limit",), _position),
    "context": Task(("limit", "beyond"), _context),
    "sliding": Task(("limit", "text", "window", "stride"), _sliding),
    "document": Task(("limit", "text"), _document),
    "recall": Task(("limit", "lengths"), _recall),
    "needle": Task(_NEEDLE, functools.partial(_needle, easy=True)),
    "needle_standard": Task(_NEEDLE, functools.partial(_needle, easy=False)),
}


def label(name: str, settings: Settings) -> dict[str, Any]:
    """The settings that go into evals.jsonl; files as name and SHA-256."""
    options = TASKS[name].options
    out: dict[str, Any] = {option: getattr(settings, option) for option in options}
    for option in {"text", "haystack"} & set(out):
        out[option] = [[path.name, file_sha256(path)] for path in getattr(settings, option)]
    return out


def refuse_unknown(name: str, known: Sequence[str]) -> NoReturn:
    """Raise EvaluationError for a task that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"those at home here are {', '.join(TASKS)}."
    raise EvaluationError(f"task {name!r}: is not known; {hint}")
