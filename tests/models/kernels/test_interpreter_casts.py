"""The interpreter's casts, as the kernel tests run it: those of PyTorch, which are a GPU's."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from models.kernels.triton.common import interpreted

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")


@triton.jit
def cast(x, narrow, wide, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    y = tl.load(x + at).to(tl.bfloat16)
    tl.store(narrow + at, y)
    tl.store(wide + at, y.to(tl.float32))


def test_casts_to_bfloat16_round_to_nearest_even() -> None:
    special = [0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, torch.inf, -torch.inf,
               torch.nan, 3.4e38, 1e-40, 2**-126, -1.999999]  # fmt: skip
    x = torch.cat([torch.tensor(special), torch.randn(4096 - len(special)) * 10])
    narrow, wide = torch.empty(4096, dtype=torch.bfloat16), torch.empty(4096)
    cast[(1,)](x, narrow, wide, SIZE=4096)  # pyright: ignore[reportArgumentType]
    expected = x.bfloat16()
    torch.testing.assert_close(narrow, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(wide, expected.float(), rtol=0, atol=0, equal_nan=True)
