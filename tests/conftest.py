"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
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


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public data sets that are not part of the repository; skips when absent.

    Set LINSCALE_DATA to point at it; the default is `../shared/data` beside the checkout.
    """
    path = Path(os.environ.get("LINSCALE_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"public data sets not found at {path} (set LINSCALE_DATA)")
    return path
