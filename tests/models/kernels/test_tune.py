"""Tuning tables: complete for every key that is looked up; the tuner's rules."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.kernels import launch
from models.kernels.call import Call
from models.kernels.delta.call import DeltaCall
from models.kernels.tools import measuring, tune
from models.kernels.tools.rows import Entry, candidates, entries
from models.kernels.triton.common import ARCHS, TUNING, interpreted, table, tuned
from tests.docs.test_json import call, check

FAMILIES = ("scalar", "phase", "vector", "delta")


def one(
    mode: str, dtype: torch.dtype, key_dim: int, value_dim: int, packed: bool = False
) -> Call | DeltaCall:
    """A call without memory."""
    return measuring.sample(mode, dtype, key_dim, value_dim, "meta", 64, packed)[0]


@pytest.mark.parametrize("arch", ARCHS)
def test_tables_have_every_entry(arch: str) -> None:
    for entry in entries(FAMILIES, arch):
        for mode in entry.modes:
            call = one(mode, entry.dtype, entry.dim, entry.dim, packed=entry.general)
            constants = tuned(entry.family, entry.kernel, call, arch)
            assert constants == table(entry.family, arch)[entry.key]
            assert constants["num_warps"] in (1, 2, 4, 8, 16)


def test_rule_for_dimensions_without_an_entry() -> None:
    """The next power of two of the larger dimension, at least 16."""
    for key_dim, value_dim, dim in ((60, 36, 64), (1, 128, 128), (3, 3, 16)):
        call = one("head", torch.bfloat16, key_dim, value_dim)
        found = tuned("scalar", "states", call, "sm_90")
        assert found == table("scalar", "sm_90")[f"states/16/{dim}"]


def test_a_mode_has_its_own_row_and_the_general_case_another() -> None:
    rows = table("scalar", "sm_90")
    own, general = rows["output/head/16/64"], rows["output/general/16/64"]
    assert own != general
    for dims, packed, expected in (
        ((64, 64), False, own), ((64, 64), True, general), ((60, 60), False, general),
        ((64, 33), False, general),
    ):  # fmt: skip
        found = tuned("scalar", "output", one("head", torch.float16, *dims, packed), "sm_90")
        assert found == expected


def test_candidates_are_distinct_and_fit_the_dimension() -> None:
    for entry in entries(FAMILIES, "sm_90"):
        found = list(candidates(entry))
        assert len(found) > 1
        assert all(found.count(c) == 1 for c in found)
        assert all(c.get(side, 0) <= entry.dim for c in found for side in ("BK", "BV"))


def test_least_spill_is_kept_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All candidates of one kernel spill: the last, least, is kept; no key of the table goes."""
    spills = iter(range(1000, 0, -1))

    def compiled(entry: Entry, constants: dict[str, int], arch: str) -> int | None:
        return next(spills) if entry.kernel == "phase_read" else 0

    monkeypatch.setattr(tune, "judged", compiled)
    [path] = tune.tune("sm_90", families=("phase",), output=tmp_path, report=lambda line: None)
    rows = json.loads(path.read_text())
    before = json.loads((TUNING / "scalar.sm_90.json").read_text())
    assert rows.keys() - {"spills"} == before.keys() - {"spills"}
    assert rows["states/16/128"] == before["states/16/128"]
    reads = [e for e in entries(("phase",), "sm_90") if e.kernel == "phase_read"]
    assert {e.key for e in reads} <= set(rows["spills"])
    for entry in reads:
        tried = [c for c in candidates(entry) if c != before[entry.key]]
        assert rows[entry.key] == tried[-1]  # the last spilled least


