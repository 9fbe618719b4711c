"""What a block keeps for its backward pass, measured where its architecture does not say.

    kept = bytes alive after the block's forward pass less those before

on fake tensors: nothing is computed or allocated, so that blocks of any size can be asked, on any
machine. The numbers are those of the eager model.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from models.config import ModelConfig


def measured(model: ModelConfig, tokens: int, positions: int, mode: str, *, bf16: bool) -> float:
    """Bytes that one block keeps for its backward pass, on average over the layers.

    Args:
        model: configuration; a layer may differ from the next.
        tokens: of one micro-batch.
        positions: of a sequence.
        mode: `none` or `selective` (`models.activations`).
        bf16: autocast instead of float32.
    """
    small = replace(model, vocab_size=1, mup_base_dim=None)
    one, two = (_bytes(small, rows, positions, mode, bf16) for rows in (1, 2))
    # What all sequences of a micro-batch share, such as angles, is kept once.
    return one + (two - one) * (tokens / positions - 1)


@lru_cache(maxsize=64)
def _bytes(model: ModelConfig, rows: int, length: int, mode: str, bf16: bool) -> float:
    """Mean over the layers of what a block keeps of `rows` sequences."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from models.activations import checkpoint_blocks
    from models.language_model import LanguageModel
    from models.layers import make_span
    from scaling.system.live_memory import LiveBytes

    with FakeTensorMode():
        network = LanguageModel(model)
        checkpoint_blocks(network.blocks, "selective" if mode == "selective" else "none")
        tokens = torch.zeros(rows, length, dtype=torch.int64)
        span = make_span(tokens, None, None, False)
        with (
            LiveBytes(*network.parameters()) as live,
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            x, shared, _ = network.stem(network.embedding(tokens), span, None)
            before = live.live
            for layer, block in enumerate(network.blocks):
                x, _ = block(x, span, shared[layer], None)
            # Autocast keeps its copies of the weights until it ends; they are not the block's.
            copies = 2 * sum(p.numel() for p in network.blocks.parameters() if p.ndim > 1)
            return (live.live - before - copies * bf16) / model.layers
