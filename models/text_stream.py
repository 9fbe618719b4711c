"""Tokens, one at a time, to text that can be shown, up to a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TextStream:
    """Turns the tokens of one sequence into text as it comes, up to a stop string.

    Text is held back while it may change: bytes of an unfinished character, and an end that may be
    the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, stop
        self._tokens: list[int] = []
        self._context = self._read = 0  # tokens[context:read] is text already in `_text`
        self._text = ""
        self._given = 0
        self.stopped = False
        """A stop string has come; the text ends before it."""

    @property
    def text(self) -> str:
        """All text so far, held back or not, up to a stop string."""
        return self._text

    def add(self, token: int) -> str:
        """One more token; returns the text that is certain now."""
        self._tokens.append(token)
        # Decoding with the token before, because some tokenizers join words by their neighbours.
        before = self._decode(self._tokens[self._context : self._read])
        after = self._decode(self._tokens[self._context :])
        if after.endswith("�"):  # may be the first bytes of a character
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._append(after[len(before) :])

    def finish(self) -> str:
        """No more tokens: the text that was held back."""
        if self._read == len(self._tokens):
            return self._give(len(self._text))
        before = self._decode(self._tokens[self._context : self._read])
        after = self._decode(self._tokens[self._context :])
        self._read = len(self._tokens)
        return self._append(after[len(before) :]) + self._give(len(self._text))

    def _append(self, piece: str) -> str:
        if self.stopped:
            return ""
        start = len(self._text) - max((len(stop) for stop in self._stop), default=0)
        self._text += piece
        places = [self._text.find(stop, max(start, 0)) for stop in self._stop]
        if places := [place for place in places if place >= 0]:
            self._text = self._text[: min(places)]
            self.stopped = True
            return self._give(len(self._text))
        held = max((_overlap(self._text, stop) for stop in self._stop), default=0)
        return self._give(len(self._text) - held)

    def _give(self, end: int) -> str:
        given, self._given = self._given, max(self._given, end)
        return self._text[given:end]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)
