"""Long texts in pieces whose tokens, one after another, are those of the whole.

A tokenizer's library needs a hundred times the size of a text while it encodes it. One of
hundreds of megabytes is therefore cut. A cut is right where every rule by which the tokenizer takes
words apart ends a word in any case:

- `BEFORE_SPACES` for the rule of GPT-2, in which no word goes on with a space after something else;
- `BETWEEN_WORDS`, a letter and a space and a letter, for the later ones (cl100k, o200k, Llama 3,
  Qwen), in which line ends belong to the punctuation before them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 64 * 2**10
"""Characters of a piece that is encoded."""
BEFORE_SPACES = re.compile(r"[^\s\u180e](?=[ \n])")
BETWEEN_WORDS = re.compile(r"[A-Za-z](?= [A-Za-z])")
ANYWHERE = re.compile("")
"""For bytes."""


def cut(text: str, rule: re.Pattern[str] | None, piece: int = PIECE) -> Iterator[str]:
    """The text in pieces.

    Args:
        text: the text.
        rule: matches the character before a cut; None where there is no such place: the text
            stays whole, as it does from where on the rule matches nothing.
        piece: characters of a piece, at least; texts of less than twice as many stay whole.
    """
    start = 0
    while rule is not None and len(text) - start >= 2 * piece:
        found = rule.search(text, start + piece)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:] if start else text
