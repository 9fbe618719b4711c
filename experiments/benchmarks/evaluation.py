"""Multiple choice: our adapter of lm-evaluation-harness against the harness's own `hf` model.

    python -m experiments.benchmarks.evaluation [--data FOLDER] [--kinds copa,piqa] [--write]

Question: how much does it save to read once what texts have in common?
Method: one random LLaMA with byte tokens and one with 8192 BPE tokens, each exported to
transformers and loaded by both sides; the same requests, batch size, threads and dtype. The sides
take turns on each kind of question. CPU time of the process counts, which other work on the machine
disturbs less than the wall clock; the median over rounds of the ratio of neighbours is what is
reported. Passages are of the King James Bible with four choices of a few words; the other kinds are
the first questions of the local files of --data, such as arc_easy.jsonl, as the harness puts them.
With --write each number takes its row's place in the table as soon as it is there, so that an
interrupted run loses nothing, and --kinds measures the rest.
Expected: at least twice as fast in the geometric mean over the kinds, and never slower;
log-likelihoods equal to 1e-3.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance

from experiments.benchmarks.tables import DOCS, put_table
from models.config import toy_config
from models.language_model import build
from scaling.config.run import DataConfig
from scaling.data.corpora.registry import open_corpus
from scaling.data.tokenizers import ByteTokenizer, Tokenizer, train_bpe
from scaling.evaluation import harness, local_tasks
from scaling.evaluation.harness_model import HarnessModel
from scaling.record.environment import cpu_name
from scaling.record.export import export_pretrained
from scaling.record.pretrained import Pretrained, load_pretrained

RESULTS = Path(__file__).parents[1] / "results" / "evaluation.csv"
DIM, LAYERS, HEAD_DIM, CONTEXT, BATCH, VOCAB = 256, 6, 64, 2048, 16, 8192
LONG, CHOICES = 768, 4
"""Characters of a long context, and choices of its question."""


def long_requests(count: int) -> list[tuple[str, str]]:
    """Passages with four continuations each: pairs of context and continuation."""
    text = " ".join("".join(open_corpus(DataConfig(corpus="kjv")).read(0)).split())
    pairs = []
    for number in range(count):
        start = number * 4 * LONG
        context = text[start : start + LONG].strip()
        for choice in range(CHOICES):
            other = text[start + (choice + 1) * LONG :][:24].strip()
            pairs.append((context, f" {other}"))
    return pairs


def task_requests(path: Path, count: int) -> list[tuple[str, str]]:
    """What the harness asks for the first questions of a local file; [] for other than choices."""
    harness.require_harness()
    task = local_tasks.from_lines(path.stem, path)
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    task.build_all_requests(limit=count)
    asked: list[Any] = [instance.args for instance in task.instances]
    return asked


def instances(pairs: list[tuple[str, str]]) -> list[Instance]:
    """The harness's form of the pairs."""
    return [
        Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number)
        for number, pair in enumerate(pairs)
    ]


def clocked(model: Any, pairs: list[tuple[str, str]]) -> tuple[float, list[float]]:
    """CPU seconds of scoring, and the log-likelihoods."""
    requests = instances(pairs)
    start = time.process_time()
    scores = model.loglikelihood(requests, disable_tqdm=True)
    return time.process_time() - start, [float(score) for score, _ in scores]


