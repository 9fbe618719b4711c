"""Training speed of our LLaMA against transformers' LlamaForCausalLM on the CPU.

    python experiments/benchmarks/llama_vs_transformers.py [--write]

Question: does our baseline train at least as many tokens a second as the library's model of the
same configuration, weights' shape and dtype? A slow baseline would flatter every other
architecture.
Method: both models take the same batches; a block is forward, loss, backward and fused AdamW for a
few steps; blocks alternate and the ratio of a pair is one sample, so that other work on the machine
meets both sides. The result is the median over pairs. Two threads by default; with one, seconds are
those of the processor, which a busy machine disturbs least and which equal the clock's on an idle
one. Both sides use scaled_dot_product_attention, tied embeddings and their own loss.
Expected: at least 1.0 in every row.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from models.config import ModelConfig, toy_config
from models.language_model import build

RESULTS = Path(__file__).parent / "results" / "llama_vs_transformers.csv"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the result."""

    model: ModelConfig
    """Configuration of both models."""
    batch: int
    """Sequences a step."""
    length: int
    """Tokens a sequence."""
    dtype: torch.dtype
    """float32, or bfloat16 through autocast with float32 weights."""


def cases() -> list[Case]:
    """The largest quickstart rung, and a wider model with a large vocabulary in two precisions."""
    small = toy_config("llama", 128, vocab_size=257, layers=4)
    wide = toy_config("llama", 384, vocab_size=8192, layers=4, head_dim=64)
    return [
        Case(model=small, batch=16, length=256, dtype=torch.float32),
        Case(model=wide, batch=1, length=512, dtype=torch.float32),
        Case(model=wide, batch=1, length=512, dtype=torch.bfloat16),
    ]


def theirs(config: ModelConfig) -> LlamaForCausalLM:
    """The library's model of our configuration."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.glu_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            use_cache=False,
        )
    )
    model.set_attn_implementation("sdpa")
    return model.train()


def block(
    model: nn.Module, loss: Callable[[Tensor], Tensor], case: Case, steps: int, seed: int
) -> float:
    """Seconds of `steps` optimizer steps: of the clock, or of the processor on one thread."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shape = (steps, case.batch, case.length + 1)
    tokens = torch.randint(0, case.model.vocab_size, shape, generator=generator)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for batch in tokens:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.dtype == torch.bfloat16):
            value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return clock() - start


def measure(case: Case, pairs: int, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of alternating blocks: ours, theirs."""
    torch.manual_seed(0)
    our_model, their_model = build(case.model), theirs(case.model)
    counts = [sum(p.numel() for p in model.parameters()) for model in (our_model, their_model)]
    assert counts[0] == counts[1], f"the models differ: {counts[0]} and {counts[1]} parameters"

    def our_loss(batch: Tensor) -> Tensor:
        return our_model.loss(batch[:, :-1], batch[:, 1:]).mean()

    def their_loss(batch: Tensor) -> Tensor:
        # The labels are shifted already, as in every training loop that prepares its targets.
        labels = batch[:, 1:].contiguous()
        return their_model(batch[:, :-1], shift_labels=labels, labels=labels).loss

    ours: list[float] = []
    others: list[float] = []
    for pair in range(pairs + 1):
        first = block(our_model, our_loss, case, steps, pair)
        second = block(their_model, their_loss, case, steps, pair)
        if pair:  # the first pair warms up
            ours.append(first)
            others.append(second)
    return ours, others


def main() -> None:
    """Print the ratios; `--write` keeps them as the dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for case in cases():
        ours, others = measure(case, arguments.pairs, arguments.steps)
        tokens = arguments.steps * case.batch * case.length
        ratios = sorted(b / a for a, b in zip(ours, others, strict=True))
        ratio = statistics.median(ratios)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        speeds = [tokens / statistics.median(times) for times in (ours, others)]
        precision = str(case.dtype).removeprefix("torch.")
        print(
            f"dim {case.model.dim}, {case.model.layers} layers, T={case.length}, {precision}: "
            f"{speeds[0]:.0f} tokens/s ours, {speeds[1]:.0f} transformers, "
            f"ratio {ratio:.3f} (quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs)",
            flush=True,
        )
        rows.append(
            {
                "date": date.today().isoformat(),
                "dim": case.model.dim,
                "layers": case.model.layers,
                "vocab_size": case.model.vocab_size,
                "batch": case.batch,
                "length": case.length,
                "precision": precision,
                "tokens_per_second": round(speeds[0]),
                "transformers_tokens_per_second": round(speeds[1]),
                "ratio": round(ratio, 4),
                "ratio_q1": round(low, 4),
                "ratio_q3": round(high, 4),
                "pairs": len(ratios),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "machine": platform.processor() or platform.machine(),
            }
        )
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
