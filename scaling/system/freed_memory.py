"""Memory that was freed goes back to the system.

The C library keeps what was freed in small pieces for its next requests: after a tokenizer was
trained some hundred megabytes, which nothing asks for again.
"""

from __future__ import annotations

import ctypes
import sys


def give_back_memory() -> None:
    """Ask the GNU C library to return what is free; elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)
