"""Sizes of the pieces that are worked on at once, for the code and for memory plans. No PyTorch."""

from __future__ import annotations

PLAIN_LOGITS = 2**24
"""Logits up to which the plain loss runs, all of them at once: 64 MiB in float32."""
LARGEST_LOGITS = 2**29
"""Logits of the largest chunk on a CUDA device: 1 GiB in bfloat16."""
LOGITS_SHARE = 128
"""A chunk of logits takes at most one part in so many of a CUDA device's memory."""
STATE_INTERVAL = {"cpu": 64, "cuda": 128}
"""Tokens between the states that linear attention keeps for its backward pass, at the densest."""


def chunk_logits(device_memory: int | None = None, itemsize: int = 2) -> int:
    """Logits that the loss forms at once, a power of two.

    From the whole of a device's memory and not from what is free at the moment: the weight's
    gradient is a sum over chunks, and a run that goes on elsewhere must round as before.

    Args:
        device_memory: bytes of the CUDA device; None on a CPU, where chunks should stay in cache.
        itemsize: bytes of a logit on the device.
    """
    if device_memory is None:
        return PLAIN_LOGITS
    most = device_memory // (LOGITS_SHARE * itemsize)
    return min(LARGEST_LOGITS, max(PLAIN_LOGITS, 1 << (max(most, 1).bit_length() - 1)))
