"""Linear-attention kernels on this GPU, against flash-linear-attention, SDPA and the memory bus.

Question: how close to the copy-bandwidth floor do forward and forward + backward run, and how do
they compare with the alternatives, at flash-linear-attention's six standard shapes and at the
shapes of the paper's six models at T = 8192?

    python -m experiments.benchmarks.kernels_gpu [--quick] [--output FILE]

Writes experiments/benchmarks/results/DATE-DEVICE.md: medians of `triton.testing.do_bench` in
milliseconds, the floor (every input, output and gradient once, at the copy bandwidth measured in
the same run), decoding latency by context length, and whole-model training tokens/s and MFU.
Peers that are not installed are left out. Needs a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

RESULTS = Path(__file__).parent / "results"

STANDARD = (
    (1, 8192, 96, 128), (2, 16384, 16, 128), (4, 2048, 16, 128),
    (4, 4096, 64, 128), (8, 2048, 32, 256), (8, 1024, 8, 64),
)  # fmt: skip
"""flash-linear-attention's standard shapes: (B, T, H, D)."""
MODELS = tuple((1, 8192, heads, 128) for heads in (4, 6, 8, 12, 20, 32))
"""One layer of the paper's 70M to 7B models on one sequence of 8192 tokens."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One implementation of one decay mode."""

    name: str
    mode: str
    function: Callable[..., Tensor]
    """(q, k, v, gate) -> o; the gate is None, (H,) or (B, T, H, D)."""


