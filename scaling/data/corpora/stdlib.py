"""`stdlib`: the source files of this Python's standard library, tests left out."""

from __future__ import annotations

import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from linscale.errors import LinscaleError
from scaling.data.corpora.corpus import Corpus, prepare_texts, without_argument
from scaling.data.corpora.files import from_files
from scaling.data.documents import Documents
from scaling.data.settings import DataSettings


def _documents(_: None, data: DataSettings) -> Documents:
    folder = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    paths = [p for p in folder.rglob("*.py") if not left_out & set(p.relative_to(folder).parts)]
    if not paths:
        raise LinscaleError(
            f"corpus stdlib: {folder} holds no Python source files (Python {sys.version.split()[0]}"
            " ships without them); choose data.corpus=kjv or data.corpus=text:PATH/*.txt."
        )
    return from_files("stdlib", sorted(paths), folder, _read)


def _read(path: Path) -> Iterator[str]:
    with tokenize.open(path) as file:  # honours the file's encoding declaration
        yield file.read()


KIND = Corpus(
    prefix="stdlib",
    form="stdlib",
    parse=without_argument,
    documents=_documents,
    prepare=prepare_texts(_documents),
)
