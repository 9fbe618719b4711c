"""How many blocks of a kernel a device holds at once, from what the compiler made of it.

    resident = the least of what registers, shared memory, warps and block slots of a multiprocessor
               allow
    waves    = blocks of the launch / (multiprocessors x resident)

A launch of 1.1 waves takes as long as one of 2: its last blocks run on an empty device. Limits are
those of the makers' documents (CUDA C++ Programming Guide, technical specifications by compute
capability; AMD Instinct MI300 ISA guide), multiprocessors those of A100, H200, B200 and MI300X.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Multiprocessor:
    """What the blocks on one multiprocessor share."""

    count: int
    """Multiprocessors of the device."""
    registers: int
    """Vector registers of all lanes."""
    shared: int
    """Bytes of shared memory."""
    warps: int
    """Warps at once."""
    blocks: int
    """Blocks at once."""
    lanes: int = 32
    """Of a warp."""
    reserved: int = 1024
    """Bytes of shared memory that each block takes besides its own."""
    parts: int = 4
    """Into which registers and warps are divided."""


DEVICES = {
    "sm_80": Multiprocessor(count=108, registers=65_536, shared=167_936, warps=64, blocks=32),
    "sm_90": Multiprocessor(count=132, registers=65_536, shared=233_472, warps=64, blocks=32),
    "sm_100": Multiprocessor(count=148, registers=65_536, shared=233_472, warps=64, blocks=32),
    "gfx942": Multiprocessor(
        count=304, registers=131_072, shared=65_536, warps=32, blocks=32, lanes=64, reserved=0
    ),
}


def resident(arch: str, registers: int, shared: int, warps: int) -> int:
    """Blocks that a multiprocessor holds at once; 0 if not even one.

    Args:
        arch: a key of `DEVICES`.
        registers: of a thread.
        shared: bytes of a block.
        warps: of a block.
    """
    device = DEVICES[arch]
    each = -(-max(registers, 1) // 8) * 8 * device.lanes  # handed out by eights
    # Every part holds whole warps, and a block spreads over the parts.
    by_registers = device.parts * (device.registers // device.parts // each) // warps
    by_shared = device.shared // max(shared + device.reserved, 1)
    return min(by_registers, by_shared, device.warps // warps, device.blocks)


def waves(arch: str, blocks: int, resident: int) -> float:
    """Of a launch: how often its blocks fill the device."""
    return blocks / (DEVICES[arch].count * resident) if resident else float("inf")
