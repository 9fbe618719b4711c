"""Freed memory is the system's again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
from scaling.system.freed_memory import give_back_memory
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pins = [bytearray(3000) for _ in range(20000)]  # below the size that the library maps by itself
full = held()
pins = pins[-1:]  # the last keeps the top of the heap
freed = held()
give_back_memory()
print(full, freed, held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only the GNU C library can be asked")
def test_memory_of_small_pieces_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    full, freed, after = map(int, done.stdout.split())
    assert full - after > 40 * 10**6
    assert freed - after > 40 * 10**6