def test_present_constants_that_do_not_spill_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a second run changes nothing: the files come out byte for byte."""
    monkeypatch.setattr(tune, "judged", lambda entry, constants, arch: 0)
    paths = tune.tune("sm_80", output=tmp_path, report=lambda line: None)
    assert {path.name for path in paths} == {
        "scalar.sm_80.json", "vector.sm_80.json", "delta.sm_80.json",
    }  # fmt: skip
    for path in paths:
        rows, before = json.loads(path.read_text()), json.loads((TUNING / path.name).read_text())
        before.pop("spills", None)
        assert list(rows.items()) == list(before.items())


def test_the_command_names_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "judged", lambda entry, constants, arch: 0)
    document = call(
        "tune", "--offline", "--arch", "sm_80", "--families", "vector", "--dims", 16, "-o", tmp_path
    )
    check("linscale tune", document)
    assert document == {"files": [str(tmp_path / "vector.sm_80.json")]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "sm_70"}, "choose one of sm_80"),
        ({"arch": "sm_90", "families": ("softmax",)}, "choose from scalar"),
        ({"arch": "sm_90", "dims": (96,)}, "choose from 16"),
    ],
)
def test_errors(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune.tune(**arguments)  # pyright: ignore[reportArgumentType]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_needs_a_gpu_or_an_architecture() -> None:
    with pytest.raises(ValueError, match="--offline --arch"):
        tune.tune()


def test_data_are_random_and_packed_sequences_real() -> None:
    for mode in launch.KERNELS:
        call, do, dstate = measuring.sample(mode, torch.float32, 16, 16, "cpu", 20, True, 2, 3)
        assert call.mode == mode
        for x in (call.q, call.k, call.v, call.initial_state, do, dstate):
            assert x is not None
            assert x.std() > 0.1
        assert call.q.shape == (1, 40, 3, 16)
        assert call.cu_seqlens is not None
        assert call.cu_seqlens.tolist() == [0, 8, 20, 40]
        if mode in ("head", "head_t", "vector", "delta_head", "delta_channel"):
            assert call.decay is not None
            assert (call.decay <= 0).all()


@pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
@pytest.mark.parametrize(
    ("family", "kernel", "times"),
    # none and head, at one shape; the states are launched forward and backward
    [("scalar", "output", 2), ("scalar", "states", 4), ("vector", "scan_reverse", 2)],
)
def test_one_kernel_is_timed_at_a_time(
    family: str, kernel: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the entry's launches, with the trial's constants, and each does its work again."""
    monkeypatch.setattr(measuring, "SHAPES", ((1, 600, 1),))
    [entry] = [
        e for e in entries((family,), "sm_90", (16,))
        if e.kernel == kernel and e.dtype == torch.float32 and not e.general
    ][:1]  # fmt: skip
    entry = replace(entry, modes=("none", "head") if family == "scalar" else ("vector", "gate"))
    constants = table(family, "sm_90")[entry.key] | {"num_warps": 2}
    timed: list[tuple[str, int]] = []

    def once(run: Any) -> float:
        timed.append((run.args[0].fn.__name__, run.keywords["num_warps"]))
        run()
        return 2.0

    monkeypatch.setattr(measuring, "milliseconds", once)
    assert measuring.seconds(entry, constants, "cpu") > 0
    assert timed == [(entry.function, 2)] * times


def test_on_a_gpu_the_fastest_is_kept_even_if_it_spills(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = next(entries(("scalar",), "sm_90"))
    tried = [({"C": 64}, 0), ({"C": 128}, 16), ({"C": 32}, 0)]
    times = {64: 3.0, 128: 1.0, 32: 2.0}
    monkeypatch.setattr(tune, "seconds", lambda entry, constants: times[constants["C"]])
    assert tune.choose(entry, "sm_90", tried, offline=False) == ({"C": 128}, 16)
    assert tune.choose(entry, "sm_90", tried, offline=True) == ({"C": 64}, 0)


def test_larger_chunks_more_stages_and_four_warps_are_candidates() -> None:
    for entry in entries(FAMILIES, "sm_90", (128,)):
        found = list(candidates(entry))
        assert any(c["num_warps"] == 4 for c in found)
        if entry.dtype == torch.bfloat16 and entry.kernel != "decay":
            assert any(c["num_stages"] > 1 for c in found)
            assert entry.family in ("vector", "delta") or any(c["C"] == 128 for c in found)
