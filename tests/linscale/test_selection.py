"""The language of --only, against a table written by hand."""

from __future__ import annotations

import pytest

from linscale.selection import SelectionError, chosen, fields_of, matches

RUN = fields_of(
    {"name": "llama-1B", "size": "1B", "seed": 2, "model": {"arch": "llama", "dim": 2048}},
    run_id="llama-1B-65cd7021",
    state="done",
)


@pytest.mark.parametrize(
    ("only", "holds"),
    [
        (None, True),
        ("", True),
        ("size=1B arch=llama", True),
        ("size=1B,arch=tnl", False),
        ("size=7B|1B", True),
        ("arch=l*", True),
        ("arch!=llama", False),
        ("arch!=tnl|hgrn2", True),
        ("seed<2", False),
        ("seed<=2 model.dim>=2048", True),
        ("model.dim>3e3", False),
        ("65cd", True),
        ("llama-?B-*", True),
        ("tnl", False),
        ("state=done", True),
    ],
)
def test_conditions(only: str | None, holds: bool) -> None:
    assert matches(only, RUN) == holds


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("sizes=1B", "no field 'sizes'; did you mean size?"),
        ("colour=red", "choose one of name, size, seed, arch, run_id, state"),
        ("size<2", "not both numbers"),
    ],
)
def test_mistakes(only: str, message: str) -> None:
    with pytest.raises(SelectionError) as error:
        matches(only, RUN)
    assert message in str(error.value)


def test_nothing_left_is_said() -> None:
    assert chosen([RUN], "seed=2", dict) == [RUN]
    with pytest.raises(SelectionError, match="leaves none of 1 runs"):
        chosen([RUN], "seed=3", dict)
