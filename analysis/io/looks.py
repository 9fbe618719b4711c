"""How a group is named and drawn: label, colour and marker, and the order of groups.

Colour and marker belong to an architecture, never to its order in a table, so that a figure of two
reads like a figure of four. The palette is Okabe and Ito's (2008). Plain data, without matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from linscale.texts import clean


@dataclass(frozen=True)
class Look:
    """How one architecture (or any group) is drawn."""

    label: str
    color: str
    marker: str


_LOOKS = {
    "llama": Look("LLaMA", "#0072B2", "o"),
    "tnl": Look("TNL", "#D55E00", "s"),
    "hgrn2": Look("HGRN2", "#009E73", "^"),
    "cosformer2": Look("cosFormer2", "#B0568E", "D"),
}
_OTHERS = (("#4D4D4D", "v"), ("#E69F00", "P"), ("#56B4E9", "X"), ("#8C6D31", "<"), ("#7570B3", ">"),
           ("#CC3377", "p"), ("#7FA015", "h"), ("#00A5A5", "*"), ("#A9746E", "d"))  # fmt: skip

_MARKERS = {*".,ov^<>12348spP*hH+xXDd|_"}
"""Every marker of matplotlib that is one character."""
_RECORDED: dict[str, Look] = {}
"""Looks of architectures that are not in the table above, as run records have them."""


def learn(arch: str, record: object) -> None:
    """Draw an architecture as its run record says, if this module does not know it.

    Args:
        arch: its name.
        record: `architecture` of accounting.json: label, colour (#RRGGBB) and marker (of
            matplotlib); what is missing, or is none of these, is left to `look`.
    """
    if isinstance(record, Mapping) and arch.lower() not in _LOOKS:
        said = [record.get(name) for name in ("label", "colour", "marker")]
        label, color, marker = (text if isinstance(text, str) else "" for text in said)
        color = color if re.fullmatch("#[0-9A-Fa-f]{6}", color) else ""
        _RECORDED[arch] = Look(clean(label), color, marker if marker in _MARKERS else "")


def look(group: str, among: Iterable[str] = ()) -> Look:
    """The look of a group; groups that are no known architecture look as their run records say,
    and else take the spare colours that none of `among` has, in the sorted order of `among`."""
    known = _LOOKS.get(group.lower())
    if known:
        return known
    others = sorted(g for g in {*among, group} if g.lower() not in _LOOKS)
    taken = {_RECORDED[g].color for g in others if g in _RECORDED}
    spare = [g for g in others if g not in _RECORDED or not _RECORDED[g].color]
    free = [each for each in _OTHERS if each[0] not in taken] or list(_OTHERS)
    said = _RECORDED.get(group, Look("", "", ""))
    color, marker = free[spare.index(group) % len(free)] if group in spare else ("", "o")
    label = said.label or ("all runs" if group == "all" else group)
    return Look(label, said.color or color, said.marker or marker)


def ordered(groups: Iterable[str]) -> list[str]:
    """Distinct groups: the four architectures in their usual order, then others by name."""
    rank = {name: i for i, name in enumerate(_LOOKS)}
    return sorted({str(g) for g in groups}, key=lambda g: (rank.get(g.lower(), len(rank)), g))
