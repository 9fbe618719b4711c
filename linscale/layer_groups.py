"""Names of groups of models: an architecture, or a pattern of token mixers.

A pattern is written and read by `models.layer_pattern`; here are only the names, which records,
tables and figures share.
"""

from __future__ import annotations

import re

SOFTMAX = "llama"
"""The built-in architecture whose layers are softmax attention."""

_WORD = re.compile(r"\s*([\w.]+)\s*(\(.*\))?\s*(?:\*\s*(\d{1,6}))?\s*", re.DOTALL)


def group(arch: str, mixers: str | None) -> str:
    """The name that models of one kind share in tables and figures: their architecture, or their
    pattern, with the base architecture where it is not the one that is named first.

    Args:
        arch: `model.arch` of a record.
        mixers: `model.mixers` of it.
    """
    if not mixers:
        return arch
    return mixers if re.match(rf"{re.escape(arch)}\b", mixers) else f"{mixers} on {arch}"


def softmax_share(name: str) -> tuple[str, float] | None:
    """The base architecture of a group, and the share of `SOFTMAX` layers in one repetition of its
    pattern; None where the name is no pattern, or mixes anything else than the two, or one of them
    with other options."""
    pattern, _, base = name.partition(" on ")
    base = base or re.split(r"\W", pattern.strip(), maxsplit=1)[0]
    softmax = layers = 0
    for word in split(pattern, "+"):
        if (matched := _WORD.fullmatch(word)) is None:
            return None
        if matched[2] or matched[1] not in (base, SOFTMAX):
            return None
        count = int(matched[3] or 1)
        layers += count
        softmax += count * (matched[1] == SOFTMAX)
    if not layers:
        return None
    return base, softmax / layers


def split(text: str, mark: str) -> list[str]:
    """Parts of a text between marks that stand in no brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
