"""Attention transfer and low-rank training of one model, resumable, on one CPU thread.

    STEM-TOKENS.pt      what has been learned, the optimizer's state, how many blocks were seen
    STEM-TOKENS.jsonl   a line a step: tokens, loss, seconds up to it, load of the machine

Rates are constant, so that a longer training goes on from a shorter one and ends where it would
have ended alone. Recipe: `scaling.linearization.recipes`. A step is one block.

Low-rank training takes the first half of each block, which keeps activations small, and predicts
among the ids that occur in its text (`vocabulary`): over all 262144 the head costs more than the
model. Scores are of the whole vocabulary.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.gemma.text import Text
from models.cross_entropy import IGNORE_INDEX, linear_cross_entropy
from models.language_model import LanguageModel
from models.linearize.layer_costs import divergence, layer_costs, with_softmax_layers
from models.linearize.lora import add_lora
from models.linearize.transfer import freeze_for_transfer, layer_losses
from scaling.config.run import RunConfig
from scaling.system.files import write_json

VOCABULARY_BLOCKS = 64
"""Blocks whose ids low-rank training predicts among; others are passed over."""
DIVERGENCE = 512
"""Tokens on which layers are judged."""


def transfer(
    model: LanguageModel, config: RunConfig, text: Text, folder: Path, stem: str, tokens: int
) -> None:
    """Attention transfer of a student, in place, until so many tokens.

    Args:
        model: with fresh feature maps.
        config: recipe.
        text: what it learns from.
        folder, stem: where it is kept, `STEM-TOKENS.pt`; the longest that is there, and not longer,
            is gone on from.
        tokens: rounded up to whole blocks.
    """
    learned = freeze_for_transfer(model)

    def step(block: Tensor) -> float:
        total = 0.0
        for _, loss in layer_losses(model, block[None, :-1], at=config.linearize.transfer_error):
            loss.backward()
            total += loss.item()
        return total

    rate = config.linearize.transfer_lr
    _train(model, learned, rate, config, step, text, folder, stem, tokens, text.length)


def low_rank(
    model: LanguageModel,
    config: RunConfig,
    text: Text,
    folder: Path,
    stem: str,
    tokens: int,
    ids: Tensor,
) -> None:
    """Low-rank training of a model, in place; as `transfer`.

    Args:
        ids: `vocabulary`.
    """
    torch.manual_seed(config.seed)
    learned = add_lora(model, config.linearize.lora_rank, config.linearize.lora_alpha)
    head = model.head_weight.detach()[ids]
    place = torch.full((model.config.vocab_size,), IGNORE_INDEX)
    place[ids] = torch.arange(len(ids))
    half = text.length // 2

    def step(block: Tensor) -> float:
        hidden, _ = model.hidden(block[None, :half])
        targets = place[block[1 : half + 1]]
        losses = linear_cross_entropy(hidden[0], head, targets, model.config.logit_cap)
        loss = losses.sum() / (targets != IGNORE_INDEX).sum()
        loss.backward()
        return loss.item()

    _train(model, learned, config.optim.lr, config, step, text, folder, stem, tokens, half)


def vocabulary(text: Text, words: int) -> Tensor:
    """The ids that occur in the first training blocks, in order."""
    there = torch.zeros(words, dtype=torch.bool)
    for block in islice(text.training(), VOCABULARY_BLOCKS):
        there[block] = True
    return there.nonzero()[:, 0]


def divergences(student: LanguageModel, text: Text, path: Path) -> dict[int, float]:
    """Layer -> KL of the next tokens with that layer alone linear, in nats; measured once, on the
    beginning of the first training block."""
    if not path.is_file():
        tokens = next(text.training())[None, :DIVERGENCE]
        teacher = with_softmax_layers(student, tuple(range(student.config.layers)))
        found = layer_costs(student.eval(), lambda m: divergence(m, teacher, tokens).item())
        write_json(path, {str(layer): cost for layer, cost in found.items()})
    return {int(n): cost for n, cost in json.loads(path.read_text(encoding="utf-8")).items()}


def _train(
    model: LanguageModel,
    learned: list[nn.Parameter],
    rate: float,
    config: RunConfig,
    step: Callable[[Tensor], float],
    text: Text,
    folder: Path,
    stem: str,
    tokens: int,
    each: int,
) -> None:
    """Steps until so many tokens, `each` a step; state is kept after every one."""
    optim = torch.optim.AdamW(learned, lr=rate, betas=config.optim.betas, weight_decay=0.0)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    done, before = 0, 0.0
    ours = (p for p in folder.glob(f"{stem}-*.pt") if p.stem.removeprefix(f"{stem}-").isdigit())
    kept = [torch.load(path) for path in ours]
    fitting = [stored for stored in kept if (stored["blocks"] - 1) * each < tokens]
    if fitting:
        stored = max(fitting, key=lambda stored: stored["blocks"])
        model.load_state_dict(stored["learned"], strict=False)
        optim.load_state_dict(stored["optimizer"])
        done, before = stored["blocks"], stored["seconds"]
    path = folder / f"{stem}-{tokens}.pt"
    model.train()
    blocks: Iterator[Tensor] = islice(text.training(), done, None)
    while done * each < tokens:
        start, cpu = time.perf_counter(), time.process_time()
        optim.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = step(next(blocks))
        optim.step()
        done, before = done + 1, before + time.perf_counter() - start
        state = model.state_dict()
        kept = {"learned": {n: state[n] for n in names}, "optimizer": optim.state_dict(),
                "blocks": done, "seconds": before}  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(kept, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        _note(path.with_suffix(".jsonl"), {
            "tokens": done * each, "loss": round(loss, 5),
            "seconds": round(before, 3),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "load": round(os.getloadavg()[0], 1),
        })  # fmt: skip


def _note(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
