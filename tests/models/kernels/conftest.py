"""Fixtures of the kernel tests: Triton's interpreter made exact enough, outputs poisoned."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.gpu_check import in_order


def _multiply_bfloat16_as_float32() -> None:
    """Triton's interpreter stores bfloat16 as raw uint16 and multiplies the bits in `tl.dot`."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder

    create_dot = InterpreterBuilder.create_dot

    def with_float32(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = self.cast_impl(a, tl.float32), self.cast_impl(b, tl.float32)
        return create_dot(self, a, b, *rest)

    setattr(InterpreterBuilder, "create_dot", with_float32)  # noqa: B010


def _round_to_bfloat16_as_a_gpu() -> None:
    """The interpreter cuts float32 off where it casts to bfloat16; a GPU rounds to nearest, ties to
    even. Cut off, every cast is one-sided and twice as wrong."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            bits = np.ascontiguousarray(data).view(np.uint32)
            nearest = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
            quiet = (bits >> 16) | 0x40  # a NaN stays one
            return np.where(np.isnan(data), quiet, nearest).astype(np.uint16)
        if source == tl.bfloat16 and target == tl.float32:
            bits = np.ascontiguousarray(data).view(np.uint16)
            return bits.astype(np.uint32) << 16
        return convert(data, source, target, rounding)

    setattr(interpreter, "_convert_float", rounded)  # noqa: B010


def _index_with_one_element() -> None:
    """Triton 3.6's interpreter makes loop bounds of arrays of one element, which NumPy 2.4 refuses
    to take for integers."""
    from triton.runtime import interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        def set_attr(owner: Any, name: str, value: Any) -> None:
            if name == "__index__":
                value = lambda self: self.handle.data.item()  # noqa: E731
            scope.set_attr(owner, name, value)

        changed: Any = SimpleNamespace(set_attr=set_attr)
        patch_tensor(tensor, changed)

    setattr(interpreter, "_patch_lang_tensor", patched)  # noqa: B010


def _reduce_and_scan_with_numpy() -> None:
    """The interpreter runs combine functions it does not know one element at a time, in Python.

    `tl.xor_sum` and the two pair scans of `vector_tiles` are what NumPy does at once
    (`test_scans_as_the_interpreter_runs_them` compares).
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import ReduceOps, ScanOps

    from models.kernels.triton import vector_tiles

    reduce, scan = ReduceOps.apply_impl, ScanOps.apply_impl
    running = {vector_tiles._append_sum: np.cumsum, vector_tiles._append_product: np.cumprod}

    def numpy_reduce(self: Any, inputs: Any) -> Any:
        if self.combine_fn is not tl.standard._xor_combine:
            return reduce(self, inputs)
        x = inputs[0]
        data = np.bitwise_xor.reduce(x.handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(data, x.dtype)

    def numpy_scan(self: Any, inputs: Any) -> Any:
        if self.combine_fn not in running:
            return scan(self, inputs)
        neutral, x = (np.moveaxis(i.handle.data, self.axis, 0) for i in inputs)
        if self.reverse:
            x = x[::-1]
        upto = running[self.combine_fn](x, axis=0, dtype=x.dtype)
        before = np.concatenate([neutral[:1], upto[:-1]])
        if self.reverse:
            before, upto = before[::-1], upto[::-1]
        dtype = inputs[1].dtype
        return [
            self.to_tensor(np.ascontiguousarray(np.moveaxis(y, 0, self.axis)), dtype)
            for y in (before, upto)
        ]

    setattr(ReduceOps, "apply_impl", numpy_reduce)  # noqa: B010
    setattr(ScanOps, "apply_impl", numpy_scan)  # noqa: B010


if os.environ.get("TRITON_INTERPRET") == "1":
    _multiply_bfloat16_as_float32()
    _round_to_bfloat16_as_a_gpu()
    _index_with_one_element()
    _reduce_and_scan_with_numpy()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make gpu-check`: with LINSCALE_GPU_DONE=FILE the tests named in the file are left out, and
    the others come in the order of their value."""
    done = os.environ.get("LINSCALE_GPU_DONE")
    if not done:
        return
    chosen = {item.nodeid: item for item in items if item.get_closest_marker("gpu")}
    names = in_order(list(chosen), Path(done).read_text().splitlines())
    config.hook.pytest_deselected(items=[x for x in items if x.nodeid not in set(names)])
    items[:] = [chosen[name] for name in names]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With LINSCALE_GPU_RECORD=FILE every test that passed is added to the file at once."""
    record = os.environ.get("LINSCALE_GPU_RECORD")
    if (
        record
        and report.when == "call"
        and report.passed
        and "PYTEST_XDIST_WORKER" not in os.environ
    ):
        with open(record, "a") as file:
            file.write(report.nodeid + "\n")


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory of `torch.empty` with NaN, so that an element left unwritten shows."""
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
