"""Tuning tables: complete for every key that is looked up; the tuner's rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from models.kernels.call import Call
from models.kernels.tools import tune
from models.kernels.triton.common import ARCHS, TUNING, table, tuned

FAMILIES = ("scalar", "phase", "vector")


def one(mode: str, dtype: torch.dtype, key_dim: int, value_dim: int, packed: bool = False) -> Call:
    """A call without memory."""
    return tune.sample(mode, dtype, key_dim, value_dim, "meta", 64, packed)[0]


@pytest.mark.parametrize("arch", ARCHS)
def test_tables_have_every_entry(arch: str) -> None:
    for entry in tune.entries(FAMILIES, arch):
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
    for entry in tune.entries(FAMILIES, "sm_90"):
        found = list(tune.candidates(entry))
        assert len(found) > 1
        assert all(found.count(c) == 1 for c in found)
        assert all(c.get(side, 0) <= entry.dim for c in found for side in ("BK", "BV"))


def test_least_spill_is_kept_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All candidates of one kernel spill: the last, least, is kept; no key of the table goes."""
    spills = iter(range(1000, 0, -1))

    def compiled(entry: tune.Entry, constants: dict[str, int], arch: str) -> int | None:
        return next(spills) if entry.kernel == "phase_read" else 0

    monkeypatch.setattr(tune, "judged", compiled)
    [path] = tune.tune("sm_90", families=("phase",), output=tmp_path, report=lambda line: None)
    rows = json.loads(path.read_text())
    before = json.loads((TUNING / "scalar.sm_90.json").read_text())
    assert rows.keys() - {"spills"} == before.keys() - {"spills"}
    assert rows["states/16/128"] == before["states/16/128"]
    reads = [e for e in tune.entries(("phase",), "sm_90") if e.kernel == "phase_read"]
    assert {e.key for e in reads} <= set(rows["spills"])
    for entry in reads:
        tried = [c for c in tune.candidates(entry) if c != before[entry.key]]
        assert rows[entry.key] == tried[-1]  # the last spilled least


def test_present_constants_that_do_not_spill_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, a second run changes nothing: the files come out byte for byte."""
    monkeypatch.setattr(tune, "judged", lambda entry, constants, arch: 0)
    paths = tune.tune("sm_80", output=tmp_path, report=lambda line: None)
    assert {path.name for path in paths} == {"scalar.sm_80.json", "vector.sm_80.json"}
    for path in paths:
        rows, before = json.loads(path.read_text()), json.loads((TUNING / path.name).read_text())
        before.pop("spills", None)
        assert list(rows.items()) == list(before.items())


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
