"""One run of a sweep as those see it who launch it."""

from __future__ import annotations

from dataclasses import dataclass

from scaling.config.run import RunConfig
from scaling.record.head import ENDED
from scaling.system.claims import STALE_SECONDS, Holder

FINAL = (*ENDED, "failed", "preempted")


@dataclass(kw_only=True)
class Task:
    """One run of the sweep as the pool sees it."""

    config: RunConfig
    flops: float
    """Training compute; the longest run is begun first unless another order is asked for."""
    state: str = "waiting"
    """`waiting`, `running` (here), `elsewhere`, or how it ended: see `FINAL`."""
    reason: str = ""
    deaths: int = 0
    """Workers that died on it in a row without getting further."""
    reached: int = -1
    """Tokens it had when the last worker died."""
    retry_at: float = 0.0
    """Clock before which a run claimed elsewhere is left alone."""
    silent: int | None = None
    """Heartbeat of a claim of another host that has not changed for long enough."""
    told: bool = False
    """Whether it was said whom this run waits for."""
    beat: int = -1
    """Last heartbeat of its claim, as `scaling.system.claims.heartbeat` gives it."""
    beat_seen: float = 0.0
    """Clock when that was new."""

    @property
    def run_id(self) -> str:
        """Directory name of the run."""
        return self.config.run_id

    @property
    def final(self) -> bool:
        """Whether the pool has nothing more to do with it."""
        return self.state in FINAL


def waits_for(task: Task, held: Holder) -> str:
    """The sentence that says whom a run is left to."""
    return (
        f"{task.run_id}: process {held.pid} on {held.hostname or 'this host'} trains it; waiting "
        f"for that one, or until it has been silent for {STALE_SECONDS:.0f} seconds"
    )
