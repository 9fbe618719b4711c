"""The paper's Table 7 from the closed forms (arXiv 2406.16690, appendix)."""

from __future__ import annotations

import pytest

from models.accounting import non_embedding_parameters, paper_pflops_per_step
from models.config import PAPER_SIZES, Arch, paper_config

# Parameters in millions and PFLOPs a step, sizes 70M to 7B, as printed.
PARAMETERS: dict[Arch, list[str]] = {
    "llama": ["20.5", "85.0", "334.1", "906.2", "2775.8", "6476.5"],
    "tnl": ["21.2", "87.3", "327.7", "918.6", "2798.4", "6509.6"],
    "hgrn2": ["20.5", "84.9", "334.0", "906.0", "2775.5", "6476.1"],
    "cosformer2": ["21.3", "87.5", "328.0", "919.1", "2799.0", "6511.0"],
}
PFLOPS: dict[Arch, list[str]] = {
    "llama": ["1.6", "5.6", "18.0", "40.4", "99.6", "202.7"],
    "tnl": ["0.5", "2.2", "7.9", "22.3", "66.6", "154.4"],
    "hgrn2": ["0.5", "2.1", "8.0", "22.0", "66.0", "153.6"],
    "cosformer2": ["0.5", "2.3", "8.1", "22.7", "67.4", "155.6"],
}
CELLS = [(arch, i, size) for arch in PARAMETERS for i, size in enumerate(PAPER_SIZES)]


@pytest.mark.parametrize(("arch", "column", "size"), CELLS)
def test_flops_per_step(arch: Arch, column: int, size: str) -> None:
    assert f"{paper_pflops_per_step(paper_config(arch, size)):.1f}" == PFLOPS[arch][column]


@pytest.mark.parametrize(("arch", "column", "size"), CELLS)
def test_parameters(arch: Arch, column: int, size: str) -> None:
    millions = non_embedding_parameters(paper_config(arch, size), "paper") / 1e6
    printed = PARAMETERS[arch][column]
    if (arch, size) == ("cosformer2", "3B"):
        # The one cell that no common closed form meets; off by 0.01 %.
        assert f"{millions:.1f}" == "2799.3"
        assert millions == pytest.approx(float(printed), rel=1.5e-4)
    else:
        assert f"{millions:.1f}" == printed
