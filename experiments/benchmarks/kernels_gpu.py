"""Linear-attention kernels on this GPU, against flash-linear-attention, SDPA and the memory bus.

Question: how close to the copy-bandwidth floor do forward and forward + backward run, and how do
they compare with the alternatives, at flash-linear-attention's six standard shapes and at the
shapes of the paper's six models at T = 8192? And what MFU do whole models reach from 70M to 1B,
beside models of flash-linear-attention and transformers?

    python -m experiments.benchmarks.kernels_gpu [--part standard,paper,decode,train]

Every measurement is appended to results/DATE-DEVICE.jsonl as soon as it is made, and the tables in
results/DATE-DEVICE.md are written anew from it: a run that is cut short keeps what it has, and the
parts may be run one at a time. Times are medians of `triton.testing.do_bench`; the floor moves
every input, output and gradient once at the copy bandwidth measured in the same run. Peers that
are not installed are left out. Needs a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.kernel_contenders import UNITS, Contender, Shape, contenders, inputs
from experiments.benchmarks.model_peers import Trainee, trainees
from scaling.system.devices import dense_peak, reproducible_cuda

RESULTS = Path(__file__).parent / "results"
DEVICE = "cuda"
Row = dict[str, Any]

STANDARD: tuple[Shape, ...] = (
    (1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128),
    (4, 4096, 64, 128), (8, 2048, 32, 256), (8, 1024, 8, 64),
)  # fmt: skip
"""flash-linear-attention's standard shapes: (B, T, H, D)."""
PAPER: tuple[Shape, ...] = tuple((1, 8192, heads, 128) for heads in (4, 6, 8, 12, 20, 32))
"""One layer of the paper's 70M to 7B models on one sequence of 8192 tokens."""
CONTEXTS = (1024, 4096, 16384, 65536)
DECODE = (32, 32, 128)
"""Batch, heads and head dimension of the decoding part."""
SIZES = ("70M", "160M", "410M", "1B")
TOKENS = 8192
"""Length of the one sequence of a whole-model step."""


_measured: set[tuple[Any, ...]] = set()
"""What --resume leaves out."""


def key_of(row: Row) -> tuple[Any, ...]:
    """What a row is about."""
    return tuple(row.get(k) for k in ("part", "shape", "mode", "name", "context", "size", "arch"))


def measured(row: Row) -> bool:
    """Whether an earlier run has this row."""
    return key_of(row) in _measured


def quantiles(function: Callable[[], object]) -> tuple[float, float, float]:
    """Milliseconds on the device: a tenth of the calls take less, the median, a tenth more."""
    from triton.testing import do_bench

    found: Any = do_bench(function, warmup=25, rep=100, quantiles=[0.1, 0.5, 0.9])
    return found[0], found[1], found[2]


def milliseconds(function: Callable[[], object]) -> float:
    """Median time on the device."""
    return quantiles(function)[1]


def copy_bandwidth() -> float:
    """Bytes a second of a large device copy, read and write counted."""
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source)) * 1e-3)


def matmul_rate() -> float:
    """FLOPs a second of an 8192^3 bfloat16 matrix product."""
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    return 2 * 8192**3 / (milliseconds(lambda: a @ a) * 1e-3)


def measure(contender: Contender, shape: Shape) -> dict[str, Any]:
    """Milliseconds, and their tenth and ninetieth percentile: forward, and forward + backward."""
    arguments, leaves = inputs(contender.mode, shape, DEVICE)
    do = torch.randn_like(contender.function(*arguments))
    with torch.no_grad():
        low, forward, high = quantiles(lambda: contender.function(*arguments))
    first, both, last = quantiles(
        lambda: torch.autograd.grad(contender.function(*arguments), leaves, do)
    )
    return {
        "forward": forward, "both": both, "forward_range": [low, high], "both_range": [first, last],
    }  # fmt: skip


def kernel_rows(part: str, shapes: tuple[Shape, ...]) -> Iterator[Row]:
    """Times, or why a contender failed on a shape."""
    for shape in shapes:
        for contender in contenders():
            batch, tokens, heads, dim = shape
            key = {
                "part": part, "shape": f"B{batch} T{tokens} H{heads} D{dim}",
                "mode": contender.mode, "name": contender.name,
            }  # fmt: skip
            if measured(key):
                continue
            try:
                times = measure(contender, shape)
            except Exception as problem:
                yield key | {"failed": f"{type(problem).__name__}: {str(problem)[:200]}"}
                continue
            units = UNITS.get(contender.mode, (0, 0))
            unit = batch * tokens * heads * dim * 2
            moved = [n * unit for n in units]
            yield key | times | {"floor_bytes": moved}


