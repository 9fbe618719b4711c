"""Fixtures of the kernel tests: Triton's interpreter made exact enough, outputs poisoned."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch


def _multiply_bfloat16_as_float32() -> None:
    """Triton's interpreter stores bfloat16 as raw uint16 and multiplies the bits in `tl.dot`."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    create_dot = InterpreterBuilder.create_dot

    def with_float32(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        return create_dot(self, a, b, *rest)

    InterpreterBuilder.create_dot = with_float32


if os.environ.get("TRITON_INTERPRET") == "1":
    _multiply_bfloat16_as_float32()


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory of `torch.empty` with NaN, so that an element left unwritten shows."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
