"""`text:GLOB`: UTF-8 files, plain or compressed.

Long files are cut at line ends so that a single book can be split into training and validation
documents; put texts that must stay whole into JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from scaling.data.corpora.corpus import Corpus, needs_argument, prepare_texts
from scaling.data.corpora.files import find_files, from_files
from scaling.data.corpora.opening import open_text
from scaling.data.documents import Documents
from scaling.data.settings import DataSettings

PIECE_CHARACTERS = 16_384
"""Length at which files are cut into documents."""
FORM = "text:GLOB"


def _documents(pattern: str, data: DataSettings) -> Documents:
    return from_files(data.corpus, find_files(data.corpus, pattern, ".txt"), None, _read)


def _read(path: Path) -> Iterator[str]:
    with open_text(path) as file:
        lines: list[str] = []
        size = 0
        while line := file.readline(PIECE_CHARACTERS):
            lines.append(line)
            size += len(line)
            if size >= PIECE_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
        if lines:
            yield "".join(lines)


KIND = Corpus(
    prefix="text",
    form=FORM,
    parse=needs_argument(FORM),
    documents=_documents,
    prepare=prepare_texts(_documents),
)
