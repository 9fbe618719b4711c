"""LoLCATs for models that no device holds: attention transfer in groups of layers, LoRA with FSDP.

Question: what do the two stages of linearizing Llama 3.1 70B and 405B take, the first in the groups
of the paper (arXiv 2410.10254: 5 and 9 layers), on which devices?
Command: linscale plan experiments/lolcats_large.py --device h200
Expected: the hidden states fill terabytes of disk, a group fits on one device, and the work of
stage 1 is some days of one device, shared among the groups; stage 2 takes one node for 70B and
several for 405B.

The toy variant does it all with a small teacher: a run of the quickstart, exported.

    linscale export runs/quickstart/RUN -o teachers/toy       # RUN: a run of arch llama
    linscale blockwise experiments/lolcats_large.py --toy     # stage 1, and one model of its groups
    linscale run experiments/lolcats_large.py --toy           # stage 2, from that model

Published, stage 1: 20M tokens of yahma/alpaca-cleaned, packed to 1024, two epochs. Packed examples
see each other, as in the authors' code. Stage 2 is not done by groups: the authors put them
together and train LoRA end to end with FSDP and activation checkpointing, two epochs at 1e-4,
gradients clipped at 1 (branch lolcats-scaled of their repository, configs/experiment/llama3_1_70b
and _405b): 70B on one node of eight with rank 8, alpha 16 and 64 sequences a step; 405B on three
nodes with rank 4, alpha 8, dropout 0.05 and 48 sequences a step. Here frozen weights stay float32
masters, shared out, so that 405B asks for more devices; its step has 64 sequences, which they can
share, and no dropout.
"""

from __future__ import annotations

from dataclasses import replace

from models.architectures.llama import LlamaOptions, RopeScaling
from models.architectures.lolcats import LoLCATs
from models.config import ModelConfig
from models.linearize.options import linearized_config
from scaling.config.parts import DataConfig
from scaling.config.run import LinearizeConfig, ParallelConfig, RunConfig
from scaling.linearization.blockwise.transfer_config import Blockwise
from scaling.linearization.recipes import lolcats_run

TOY_TEACHER = "teachers/toy"
TOKENS = 20_000_000
"""Of a stage: two epochs of Alpaca."""

_ROPE = RopeScaling(kind="llama3", factor=8.0, original_length=8192)
LLAMA_70B = ModelConfig(
    arch="llama",
    vocab_size=128_256,
    dim=8192,
    layers=80,
    heads=64,
    glu_dim=28_672,
    tie_embeddings=False,
    norm_eps=1e-5,
    options=LlamaOptions(kv_heads=8, rope_base=500_000.0, rope_scaling=_ROPE),
)
LLAMA_405B = LLAMA_70B.replace(dim=16_384, layers=126, heads=128, glu_dim=53_248)


def blockwise(toy: bool = False) -> list[Blockwise]:
    """Llama 3.1 70B and 405B at the published settings."""
    if toy:
        return [_toy()]
    return [
        Blockwise(
            name=f"lolcats-{size}",
            teacher=f"teachers/llama-3.1-{size}",
            model=model,
            data=_alpaca(size, 8),
            tokens=TOKENS,
            group_layers=layers,
        )
        for size, model, layers in (("70B", LLAMA_70B, 5), ("405B", LLAMA_405B, 9))
    ]


def runs(toy: bool = False) -> list[RunConfig]:
    """The second stage: LoRA on the models that `blockwise` leaves."""
    if toy:
        one = _toy()
        toy_run = _second("toy", one.student, one.data, 8, tokens=102_400)
        return [replace(toy_run, optim=replace(toy_run.optim, lr=1e-2),
                        parallel=ParallelConfig(accelerator="cpu"))]  # fmt: skip
    sizes = (("70B", LLAMA_70B, 8, 1), ("405B", LLAMA_405B, 4, 8))
    return [
        replace(
            _second(size, linearized_config(model, LoLCATs()), _alpaca(size, 64), rank),
            parallel=ParallelConfig(
                strategy="fsdp",
                devices=8,
                nodes=nodes,
                precision="bf16",
                micro_batch_sequences=1,
                activation_checkpointing="block",
            ),
        )
        for size, model, rank, nodes in sizes
    ]


def _second(
    size: str, student: ModelConfig, data: DataConfig, rank: int, tokens: int = TOKENS
) -> RunConfig:
    """LoLCATs' recipe without its first stage; alpha is twice the rank, as published."""
    teacher = f"blockwise/lolcats-{size}/model"
    run = lolcats_run(f"lolcats-{size}-lora", teacher, student, data, size=size, tokens=tokens)
    stages = LinearizeConfig(teacher=teacher, lora_rank=rank, lora_alpha=2.0 * rank)
    return replace(run, linearize=stages, optim=replace(run.optim, clip_norm=1.0))


def _alpaca(size: str, sequences: int) -> DataConfig:
    return DataConfig(
        corpus="instructions:hf:yahma/alpaca-cleaned",
        tokenizer=f"file:teachers/llama-3.1-{size}/tokenizer.json",
        sequence_length=1024,
        batch_sequences=sequences,
    )


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
