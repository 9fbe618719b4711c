"""Tokenizers that are a file, `tokenizer.json` of the Hugging Face `tokenizers` library.

Which token ends a document is read from `tokenizer_config.json` or `generation_config.json` beside
it, as transformers writes them; without these, it is the one token with a usual name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from linscale.errors import LinscaleError
from scaling.data.text_pieces import BEFORE_SPACES, BETWEEN_WORDS
from scaling.data.tokenizer_base import Tokenizer

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
"""End-of-document token of trained vocabularies."""

KEPT = "tokenizer"
"""Folder in a run's directory with the tokenizer files of its teacher as they are."""
FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
    "generation_config.json",
)  # fmt: skip
"""Files that make up a tokenizer and say how to generate."""

_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<｜end▁of▁sentence｜>")


def load_json_tokenizer(name: str, path: Path) -> JsonTokenizer:
    """A `tokenizer.json`; raises LinscaleError when it is none, or has no end of a document.

    Which token that is, `tokenizer_config.json` or `generation_config.json` beside it may say.
    """
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise LinscaleError(
            f"tokenizer {name}: {path} is not a tokenizer.json ({error}); save one with "
            "`Tokenizer.save` or `PreTrainedTokenizerFast.save_pretrained`."
        ) from None
    end = named_end(path)
    if isinstance(end, tuple):
        end = next((text for n in end if (text := inner.id_to_token(n)) is not None), None)
    return JsonTokenizer(name, inner, end, whole_folder(path))


def whole_folder(path: Path) -> Path | None:
    """The folder with all files of the tokenizer of a `tokenizer.json`, as its maker wrote them.

    It is the one that the file is in, or `KEPT` beside it in a run's directory; None where nobody
    but this project wrote any.
    """
    for folder in (path.parent / KEPT, path.parent):
        if "tokenizer_class" in _read(folder / "tokenizer_config.json"):
            return folder
    return None


def more_ends(folder: Path) -> tuple[int, ...]:
    """Tokens that end a text by the `generation_config.json` in a folder."""
    numbers = _read(folder / "generation_config.json").get("eos_token_id")
    numbers = numbers if isinstance(numbers, list) else [numbers]
    return tuple(n for n in numbers if isinstance(n, int) and n >= 0)


def named_end(path: Path) -> str | tuple[int, ...] | None:
    """What the files beside a `tokenizer.json` say of the end of a text.

    Returns:
        The text of the token; or its number, first among those that end an answer, of which a
        model may have some that its tokenizer lacks; None where no file says it.
    """
    token = _read(path.with_name("tokenizer_config.json")).get("eos_token")
    if isinstance(token, dict):  # as transformers writes added tokens
        token = token.get("content")
    if isinstance(token, str):
        return token
    return more_ends(path.parent) or None


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no file.

    Raises:
        LinscaleError: the file is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LinscaleError(f"{path}: cannot be read ({error}); correct or remove it.") from None
    if not isinstance(value, dict):
        raise LinscaleError(f"{path}: is not a JSON object; correct or remove it.")
    return value