def decode_rows(contexts: tuple[int, ...]) -> Iterator[Row]:
    """Time of one token of one layer: ours once, softmax by context length."""
    from models.kernels import hgrn2_attention_step, linear_attention_step

    batch, heads, dim = DECODE
    q, k, v = torch.randn(3, batch, heads, dim, device=DEVICE, dtype=torch.bfloat16)
    state = torch.zeros(batch, heads, dim, dim, device=DEVICE)
    bound = torch.rand(heads, dim, device=DEVICE)
    decays = {
        "none": None,
        "head": torch.full((heads,), -0.1, device=DEVICE),
        "channel": torch.full((batch, heads, dim), -0.1, device=DEVICE),
    }
    moved = 2 * state.numel() * 4 + 4 * q.numel() * 2
    with torch.no_grad():
        for mode, decay in decays.items():
            time = milliseconds(lambda g=decay: linear_attention_step(q, k, v, state, g))
            yield {"part": "decode", "name": mode, "context": "any", "ms": time, "bytes": moved}
        time = milliseconds(lambda: hgrn2_attention_step(q, k, v, bound, state))
        yield {"part": "decode", "name": "hgrn2", "context": "any", "ms": time, "bytes": moved}
        for context in contexts:
            keys, values = torch.randn(
                2, batch, heads, context, dim, device=DEVICE, dtype=torch.bfloat16
            )
            time = milliseconds(
                lambda x=keys, y=values: torch.nn.functional.scaled_dot_product_attention(
                    q[:, :, None], x, y
                )
            )
            yield {"part": "decode", "name": "softmax SDPA", "context": str(context), "ms": time,
                   "bytes": 2 * keys.numel() * 2}  # fmt: skip


def train_rows(sizes: tuple[str, ...]) -> Iterator[Row]:
    """Tokens/s of training steps of whole models on one sequence, AdamW included.

    The exact FLOPs a token are those of our model of the row; a peer has none where it is another.
    """
    from models.accounting import summary
    from models.config import ARCHS, paper_config

    for size in sizes:
        for arch in ARCHS:
            config = paper_config(arch, size)
            flops = summary(config, TOKENS)["flops_per_token"]["exact"]["total"]
            for trainee in trainees(config, DEVICE):
                key = {"part": "train", "size": size, "arch": arch, "name": trainee.name}
                if measured(key):
                    continue
                same = trainee.name == "linscale" or arch == "llama"
                try:
                    rate = TOKENS / (milliseconds(training_step(trainee, config.vocab_size)) * 1e-3)
                    yield key | {
                        "tokens_per_second": rate,
                        "flops_per_token": flops if same else None,
                    }
                except Exception as problem:
                    yield key | {"failed": f"{type(problem).__name__}: {str(problem)[:200]}"}
                if DEVICE == "cuda":
                    torch.cuda.empty_cache()


