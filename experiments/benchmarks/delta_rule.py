"""How much dearer than linear attention is the delta rule, on this CPU?

    python -m experiments.benchmarks.delta_rule --threads 1 --repeats 7

Forward and backward of Gated DeltaNet's rule (one decay a head), of Kimi Delta Attention's (one a
channel) and of DeltaNet's (none), beside HGRN2's recurrence, one after the other in every round:
B = 1, T = 2048, H = 8, d = 64, float32. CPU seconds of the process and wall time, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels import delta_attention, hgrn2_attention

TOKENS, HEADS, DIM = 2048, 8, 64


def cases() -> dict[str, Callable[[], None]]:
    """Name -> one forward and backward pass."""
    g = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(1, TOKENS, HEADS, *shape, generator=g).requires_grad_()

    q, k, v, x = leaf(DIM), leaf(DIM), leaf(DIM), leaf(DIM)
    k = F.normalize(k.detach(), dim=-1).requires_grad_()
    beta = torch.rand(1, TOKENS, HEADS, generator=g).requires_grad_()
    decays = {
        "DeltaNet": None,
        "Gated DeltaNet": (0.1 * F.logsigmoid(leaf().detach())).requires_grad_(),
        "KDA": (0.1 * F.logsigmoid(leaf(DIM).detach())).requires_grad_(),
    }
    bound = torch.full((HEADS, DIM), 0.3).requires_grad_()
    weight = torch.randn(v.shape, generator=g)

    def case(run: Callable[[], Tensor], *leaves: Tensor | None) -> Callable[[], None]:
        wanted = [x for x in leaves if x is not None]
        return lambda: torch.autograd.backward((run() * weight).sum(), inputs=wanted)

    found = {
        "HGRN2": case(lambda: hgrn2_attention(q, x, v, bound)[0], q, x, v, bound),
    }
    for name, decay in decays.items():
        found[name] = case(
            lambda decay=decay: delta_attention(q, k, v, beta, decay)[0], q, k, v, beta, decay
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    seconds: dict[str, list[tuple[float, float]]] = {}
    found = cases()
    for number in range(options.repeats + 1):
        for name, run in found.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            if number:  # the first round warms up
                spent = (time.process_time() - cpu, time.perf_counter() - wall)
                seconds.setdefault(name, []).append(spent)
    cpu, wall = ({n: statistics.median(x[i] for x in seconds[n]) for n in seconds} for i in (0, 1))
    print("| rule | CPU ms | of HGRN2's | wall ms | of HGRN2's |\n|---|---|---|---|---|")
    for name in seconds:
        print(
            f"| {name} | {1e3 * cpu[name]:.0f} | {cpu[name] / cpu['HGRN2']:.2f} "
            f"| {1e3 * wall[name]:.0f} | {wall[name] / wall['HGRN2']:.2f} |"
        )


if __name__ == "__main__":
    main()
