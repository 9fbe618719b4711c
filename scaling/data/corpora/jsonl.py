"""`jsonl:GLOB`: one JSON object a line; the text is in `data.text_field`."""

from __future__ import annotations

from scaling.data.corpora.corpus import Corpus, needs_argument, prepare_texts
from scaling.data.corpora.files import find_files, from_files, read_objects, text_of
from scaling.data.documents import Documents
from scaling.data.settings import DataSettings

FORM = "jsonl:PATH"


def _documents(pattern: str, data: DataSettings) -> Documents:
    return from_files(
        data.corpus,
        find_files(data.corpus, pattern, "jsonl"),
        None,
        lambda path: (text_of(at, record, data.text_field) for at, record in read_objects(path)),
    )


KIND = Corpus(
    prefix="jsonl",
    form=FORM,
    parse=needs_argument(FORM),
    documents=_documents,
    prepare=prepare_texts(_documents),
)
