"""The delta rule's Triton kernels in the interpreter against the float64 recurrence.

Errors are RMS ratios |x - reference| / |reference|. float32: 1e-5. 16 bits: 2e-2, because operands
are bfloat16 and the interpreter truncates casts to it where a GPU rounds. No decay, however strong,
and no beta up to 2 loosens them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.kernels.delta.call import DeltaCall
from models.kernels.delta.reference import recurrent_delta
from models.kernels.triton import delta_launch
from models.kernels.triton.common import interpreted
from tests.support.delta_inputs import MODES, make
from tests.support.recurrences import Inputs, cotangents, error, exact

pytestmark = [
    pytest.mark.usefixtures("poison"),
    pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1"),
]

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-2}
NAMES = ("o", "final_state", "dq", "dk", "dv", "dbeta", "ddecay", "dinitial_state")


def run(inputs: Inputs) -> dict[str, Tensor]:
    """Outputs and all gradients by the kernels."""
    call = DeltaCall(**inputs)  # pyright: ignore[reportArgumentType]
    do, dstate = cotangents(inputs)
    o, final, kept = delta_launch.forward(call)
    found: Any = (o, final, *delta_launch.backward(call, kept, do, dstate))
    return {name: x for name, x in zip(NAMES, found, strict=True) if x is not None}


def check(inputs: Inputs) -> dict[str, Tensor]:
    """Right values, of their inputs' dtypes, none left unwritten."""
    expected = exact(inputs, recurrent_delta)
    found = run(inputs)
    assert found.keys() == expected.keys()
    q = inputs["q"]
    assert q is not None
    for name, x in found.items():
        of = {"o": "v"}.get(name, name.removeprefix("d"))
        given = inputs.get(of)
        assert x.dtype == (torch.float32 if given is None else given.dtype), name
        assert torch.isfinite(x).all(), name
    errors = {name: error(x, expected[name]) for name, x in found.items()}
    bad = {name: e for name, e in errors.items() if not e <= TOLERANCE[q.dtype]}
    assert not bad, f"{bad}, all {errors}"
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("mode", MODES)
def test_matches_the_recurrence(mode: str, dtype: torch.dtype) -> None:
    check(make(mode, length=135, batch=1, key_dim=16, value_dim=16, dtype=dtype))
