"""No process trains on when the one that started it is gone.

The kernel of Linux sends a process the signal of its choice when its parent ends, however it ends
(`prctl(PR_SET_PDEATHSIG)`). A run on several devices is a chain of three:

    worker  ->  torchrun  ->  ranks

torchrun gets SIGTERM, on which it lets the ranks save and end. It holds the run's claim as well
(`scaling.system.claims`), so that nobody else trains the run before it is gone. Ranks get SIGKILL:
once torchrun is gone, so is the claim.

Elsewhere the call does nothing, and the pool ends what a dead worker leaves behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
KERNEL_TELLS = sys.platform == "linux"
"""Whether processes can be told of their parent's end."""
_libc = ctypes.CDLL(None, use_errno=True) if KERNEL_TELLS else None


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Have this process sent `number` when its parent ends, or now if it has ended already.

    Fit for `preexec_fn`: the setting outlives an exec. What counts as the parent is the thread that
    started the process.

    Args:
        parent: process id of the parent, as it was known to the caller.
        number: the signal.
    """
    if _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
