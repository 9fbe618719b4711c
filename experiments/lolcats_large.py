"""LoLCATs for models that no device holds: attention transfer in groups of layers.

Question: what does the first stage of linearizing Llama 3.1 70B and 405B take, in the groups of the
paper (arXiv 2410.10254: 5 and 9 layers), on which devices?
Command: linscale plan experiments/lolcats_large.py --device h200
Expected: the hidden states fill terabytes of disk, a group fits on one device, and the work is some
days of one device, shared among the groups.

The toy variant does it all with a small teacher: a run of the quickstart, exported.

    linscale export runs/quickstart/RUN -o teachers/toy       # RUN: a run of arch llama
    linscale blockwise experiments/lolcats_large.py --toy

Published: 20M tokens of yahma/alpaca-cleaned, packed to 1024, two epochs. Packed examples see each
other, as in the authors' code.
"""

from __future__ import annotations

from models.config import LoLCATs, ModelConfig, RopeScaling
from scaling.blockwise.config import Blockwise
from scaling.parts import DataConfig

TOY_TEACHER = "teachers/toy"

_ROPE = RopeScaling(kind="llama3", factor=8.0, original_length=8192)
LLAMA_70B = ModelConfig(
    arch="llama",
    vocab_size=128_256,
    dim=8192,
    layers=80,
    heads=64,
    kv_heads=8,
    glu_dim=28_672,
    tie_embeddings=False,
    norm_eps=1e-5,
    rope_base=500_000.0,
    rope_scaling=_ROPE,
)
LLAMA_405B = LLAMA_70B.replace(dim=16_384, layers=126, heads=128, glu_dim=53_248)


def blockwise(toy: bool = False) -> list[Blockwise]:
    """Llama 3.1 70B and 405B at the published settings."""
    if toy:
        return [_toy()]
    sizes = {"70B": (LLAMA_70B, 5), "405B": (LLAMA_405B, 9)}
    return [
        Blockwise(
            name=f"lolcats-{size}",
            teacher=f"teachers/llama-3.1-{size}",
            model=model,
            data=DataConfig(
                corpus="instructions:hf:yahma/alpaca-cleaned",
                tokenizer=f"file:teachers/llama-3.1-{size}/tokenizer.json",
                sequence_length=1024,
                batch_sequences=8,
            ),
            tokens=20_000_000,
            group_layers=layers,
        )
        for size, (model, layers) in sizes.items()
    ]


def _toy() -> Blockwise:
    from models.interop import read_source

    return Blockwise(
        name="lolcats-toy",
        teacher=TOY_TEACHER,
        model=read_source(TOY_TEACHER).config,
        lolcats=LoLCATs(window=16),
        data=DataConfig(
            tokenizer=f"file:{TOY_TEACHER}/tokenizer.json", sequence_length=256, batch_sequences=8
        ),
        tokens=102_400,
        group_layers=1,
        precision="fp32",
    )