def training_step(trainee: Trainee, vocab_size: int) -> Callable[[], None]:
    """A step on one sequence: forward, backward, AdamW."""
    model, loss = trainee.make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    data = torch.randint(vocab_size, (1, TOKENS + 1), device=DEVICE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(data).backward()
        optimizer.step()

    return step


PARTS: dict[str, Callable[[tuple[str, ...]], Iterator[Row]]] = {
    "standard": lambda _: kernel_rows("standard", STANDARD),
    "paper": lambda _: kernel_rows("paper", PAPER),
    "decode": lambda _: decode_rows(CONTEXTS),
    "train": train_rows,
}
"""The rows of each part, by the sizes of the models trained."""


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ratios(rows: list[Row]) -> Iterator[tuple[str, ...]]:
    """Geometric means over the standard shapes of a peer's time over ours."""
    rows = [row for row in rows if row["part"] == "standard" and "both" in row]
    ours = {(r["shape"], r["mode"]): r for r in rows if r["name"] == "linscale"}
    for name in sorted({row["name"] for row in rows if row["name"].startswith("fla")}):
        pairs = [
            (row, ours[row["shape"], row["mode"]])
            for row in rows
            if row["name"] == name and (row["shape"], row["mode"]) in ours
        ]
        if pairs:
            means = (
                statistics.geometric_mean(peer[time] / own[time] for peer, own in pairs)
                for time in ("forward", "both")
            )
            yield name, *(f"{mean:.2f}" for mean in means), str(len(pairs))


def render(records: list[Row]) -> str:
    """The report, from all records of a results file; a later record of the same thing wins."""
    [*_, run] = (r for r in records if r["part"] == "run")
    latest = {key_of(r): r for r in records if r["part"] != "run"}
    rows = list(latest.values())
    bandwidth, peak = run["bandwidth"], run["matmul"]
    kernels: list[tuple[str, ...]] = []
    for row in rows:
        if row["part"] not in ("standard", "paper"):
            continue
        label = (row["shape"], row["mode"], row["name"])
        if "failed" in row:
            kernels.append((*label, row["failed"].split("\n")[0][:80], "", "", "", ""))
            continue
        floors = [n / bandwidth * 1e3 for n in row["floor_bytes"]]
        shown = [f"{floor:.3f}" if floor else "" for floor in floors]
        share = f"{floors[1] / row['both']:.0%}" if floors[1] else ""
        kernels.append((*label, f"{row['forward']:.3f}", f"{row['both']:.3f}", *shown, share))
    decode = [
        (r["name"], r["context"], f"{r['ms'] * 1e3:.0f}", f"{r['bytes'] / bandwidth * 1e6:.0f}")
        for r in rows
        if r["part"] == "decode"
    ]
    train = [
        (r["size"], r["arch"], r["name"], r["failed"].split("\n")[0][:80], "", "")
        if "failed" in r
        else (
            r["size"], r["arch"], r["name"], f"{r['tokens_per_second']:,.0f}",
            *(
                f"{r['tokens_per_second'] * r['flops_per_token'] / most:.0%}"
                if most and r["flops_per_token"]
                else ""
                for most in (dense_peak(run["device"]), peak)
            ),
        )
        for r in rows
        if r["part"] == "train"
    ]  # fmt: skip
    batch, heads, dim = DECODE
    return "\n".join(
        (
            f"# Kernels on {run['device']}, {run['date']}\n",
            f"Command: `{run['command']}`. PyTorch {run['torch']}, Triton {run['triton']}, Python "
            f"{run['python']}. Copy bandwidth {bandwidth / 1e12:.2f} TB/s, 8192^3 bfloat16 matrix "
            f"product {peak / 1e12:.0f} TFLOP/s, both measured in the last run. Times are medians "
            "in milliseconds; the floor moves every input, output and gradient once.\n",
            "## Forward, and forward + backward, bfloat16\n",
            table(("shape", "form", "implementation", "f", "f + b", "floor f", "floor f + b",
                   "of floor"), kernels),
            "## Peer time / our time, geometric mean over the standard shapes\n",
            table(("peer", "f", "f + b", "shapes"), list(ratios(rows))),
            f"## Decoding one token of a layer, B {batch}, H {heads}, D {dim}, microseconds\n",
            table(("form", "context", "time", "floor"), decode),
            f"## Whole-model training step, one sequence of {TOKENS} tokens, bfloat16\n",
            table(("size", "architecture", "implementation", "tokens/s", "MFU, of the dense peak",
                   "of the measured product"), train),
        )
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 2 and says why where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.kernels_gpu", description=__doc__
    )
    parser.add_argument("--part", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help="Markdown file (default: results/DATE-DEVICE)")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.add_argument("--sizes", default=",".join(SIZES), help="of the models trained")
    options = parser.parse_args(argv)
    parts = options.part.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--part {unknown[0]}: choose from {', '.join(PARTS)}.")
    if not torch.cuda.is_available() and DEVICE == "cuda":
        print(
            "This benchmark times Triton kernels and needs a GPU; PyTorch sees none. For evidence "
            "without one, run: python -m models.kernels.tools.report",
            file=sys.stderr,
        )
        return 2
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE
    date = str(datetime.date.today())
    output: Path = options.output or RESULTS / f"{date}-{device.replace(' ', '-')}.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    record = output.with_suffix(".jsonl")
    records: list[Row] = []
    if record.exists():
        records = [json.loads(line) for line in record.read_text().splitlines()]

    _measured.clear()
    if options.resume:
        _measured.update(key_of(row) for row in records if "failed" not in row)

    def keep(row: Row) -> None:
        records.append(row)
        with record.open("a") as file:
            file.write(json.dumps(row) + "\n")
        output.write_text(render(records))

    with reproducible_cuda():  # as training runs
        return _run(parts, tuple(options.sizes.split(",")), device, date, keep, output)


def _run(
    parts: list[str],
    sizes: tuple[str, ...],
    device: str,
    date: str,
    keep: Callable[[Row], None],
    output: Path,
) -> int:
    """Measure the parts, and keep every row as soon as it is there."""
    import triton

    keep(
        {
            "part": "run", "device": device, "date": date, "torch": torch.__version__,
            "triton": triton.__version__, "python": platform.python_version(),
            "command": f"python -m experiments.benchmarks.kernels_gpu --part {','.join(parts)} "
            f"--sizes {','.join(sizes)}",
            "bandwidth": copy_bandwidth(), "matmul": matmul_rate(),
        }
    )  # fmt: skip
    for part in parts:
        for row in PARTS[part](sizes):
            keep(row)
            print(json.dumps(row), flush=True)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
