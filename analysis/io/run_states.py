"""Which rows of a table are runs that did not end well, by a column of states or of yes and no.

    State, run_state, job_status, ...     failed, crashed, killed, diverged, running, ...
    diverged, failed, is_crashed, ...     true, yes, 1
    finished, completed, converged, ...   false, no, 0

A column counts as one of states only where a cell is a state that is known: a `status` of open and
closed says nothing of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from analysis.io.columns import bare

BAD_STATES = {
    "failed", "failure", "fail", "crashed", "crash", "killed", "diverged", "running", "pending",
    "queued", "scheduled", "preempted", "preempting", "interrupted", "cancelled", "canceled",
    "aborted", "error", "timeout", "oom", "nan", "unfinished", "incomplete",
}  # fmt: skip
GOOD_STATES = {"finished", "done", "completed", "complete", "success", "succeeded", "ok"}
_BAD_FLAGS = {"diverged", "failed", "crashed", "killed", "unfinished", "incomplete", "aborted"}
_GOOD_FLAGS = {"finished", "completed", "converged", "succeeded", "success", "done"}
_TRUE, _FALSE = {"true", "yes", "y", "1", "1.0", "t"}, {"false", "no", "n", "0", "0.0", "f"}


def ended_badly(
    names: Iterable[str], cells: Callable[[str], list[str]], count: int
) -> list[str]:  # fmt: skip
    """Why each row is a run that did not end well; "" where nothing says so.

    Args:
        names: of the columns that are nothing else.
        cells: a column as text.
        count: of rows.
    """
    reasons = [""] * count
    for name in names:
        words = bare(name).split("_")
        if words[-1] in ("state", "status"):
            states = cells(name)
            lower = [s.lower() for s in states]
            bad = BAD_STATES if set(lower) & (BAD_STATES | GOOD_STATES) else set[str]()
        elif words[-1] in _BAD_FLAGS | _GOOD_FLAGS:
            states = cells(name)
            lower = [s.lower() for s in states]
            if not set(lower) - {""} <= _TRUE | _FALSE:
                continue
            bad = _TRUE if words[-1] in _BAD_FLAGS else _FALSE
        else:
            continue
        for row, state in enumerate(lower):
            if state in bad and not reasons[row]:
                reasons[row] = f"{name} is {states[row]}"
    return reasons