def compare(ours: Any, theirs: Any, pairs: list[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Times, their ratio and the largest difference of a score."""
    mine, other, ratios, difference = [], [], [], 0.0
    for number in range(rounds + 1):
        here, scores = clocked(ours, pairs)
        there, reference = clocked(theirs, pairs)
        difference = max(abs(a - b) for a, b in zip(scores, reference, strict=True))
        if number:  # the first round warms up
            mine.append(here)
            other.append(there)
            ratios.append(there / here)
    return {
        "requests": len(pairs),
        "characters_of_context": round(statistics.mean(len(context) for context, _ in pairs)),
        "ours_seconds": round(statistics.median(mine), 3),
        "hf_seconds": round(statistics.median(other), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_low": round(min(ratios), 2),
        "ratio_high": round(max(ratios), 2),
        "largest_difference_nats": f"{difference:.1e}",
    }


def models(folder: Path, tokenizer: Tokenizer) -> tuple[Any, Any]:
    """Our adapter and the harness's, on the same weights."""
    from lm_eval.models.huggingface import HFLM

    torch.manual_seed(0)
    config = toy_config(
        "llama", DIM, vocab_size=tokenizer.vocab_size, layers=LAYERS, head_dim=HEAD_DIM
    )
    made = Pretrained(
        name="random",
        model=build(config).eval(),
        tokenizer=tokenizer,
        context=CONTEXT,
        eos_ids=(tokenizer.eos_id,),
        run=None,
    )
    export_pretrained(made, folder / "hf", "transformers")
    ours = HarnessModel(load_pretrained(folder / "hf"), max_length=CONTEXT, batch_size=BATCH)
    options: dict[str, Any] = {
        "pretrained": str(folder / "hf"),
        "device": "cpu",
        "dtype": "float32",
        "batch_size": BATCH,
        "max_length": CONTEXT,
    }
    theirs = HFLM(**options)
    return ours, theirs


def main() -> None:
    """Print a line for each kind of question; `--write` keeps them as the dated result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--data", type=Path, help="folder with arc_easy.jsonl and others")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--kinds", default="", help="some of them, with commas (default: all)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    kinds = {"passages": long_requests(arguments.questions)}
    if arguments.data is not None:
        for path in sorted(arguments.data.glob("*.jsonl")):
            kinds[path.stem] = task_requests(path, arguments.questions)
    chosen = arguments.kinds.split(",") if arguments.kinds else list(kinds)
    if unknown := sorted(set(chosen) - set(kinds)):
        parser.error(f"--kinds {unknown[0]}: choose from {', '.join(kinds)}; --data adds kinds")
    bible = open_corpus(DataConfig(corpus="kjv")).read(0)
    ratios: list[float] = []
    for tokenizer in (ByteTokenizer(), train_bpe(f"bpe:{VOCAB}", bible)):
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = models(Path(folder), tokenizer)
            for name in chosen:
                if not kinds[name]:
                    continue
                found = compare(ours, theirs, kinds[name], arguments.rounds)
                ratios.append(found["ratio"])
                print(
                    f"{tokenizer.name:8} {name:14} {found['requests']:4} requests, "
                    f"{found['characters_of_context']:4} characters of context: ours "
                    f"{found['ours_seconds']} s, hf {found['hf_seconds']} s, {found['ratio']} x "
                    f"({found['ratio_low']} to {found['ratio_high']}), difference "
                    f"{found['largest_difference_nats']}",
                    flush=True,
                )
                if arguments.write:
                    row = {"date": date.today().isoformat(), "tokenizer": tokenizer.name}
                    keep(row | {"questions": name, **found})
    print(f"geometric mean {statistics.geometric_mean(ratios):.2f} x, least {min(ratios)} x")


def keep(row: dict[str, Any]) -> None:
    """Put a number in the place of that of the same tokens and questions; write the table."""
    row |= {"batch": BATCH, "dim": DIM, "layers": LAYERS, "torch": torch.__version__,
            "machine": cpu_name()}  # fmt: skip
    with RESULTS.open(newline="") as file:
        rows: dict[tuple[str, str], dict[str, Any]] = {
            (old["tokenizer"], old["questions"]): old for old in csv.DictReader(file)
        }
    rows[row["tokenizer"], row["questions"]] = row
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows(rows.values())
    columns = {"questions": "questions", "tokenizer": "tokens", "requests": "requests",
               "characters_of_context": "characters of context", "ratio": "times as fast",
               "largest_difference_nats": "largest difference (nats)"}  # fmt: skip
    shown = [{title: old[name] for name, title in columns.items()} for old in rows.values()]
    mean = statistics.geometric_mean(float(old["ratio"]) for old in rows.values())
    dates = sorted({old["date"] for old in rows.values()})
    title = (
        f"Batch {BATCH}, width {DIM}, {LAYERS} layers, one thread of an {cpu_name()}, PyTorch "
        f"{torch.__version__}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; geometric "
        f"mean {mean:.2f}:"
    )
    put_table(DOCS / "evaluation.md", "speed", title, shown)


if __name__ == "__main__":
    main()
