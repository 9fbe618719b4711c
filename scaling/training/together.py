"""Runs that train in one process and make their steps together: one graph for a step of each.

    threads, one a run        each with its own trainer, record, data order and checkpoints; one at
                              a time goes on, and hands over where it would make a captured step
    all of them wait there    their steps are made, on a stream each, as one graph

A run's step is the function that it would capture alone (`scaling.training.captured`), on its own
tensors, so that its numbers are those of the run alone; a device that one small model leaves idle
has the steps of several to do at once. When a run begins a segment or ends, the next step of those
that are left is captured anew. Steps that are not captured, the first ones and those whose
gradients are looked at, each run makes for itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch

from scaling.system.randomness import random_state, set_random_state

if TYPE_CHECKING:
    from scaling.training.captured import Capture, CapturedStep, Run


class Together:
    """What the threads of one process share."""

    def __init__(self, members: int) -> None:
        """
        Args:
            members: threads that will enter `member`.
        """
        self.members = members
        self._condition = threading.Condition()
        """Held by the thread that goes on."""
        self._live = members
        self._waiting: list[CapturedStep] = []
        self._round = 0
        """Steps made together."""
        self._error: Exception | None = None
        self._captured: tuple[list[CapturedStep], Run] | None = None

    @contextmanager
    def member(self) -> Iterator[None]:
        """Within the block, which a thread enters once, its captured steps are made here."""
        with self._condition:
            token = _CURRENT.set(self)
            try:
                yield
            finally:
                _CURRENT.reset(token)
                self._live -= 1
                self._go_on()

    def step(self, member: CapturedStep, capture: Capture) -> None:
        """Make a step of this thread's run, as soon as all others are here.

        Raises:
            Exception: what has gone wrong, in every thread that waited for it.
        """
        self._waiting.append(member)
        before = self._round
        random = random_state()  # each run has its own
        if not self._go_on(capture):
            self._condition.wait_for(lambda: self._round > before)
        set_random_state(random)
        if self._error is not None:
            raise self._error

    def _go_on(self, capture: Capture | None = None) -> bool:
        """Make the step if everybody waits for it; returns whether it was made."""
        if not self._waiting or len(self._waiting) < self._live:
            return False
        members = sorted(self._waiting, key=id)
        self._waiting = []
        try:
            if self._captured is None or self._captured[0] != members:
                self._captured = None  # its memory first
                capture = capture or members[0].capture
                assert capture is not None
                self._captured = members, capture(lambda: side_by_side(members))
            self._captured[1]()
        except Exception as error:
            self._error = error
        self._round += 1
        self._condition.notify_all()
        return True


_CURRENT: ContextVar[Together | None] = ContextVar("together", default=None)


def current() -> Together | None:
    """What this thread's run makes its steps with, if it does not train alone."""
    return _CURRENT.get()


def side_by_side(members: list[CapturedStep]) -> None:
    """A step of each; on a CUDA device each on a stream of its own, which this one waits for."""
    for member in members:
        if member.device.type != "cuda":
            member.make()
            continue
        here, side = torch.cuda.current_stream(member.device), member.side
        side.wait_stream(here)
        with torch.cuda.stream(side):
            member.make()
    for member in members:
        if member.device.type == "cuda":
            torch.cuda.current_stream(member.device).wait_stream(member.side)
