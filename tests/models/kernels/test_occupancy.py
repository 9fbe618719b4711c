"""Blocks that a multiprocessor holds, by hand, and what cuobjdump's listing is counted to hold."""

from __future__ import annotations

import re

import pytest

from models.kernels.tools.occupancy import resident, waves


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "blocks"),
    [
        # 8 warps of 255 registers: 8,160 a warp, handed out as 8,192; 65,536 hold eight of them.
        ("sm_90", 255, 0, 8, 1),
        ("sm_90", 128, 0, 8, 2),
        ("sm_90", 129, 0, 8, 1),  # 136 a thread: three warps a part, twelve in all
        ("sm_90", 64, 100 * 1024, 4, 2),  # 2 x 101 kB of 228
        ("sm_90", 64, 227 * 1024, 4, 1),
        ("sm_90", 64, 228 * 1024, 4, 0),
        ("sm_80", 32, 0, 4, 16),  # 64 warps
        ("sm_80", 16, 0, 1, 32),  # 32 blocks
        ("gfx942", 128, 0, 4, 4),  # four wavefronts of 128 registers a SIMD
        ("gfx942", 512, 64 * 1024, 4, 1),
    ],
)
def test_blocks_of_a_multiprocessor(
    arch: str, registers: int, shared: int, warps: int, blocks: int
) -> None:
    assert resident(arch, registers, shared, warps) == blocks


def test_waves() -> None:
    assert waves("sm_90", 192, 1) == pytest.approx(1.4545, abs=1e-4)
    assert waves("sm_90", 264, 2) == 1
    assert waves("sm_90", 10, 0) == float("inf")


def test_instructions_of_a_listing() -> None:
    """Predicates are no instructions, hexadecimal encodings neither."""
    from models.kernels.tools.offline import SASS

    listing = """
        code for sm_90
                Function : output
        .headerflags    @"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                   /* 0x00000a00ff017b82 */
                                                                            /* 0x000fe40000000800 */
        /*0010*/              @!P0 BRA 0x230 ;                              /* 0x0000000400288947 */
        /*0020*/              @UP1 UIADD3 UR4, UR4, 0x1, URZ ;              /* 0x0000000104041890 */
        /*0030*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;            /* 0x0000000000007b1d */
        /*12a0*/                   NOP ;                                    /* 0x0000000000007918 */
"""
    names = re.findall(SASS, listing, re.M)
    assert names == ["LDC", "BRA", "UIADD3", "BAR.SYNC.DEFER_BLOCKING", "NOP"]
