"""`task:NAME:...`: a synthetic recall task. Its sequences are made when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.data.corpora.corpus import Corpus
from scaling.data.recall_tasks import PREFIX, Recall, parse
from scaling.data.settings import DataSettings, Work

if TYPE_CHECKING:
    from scaling.data.prepared import PreparedData
    from scaling.data.tokenizers import Tokenizer


def _check(task: Recall, data: DataSettings) -> None:
    task.check_length(data.sequence_length)


def _prepare(task: Recall, data: DataSettings, work: Work) -> PreparedData:
    from scaling.data.recall_data import prepare_task  # with numpy and torch

    return prepare_task(task, data, work)


def _tokenizer(corpus: str) -> Tokenizer:
    from scaling.data.recall_data import Symbols

    return Symbols(corpus)


KIND = Corpus(
    prefix=PREFIX,
    form="task:NAME",
    parse=parse,
    check=_check,
    prepare=_prepare,
    tokenizer=_tokenizer,
    masked=True,
    not_text="which is no text; evaluate `recall`.",
)
