"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton decides between compiling and interpreting when it is first imported, which other
    # packages do: without a GPU its kernels run in the interpreter, in every test process.
    os.environ.setdefault("TRITON_INTERPRET", "1")

if threading.current_thread() is threading.main_thread():
    # A shell's background job ignores Ctrl-C, and so would everything started by the tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The default run draws the same examples every time, so that it does not depend on luck;
# `make test-all` (HYPOTHESIS_PROFILE=default) draws new ones. A GPU machine may lack hypothesis.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    settings.register_profile("repeatable", derandomize=True)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

ROOT = Path(__file__).resolve().parent.parent

REMEDIES = {
    "browser": ("Chromium", "put `chromium` on the path"),
    "public data": ("public data", "set LINSCALE_DATA to a folder that holds them"),
    "GPU": ("CUDA|GPU memory", "run `make gpu-check` on a machine with a GPU"),
    "kernels in the interpreter": ("TRITON_INTERPRET", "set TRITON_INTERPRET=1"),
    "compiled kernels": (r"C\+\+ compiler", "install g++ or clang++"),
    "optional packages": ("could not import", "pip install -e '.[dev]'"),
}
"""Kind of skipped test -> what its reason says, and how to have it."""
OTHER = "other reasons"


def kinds_of(reasons: Iterable[str]) -> dict[str, int]:
    """How many skipped tests there are of each kind."""
    found: Counter[str] = Counter()
    for reason in reasons:
        named = (k for k, (said, _) in REMEDIES.items() if re.search(said, reason))
        found[next(named, OTHER)] += 1
    return dict(found)


def in_words(kinds: dict[str, int]) -> str:
    """What is left out, and how to have it."""
    parts = [
        f"{count} {kind}" + (f" ({REMEDIES[kind][1]})" if kind in REMEDIES else " (pytest -rs)")
        for kind, count in sorted(kinds.items())
    ]
    return f"NOT TESTED HERE: {sum(kinds.values())} skipped: " + "; ".join(parts)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The very last line says what was skipped, by kind, and how to have it."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    skipped = reporter.stats.get("skipped", [])
    reasons = [r.longrepr[2] if isinstance(r.longrepr, tuple) else str(r.longrepr) for r in skipped]
    if reasons:
        reporter.write_line(in_words(kinds_of(reasons)), yellow=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public data sets that are not part of the repository; skips when absent.

    Set LINSCALE_DATA to point at it; the default is `../shared/data` beside the checkout.
    """
    path = Path(os.environ.get("LINSCALE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"public data sets not found at {path} (set LINSCALE_DATA)")
    return path
