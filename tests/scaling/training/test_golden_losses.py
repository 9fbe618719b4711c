"""Golden losses: a short run of each architecture against committed values.

They catch a change that nobody meant: in an initialisation, the order of the data, a schedule, an
optimizer or a kernel. When a change is meant, write them anew and say so in the changelog:

    python tests/scaling/training/test_golden_losses.py

Tolerance 1e-4, relative. On one CPU the run repeats to the last bit. Another CPU has other vector
widths and so adds float32 products in another order; doing that on purpose, with micro-batches of
1 instead of 4, moves these losses by at most 1.5e-7, so 1e-4 leaves room for far more. What it has
to catch is larger: 1 % of learning rate moves them by 3e-3, a second Adam coefficient of 0.96
instead of 0.95 by 1.2e-3, no weight decay by 7e-4.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from models.config import ARCHS, Arch, toy_config
from scaling.config.run import (
    BudgetConfig,
    DataConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    ScheduleConfig,
)
from scaling.training.train import train

GOLDEN = Path(__file__).with_name("golden_losses.json")
TEXT = (
    "In the beginning was the measurement, and the measurement was noisy. Whoever doubles the "
    "parameters and the tokens pays four times the compute; what does it buy? The loss falls as a "
    "power of the compute until the data run out, and nobody has seen the floor. "
)


def golden_run(arch: Arch, folder: Path) -> dict[str, list[float]]:
    """Training and validation losses of 12 steps, with one branch on the way."""
    texts = folder / "texts"
    texts.mkdir()
    for number in range(24):
        at = 7 * number
        (texts / f"{number:02}.txt").write_text((TEXT[at:] + TEXT[:at]) * 3)
    step = 4 * 64
    config = RunConfig(
        name=f"golden-{arch}",
        model=toy_config(arch, 64, vocab_size=257, layers=2),
        data=DataConfig(
            corpus=f"text:{texts}/*.txt",
            sequence_length=64,
            batch_sequences=4,
            validation_fraction=0.2,
            validation_blocks=8,
        ),
        optim=OptimConfig(lr=2e-3),
        schedule=ScheduleConfig(warmup_tokens=2 * step, decay_fraction=0.25),
        budget=BudgetConfig(tokens=12 * step, horizons=(6 * step,)),
        parallel=ParallelConfig(accelerator="cpu", threads=1),
    )
    assert train(config, folder / "sweep") == "done"
    run = folder / "sweep" / config.run_id
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        split: [line["loss"] for line in metrics if line["split"] == split]
        for split in ("train", "validation")
    }


@pytest.mark.parametrize("arch", ARCHS)
def test_losses_are_the_committed_ones(
    arch: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    found = golden_run(arch, tmp_path)
    expected = json.loads(GOLDEN.read_text())[arch]
    for split in ("train", "validation"):
        assert found[split] == pytest.approx(expected[split], rel=1e-4), split


def main() -> None:
    """Write the golden values of this machine."""
    values: dict[str, dict[str, list[float]]] = {}
    for arch in ARCHS:
        with tempfile.TemporaryDirectory() as folder:
            values[arch] = golden_run(arch, Path(folder))
    GOLDEN.write_text(json.dumps(values, indent=1) + "\n")
    sys.stdout.write(f"wrote {GOLDEN}\n")


if __name__ == "__main__":
    main()
