"""Snapshots on the host: what they hold, how long, and what they ask of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scaling.system.snapshot import Snapshots


def test_a_copy_has_the_containers_and_none_of_the_memory() -> None:
    content = {"a": torch.ones(2), "b": [torch.zeros(1), 3, "x"], "c": (None, 1.5)}
    copy = Snapshots().take(content)
    content["a"].zero_()
    content["b"][0].fill_(9)
    assert copy["a"].tolist() == [1, 1]
    assert copy["b"][0].tolist() == [0]
    assert copy["b"][1:] == [3, "x"]
    assert copy["c"] == (None, 1.5)


def test_any_tensor_and_its_file(tmp_path: Path) -> None:
    """Types, layouts and sizes; a file of two small ones is not as large as the buffer."""
    content: dict[str, Tensor] = {
        "byte": torch.arange(5, dtype=torch.uint8),
        "half": torch.randn(3, 5, dtype=torch.float64).bfloat16().t(),
        "none": torch.empty(0, 4),
        "number": torch.tensor(2.5),
        "rows": torch.arange(4.0).expand(3, 4),
        "large": torch.randn(1000, 100),
    }
    copy = Snapshots().take(content)
    assert all(torch.equal(content[name], copy[name]) for name in content)
    assert all(content[name].dtype == copy[name].dtype for name in content)
    few = {name: copy[name] for name in ("byte", "half")}
    torch.save(few, tmp_path / "few.pt")
    assert (tmp_path / "few.pt").stat().st_size < 4000
    read = torch.load(tmp_path / "few.pt", weights_only=True)
    assert all(torch.equal(read[name], content[name]) for name in few)


def test_the_buffer_is_used_again_while_it_fits() -> None:
    snapshots = Snapshots()
    first = snapshots.take([torch.zeros(100), torch.ones(7)])
    second = snapshots.take([torch.full((100,), 2.0), torch.ones(7)])
    assert [x.data_ptr() for x in first] == [x.data_ptr() for x in second]
    assert first[0].eq(2).all()  # good until the next one
    third = snapshots.take([torch.zeros(200)])
    assert third[0].tolist() == [0.0] * 200


def test_a_device_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that say they are on a CUDA device: one page-locked buffer, one wait."""

    class OnDevice(Tensor):
        is_cuda = True  # pyright: ignore[reportAssignmentType]

    asked: list[Any] = []
    real = torch.empty

    def empty(*sizes: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        asked.append(pin_memory)
        return real(*sizes, **options)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: asked.append("wait"))
    weights = [torch.randn(50).as_subclass(OnDevice) for _ in range(4)]
    snapshots = Snapshots()
    snapshots.take({"weights": weights})
    copy = snapshots.take({"weights": weights})
    assert asked == [True, "wait", "wait"]
    assert all(torch.equal(x, y) for x, y in zip(copy["weights"], weights, strict=True))
