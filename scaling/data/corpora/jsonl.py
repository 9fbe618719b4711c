"""`jsonl:GLOB`: one JSON object a line, plain or compressed; the text is in `data.text_field`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from linscale.errors import LinscaleError
from scaling.data.corpora.corpus import Corpus, needs_argument, prepare_texts
from scaling.data.corpora.files import (
    decoded,
    find_files,
    from_files,
    object_of,
    read_lines,
    text_of,
)
from scaling.data.documents import BadRecords, Documents
from scaling.data.settings import DataSettings

FORM = "jsonl:PATH"


def _documents(pattern: str, data: DataSettings) -> Documents:
    bad = BadRecords(data.max_bad_records)

    def read(path: Path) -> Iterator[str]:
        for where, line in read_lines(path):
            try:
                text = decoded(where, line)
                del line  # a document of hundreds of megabytes is in memory once
                text = text_of(where, object_of(where, text), data.text_field)
            except LinscaleError as error:
                bad.skip(error)
            else:
                yield text

    return from_files(data.corpus, find_files(data.corpus, pattern, ".jsonl"), None, read, bad)


KIND = Corpus(
    prefix="jsonl",
    form=FORM,
    parse=needs_argument(FORM),
    documents=_documents,
    prepare=prepare_texts(_documents),
)