def contenders() -> Iterator[Contender]:
    """Ours and every installed peer."""
    from models.kernels import linear_attention

    def ours(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> Tensor:
        return linear_attention(q, k, v, gate)[0]

    for mode in ("none", "head", "channel"):
        yield Contender(name="linscale", mode=mode, function=ours)

    def sdpa(q: Tensor, k: Tensor, v: Tensor, gate: Tensor | None) -> Tensor:
        del gate
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    yield Contender(name="SDPA causal", mode="softmax", function=sdpa)
    try:
        from fla.ops.gla import chunk_gla
        from fla.ops.linear_attn import chunk_linear_attn
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError:
        return

    def first(x: Tensor | tuple[Tensor, ...]) -> Tensor:
        return x[0] if isinstance(x, tuple) else x

    yield Contender(
        name="fla linear_attn",
        mode="none",
        function=lambda q, k, v, g: first(chunk_linear_attn(q, k, v, normalize=False)),  # pyright: ignore[reportCallIssue]
    )
    yield Contender(
        name="fla retention",
        mode="head",
        function=lambda q, k, v, g: first(chunk_simple_gla(q, k, v, g_gamma=g)),  # pyright: ignore[reportCallIssue]
    )
    yield Contender(
        name="fla gla",
        mode="channel",
        function=lambda q, k, v, g: first(chunk_gla(q, k, v, g)),  # pyright: ignore[reportCallIssue]
    )


def milliseconds(function: Callable[[], object]) -> float:
    """Median time on the device."""
    from triton.testing import do_bench

    median = do_bench(function, warmup=50, rep=200, return_mode="median")
    return float(median)  # pyright: ignore[reportArgumentType]


def copy_bandwidth() -> float:
    """Bytes a second of a large device copy, read and write counted."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source)) * 1e-3)


def floor_bytes(shape: tuple[int, int, int, int], mode: str) -> tuple[int, int]:
    """Least bytes forward, and forward + backward, in bfloat16 with K = V."""
    batch, tokens, heads, dim = shape
    unit = batch * tokens * heads * dim * 2
    gate = mode == "channel"
    return unit * (4 + gate), unit * (11 + 3 * gate)


def measure(contender: Contender, shape: tuple[int, int, int, int]) -> tuple[float, float]:
    """Forward and forward + backward, in milliseconds."""
    batch, tokens, heads, dim = shape
    torch.manual_seed(0)

    def new() -> Tensor:
        return torch.randn(batch, tokens, heads, dim, device="cuda", dtype=torch.bfloat16)

    q, k, v = ((new() * dim**-0.5).requires_grad_(), new().requires_grad_(), new().requires_grad_())
    gate: Tensor | None = None
    inputs = [q, k, v]
    if contender.mode == "head":
        gate = -torch.logspace(0, -8, heads, base=2.0, device="cuda")
    elif contender.mode == "channel":
        gate = torch.nn.functional.logsigmoid(new().float()).to(torch.bfloat16).requires_grad_()
        inputs.append(gate)
    do = torch.randn_like(contender.function(q, k, v, gate))

    def both() -> None:
        torch.autograd.grad(contender.function(q, k, v, gate), inputs, do)

    with torch.no_grad():
        forward = milliseconds(lambda: contender.function(q, k, v, gate))
    return forward, milliseconds(both)


def kernel_table(
    shapes: tuple[tuple[int, int, int, int], ...], bandwidth: float
) -> Iterator[tuple[str, ...]]:
    """Rows of times; a contender that fails on a shape says why instead of a number."""
    for shape in shapes:
        for contender in contenders():
            label = "B{} T{} H{} D{}".format(*shape)
            floors = [n / bandwidth * 1e3 for n in floor_bytes(shape, contender.mode)]
            try:
                forward, both = measure(contender, shape)
            except Exception as problem:
                yield (label, contender.mode, contender.name, f"failed: {type(problem).__name__}",
                       str(problem).split("\n")[0][:80], "", "", "")  # fmt: skip
                continue
            linear = contender.mode != "softmax"
            yield (
                label, contender.mode, contender.name, f"{forward:.3f}", f"{both:.3f}",
                f"{floors[0]:.3f}" if linear else "", f"{floors[1]:.3f}" if linear else "",
                f"{floors[1] / both:.0%}" if linear else "",
            )  # fmt: skip


def ratios(rows: list[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Geometric mean over shapes of peer time / our time, forward + backward."""
    times: dict[tuple[str, str, str], float] = {}
    for shape, mode, name, _, both, *_ in rows:
        try:
            times[shape, mode, name] = float(both)
        except ValueError:
            continue
    for peer in sorted({name for _, _, name in times if name.startswith("fla")}):
        pairs = [
            value / times[shape, mode, "linscale"]
            for (shape, mode, name), value in times.items()
            if name == peer and (shape, mode, "linscale") in times
        ]
        if pairs:
            yield peer, f"{statistics.geometric_mean(pairs):.2f}", str(len(pairs))


def decode_table(contexts: tuple[int, ...]) -> Iterator[tuple[str, ...]]:
    """Microseconds for one token of one layer, B = 32, H = 32, D = 128, by context length."""
    from models.kernels import linear_attention_step

    batch, heads, dim = 32, 32, 128
    q, k, v = (
        torch.randn(batch, heads, dim, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    state = torch.zeros(batch, heads, dim, dim, device="cuda")
    gates = {
        "none": None,
        "head": torch.full((heads,), -0.1, device="cuda"),
        "channel": torch.full((batch, heads, dim), -0.1, device="cuda"),
    }
    with torch.no_grad():
        ours = {
            mode: milliseconds(lambda gate=gate: linear_attention_step(q, k, v, state, gate)) * 1e3
            for mode, gate in gates.items()
        }
        for context in contexts:
            cache = torch.randn(2, batch, heads, context, dim, device="cuda", dtype=torch.bfloat16)
            softmax = 1e3 * milliseconds(
                lambda cache=cache: torch.nn.functional.scaled_dot_product_attention(
                    q[:, :, None], cache[0], cache[1]
                )
            )
            del cache
            yield (str(context), *(f"{t:.0f}" for t in ours.values()), f"{softmax:.0f}")


def model_table(sizes: tuple[str, ...], peak: float) -> Iterator[tuple[str, ...]]:
    """Training tokens/s and MFU (exact FLOPs over the measured matmul rate) at T = 8192."""
    from models.accounting import summary
    from models.config import ARCHS, paper_config
    from models.language_model import build

    tokens = 8192
    for size in sizes:
        for arch in ARCHS:
            config = paper_config(arch, size)
            model = build(config, device="cuda", dtype=torch.bfloat16)
            data = torch.randint(config.vocab_size, (1, tokens + 1), device="cuda")

            def step(model: torch.nn.Module = model, data: Tensor = data) -> None:
                model.zero_grad(set_to_none=True)
                model.loss(data[:, :-1], data[:, 1:]).mean().backward()  # pyright: ignore

            rate = tokens / (milliseconds(step) * 1e-3)
            flops = summary(config, tokens)["flops_per_token"]["exact"]["total"]
            yield size, arch, f"{rate:,.0f}", f"{rate * flops / peak:.0%}"
            del model, step
            torch.cuda.empty_cache()


def matmul_rate() -> float:
    """FLOPs a second of an 8192^3 bfloat16 matrix product."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / (milliseconds(lambda: a @ a) * 1e-3)


def markdown(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 2 and says why where there is no GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.kernels_gpu", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="standard shapes only, no models")
    parser.add_argument("--output", type=Path, help="Markdown file (default: results/DATE-DEVICE)")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(
            "This benchmark times Triton kernels and needs a GPU; PyTorch sees none. For evidence "
            "without one, run: python -m models.kernels.report",
            file=sys.stderr,
        )
        return 2
    import triton

    device = torch.cuda.get_device_name().replace(" ", "-")
    bandwidth, peak = copy_bandwidth(), matmul_rate()
    kernels = list(kernel_table(STANDARD if options.quick else STANDARD + MODELS, bandwidth))
    sections = [
        f"# Kernels on {device}, {datetime.date.today()}\n",
        f"Command: `python -m experiments.benchmarks.kernels_gpu{' --quick' * options.quick}`. "
        f"PyTorch {torch.__version__}, Triton {triton.__version__}, Python "
        f"{platform.python_version()}. Copy bandwidth {bandwidth / 1e12:.2f} TB/s, 8192^3 bfloat16 "
        f"matrix product {peak / 1e12:.0f} TFLOP/s, both measured in this run. Times are medians "
        "in milliseconds; the floor moves every input, output and gradient once.\n",
        "## Forward, and forward + backward, bfloat16\n",
        markdown(
            ("shape", "decay", "implementation", "f", "f + b", "floor f", "floor f + b",
             "of floor"),
            kernels,
        ),
        "## Peer time / our time, forward + backward, geometric mean\n",
        markdown(("peer", "ratio", "shapes"), list(ratios(kernels))),
    ]  # fmt: skip
    if not options.quick:
        sections += [
            "## Decoding one token, microseconds a layer (B 32, H 32, D 128)\n",
            markdown(
                ("context", "none", "head", "channel", "softmax SDPA"),
                list(decode_table((1024, 4096, 16384, 65536))),
            ),
            "## Whole-model training step, T = 8192, one sequence\n",
            markdown(
                ("size", "architecture", "tokens/s", "MFU"),
                list(model_table(("70M", "160M", "410M", "1B"), peak)),
            ),
        ]
    output = options.output or RESULTS / f"{datetime.date.today()}-{device}.md"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(sections))
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
