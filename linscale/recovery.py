"""How much a linearized model has recovered, and what that is counted from.

    share = (zero - loss) / (zero - teacher)          1 at the teacher's loss, 0 at the zero's

A method with a softmax window counts from the window alone: the teacher's own weights whose
queries see the student's window and sinks, without a linear part and without training. Only what
is beyond that does the linear part and its training bring. A method without a window counts from
the model right after surgery. The share of the gap that surgery opens is a number of its own: fresh
feature maps make that gap wide, and the window alone closes most of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WINDOW, SURGERY = "the window alone", "after surgery"
"""What a share counts from."""
WINDOWED = ("lolcats",)
"""Architectures with softmax attention to a window beside their linear part."""


def zero_of(arch: str) -> str:
    """What the recovered share of an architecture counts from: `WINDOW` or `SURGERY`."""
    return WINDOW if arch in WINDOWED else SURGERY


def recovered(loss: float, zero: float | None, teacher: float | None) -> float | None:
    """The share of the way from `zero` to `teacher`, all in nats; above 1 below the teacher's.

    None where one of them is not known, or the zero is not above the teacher.
    """
    if zero is None or teacher is None or not zero > teacher:
        return None
    return (zero - loss) / (zero - teacher)


def reference(content: Mapping[str, Any], arch: str) -> dict[str, float | None]:
    """The losses that shares are taken of, from what a student's linearization.json holds.

    `teacher`: of the softmax model. `window`: of the student's window alone. `surgery`: right after
    it. `zero`: the one of these two that the headline counts from. None where the record does not
    have it: a student with a window, from before windows were measured, has no zero.
    """
    found, baselines = content.get("validation", {}), content.get("baselines", {})
    own = baselines.get("window + sink" if content.get("sinks") else "window", {})
    losses: dict[str, float | None] = {
        "teacher": found.get("softmax", found.get("teacher", {})).get("loss"),
        "window": own.get("loss"),
        "surgery": found.get("surgery", {}).get("loss"),
    }
    zeros = {WINDOW: losses["window"], SURGERY: losses["surgery"]}
    return losses | {"zero": zeros[zero_of(arch)]}
