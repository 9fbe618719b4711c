"""`instructions:GLOB` and `instructions:hf:NAME`: questions with answers, several in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaling.data.corpora.corpus import Corpus, needs_argument
from scaling.data.settings import DataSettings, Work

if TYPE_CHECKING:
    from scaling.data.prepared import PreparedData

FORM = "instructions:PATH"


def _prepare(source: str, data: DataSettings, work: Work) -> PreparedData:
    from scaling.data.instructions import prepare_instructions  # with numpy and torch

    return prepare_instructions(source, data, work)


KIND = Corpus(
    prefix="instructions",
    form=FORM,
    parse=needs_argument(FORM),
    prepare=_prepare,
    masked=True,
    packed=True,
    not_text=(
        "answers to instructions, whose loss is in its milestones; evaluate `sliding` or "
        "`document` with --text FILE."
    ),
)