class JsonTokenizer(Tokenizer):
    """A `tokenizer.json`: trained here or brought along.

    A special token that is spelt out in a text must stay text, above all the one that ends a
    document. Some vocabularies encode such a spelling to the token itself: as a piece of theirs
    (Unigram models with `</s>`), or as an added token that is not marked as special. Such a
    spelling is cut after its first character, and the parts are encoded one by one.
    """

    def __init__(
        self,
        name: str,
        inner: tokenizers.Tokenizer,
        end: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            name: `data.tokenizer`.
            inner: what the file holds.
            end: text of the token that ends a document; None: one of a few known names.
            folder: with all of its files, where they came with a model.

        Raises:
            LinscaleError: no end-of-document token or several can be found in it, it encodes one
                text in several ways, or its end is an ordinary character.
        """
        inner.no_truncation()
        inner.no_padding()
        inner.encode_special_tokens = True  # a special token spelt out in a text is just text
        self.name, self.folder = name, folder
        self._inner = inner
        content = json.loads(inner.to_str())
        if dropout := content["model"].get("dropout"):
            raise LinscaleError(
                f"tokenizer {name}: it has dropout={dropout}, so that a text has other tokens each "
                "time; set `dropout` to null in the `model` of its tokenizer.json."
            )
        vocabulary = inner.get_vocab(with_added_tokens=True)
        self.end = _choose_end(name, vocabulary, end)
        """Text of the token that ends a document."""
        self.eos_id = vocabulary[self.end]
        self.vocab_size = max(vocabulary.values()) + 1
        self.prefix = tuple(inner.encode("", add_special_tokens=True).ids)
        special = {self.end} | {t["content"] for t in content["added_tokens"] if t["special"]}
        special.discard(_unknown(content["model"]))
        special = {text for text in special if len(text) > 1 or text == self.end}
        self._leaks = {
            text: vocabulary[text]
            for text in sorted(special)
            if any(vocabulary[text] in inner.encode(probe, add_special_tokens=False).ids
                   for probe in (text, f"a{text}a", f"a {text} a"))
        }  # fmt: skip
        """Special tokens that a text can spell, and their numbers."""
        if self.end in self._leaks and len(self.end) < 2:
            raise LinscaleError(
                f"tokenizer {name}: {self.end!r}, which ends a document, is a character of "
                "ordinary text too; give it a longer name in its tokenizer.json."
            )
        starts = "|".join(re.escape(text) for text in self._leaks)
        self._cuts = re.compile(f"(?={starts})") if starts else None
        self.cut_rule = None if self._cuts else _word_rule(content)
        canonical = json.dumps(content, sort_keys=True)
        if self._leaks or self.end != _first_known(vocabulary):
            canonical += json.dumps({"end": self.end, "cut": sorted(self._leaks)})
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Raises LinscaleError: a text holds a special token in a spelling that is not known, or is
        given the end of a document, such as where another token has the same number."""
        if self._cuts is None:
            found = self._encode(texts)
            for text, tokens in zip(texts, found, strict=True):
                if (tokens == self.eos_id).any():
                    raise LinscaleError(
                        f"tokenizer {self.name}: it makes {self.end!r}, which ends a document, of "
                        f"ordinary text, here of {text[:60]!r}; another token has its number "
                        f"{self.eos_id}, or it stands for what the vocabulary lacks. Mend its "
                        "tokenizer.json."
                    )
            return found
        parts = [self._parts(text) for text in texts]
        each = iter(self._encode([part for of_text in parts for part in of_text]))
        found = [np.concatenate([next(each) for _ in of_text]) for of_text in parts]
        wrong = np.array(list(self._leaks.values()))
        for text, tokens in zip(texts, found, strict=True):
            if np.isin(wrong, tokens).any():
                raise LinscaleError(
                    f"tokenizer {self.name}: it makes special tokens of ordinary text, here of "
                    f"{text[:60]!r}; remove {', '.join(map(repr, self._leaks))} from the text, or "
                    "mark them as special in its tokenizer.json."
                )
        return found

    def _parts(self, text: str) -> list[str]:
        """The text, cut after the first character of every special token that it spells."""
        assert self._cuts is not None
        bounds = [0, *(match.start() + 1 for match in self._cuts.finditer(text)), len(text)]
        return [text[a:b] for a, b in pairwise(bounds)]

    def _encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        found: list[NDArray[np.int64]] = []
        group: list[str] = []
        size = 0
        for number, text in enumerate(texts, 1):
            group.append(text)
            size += len(text)
            if size >= _GROUP or number == len(texts):
                encodings = self._inner.encode_batch_fast(group, add_special_tokens=False)
                found += [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
                group, size = [], 0
        return found

    def decode(self, tokens: Sequence[int] | NDArray[np.integer]) -> str:
        return self._inner.decode([int(t) for t in tokens], skip_special_tokens=True)

    def encode_marked(self, text: str) -> list[int]:
        """Tokens of a text whose special tokens are meant, such as a chat's; nothing is added."""
        self._inner.encode_special_tokens = False
        try:
            return self._inner.encode(text, add_special_tokens=False).ids
        finally:
            self._inner.encode_special_tokens = True

    def to_json(self) -> str:
        """Content of its `tokenizer.json`."""
        return self._inner.to_str(pretty=True)

    def to_config(self) -> str:
        """Content of the `tokenizer_config.json` beside it, which names the end of a document."""
        return json.dumps({"eos_token": self.end}, ensure_ascii=False)


_GROUP = 256 * 2**10
"""Characters that the library encodes at once; it needs a hundred times their size meanwhile."""
_WORDS = tuple(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits +
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("", "{1,3}")
)  # fmt: skip
"""The rules for words of Qwen (single digits), and of cl100k and Llama 3 (up to three)."""


def _word_rule(content: dict[str, Any]) -> re.Pattern[str] | None:
    """Where a `tokenizer.json` lets a long text be cut; None where its rules are not known."""
    normalizer, before = content.get("normalizer"), content.get("pre_tokenizer") or {}
    ordinary = content["model"].get("type") == "BPE" and all(
        token["special"] for token in content["added_tokens"]
    )
    if not ordinary or (normalizer or {"type": "NFC"}).get("type") != "NFC":
        return None
    if before.get("type") == "Sequence" and len(before["pretokenizers"]) == 2:
        split, levels = before["pretokenizers"]
        pattern = split.get("pattern", {}).get("Regex", "") if split["type"] == "Split" else ""
        plain = split.get("behavior") == "Isolated" and not split.get("invert")
        whole = levels["type"] == "ByteLevel" and not levels["use_regex"]
        known = plain and whole and pattern in _WORDS and not levels["add_prefix_space"]
        return BETWEEN_WORDS if known else None
    plain = before.get("type") == "ByteLevel" and before["use_regex"]
    return BEFORE_SPACES if plain and not before["add_prefix_space"] else None


def _first_known(vocabulary: dict[str, int]) -> str | None:
    return next((token for token in _KNOWN_ENDS if token in vocabulary), None)


def _choose_end(name: str, vocabulary: dict[str, int], end: str | None) -> str:
    """The token that ends a document: the one that is named, else the only one with a known name.

    Raises:
        LinscaleError: there is none, or several have such names.
    """
    if end is not None:
        if end not in vocabulary:
            raise LinscaleError(
                f"tokenizer {name}: tokenizer_config.json beside it says "
                f"that {end!r} ends a text, which is not in its vocabulary; correct that file."
            )
        return end
    known = [token for token in _KNOWN_ENDS if token in vocabulary]
    if not known:
        raise LinscaleError(
            f"tokenizer {name}: no end-of-document token; add one of "
            f"{', '.join(_KNOWN_ENDS[:4])} to it as a special token, or name it as `eos_token` in "
            "a tokenizer_config.json beside it."
        )
    if len(known) > 1:
        raise LinscaleError(
            f"tokenizer {name}: {' and '.join(map(repr, known))} may all end a document; say which "
            f'in a tokenizer_config.json beside it: {{"eos_token": {json.dumps(known[0])}}}.'
        )
    return known[0]


def _unknown(model: dict[str, Any]) -> str | None:
    """The token for what a vocabulary lacks; texts lead to it rightly."""
    if model.get("unk_token") is not None:
        return model["unk_token"]
    number = model.get("unk_id")  # of a Unigram model, whose vocabulary is a list
    return None if number is None else model["vocab"][number][0]
