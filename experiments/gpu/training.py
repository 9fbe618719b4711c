"""Whole models on a GPU: where a step's time goes, what compiling gains, and exact resuming.

python -m experiments.gpu.training profile | compiled | resume  SIZE OUT
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks import kernels_gpu
from experiments.benchmarks.model_peers import trainees
from experiments.gpu.steps import from_source
from models import config as model_config
from models.config import ARCHS
from models.language_model import LanguageModel
from scaling.config.recipes import TOY_VOCAB, toy_recipe
from scaling.config.run import RunConfig
from scaling.system.devices import reproducible_cuda

TOP = 15
"""Kernels listed of a profile."""
STEPS = 60
"""Optimizer steps of the run that is killed."""
ACCELERATOR = "cuda"
TIMES = {"wall", "tokens_per_second", "mfu", "data_wait", "memory_peak"}
"""Of a line of metrics.jsonl, what no two runs share."""


def profile(size: str, out: Path) -> Iterator[dict[str, Any]]:
    """The kernels that two steps of each architecture spend most time in; casts, fills, waits."""
    activity = torch.profiler.ProfilerActivity
    for arch in ARCHS:
        config = model_config.paper_config(arch, size)
        ours = next(iter(trainees(config, kernels_gpu.DEVICE)))
        step = kernels_gpu.training_step(ours, config.vocab_size)
        step()
        kinds = [activity.CPU] + ([activity.CUDA] if kernels_gpu.DEVICE == "cuda" else [])
        with torch.profiler.profile(activities=kinds) as found:
            step()
            step()
        events = found.key_averages()
        rows = sorted(events, key=lambda e: e.self_device_time_total or e.self_cpu_time_total)
        counts = {event.key: event.count for event in events}
        yield {
            "part": "profile", "size": size, "arch": arch,
            "top": [
                [e.key[:80], e.count, e.self_device_time_total or e.self_cpu_time_total]
                for e in rows[: -TOP - 1 : -1]
            ],
            "casts": counts.get("aten::_to_copy", 0), "fills": counts.get("aten::fill_", 0),
            "waits": counts.get("aten::_local_scalar_dense", 0)
            + counts.get("cudaStreamSynchronize", 0),
        }  # fmt: skip
        _free()


def compiled(size: str, out: Path) -> Iterator[dict[str, Any]]:
    """Tokens a second with blocks compiled as training does, and without."""
    for arch in ARCHS:
        config = model_config.paper_config(arch, size)
        for compile_blocks in (False, True):
            ours = next(iter(trainees(config, kernels_gpu.DEVICE)))
            model, loss = ours.make()
            assert isinstance(model, LanguageModel)
            if compile_blocks:
                for block in model.blocks:
                    block.compile()
            made = replace(ours, make=lambda made=(model, loss): made)
            began = time.perf_counter()
            step = kernels_gpu.training_step(made, config.vocab_size)
            step()
            first = time.perf_counter() - began
            low, middle, high = kernels_gpu.quantiles(step)
            yield {
                "part": "compiled", "size": size, "arch": arch, "compile": compile_blocks,
                "tokens_per_second": kernels_gpu.TOKENS / (middle * 1e-3), "p10": low, "p90": high,
                "first_step_seconds": first,
            }  # fmt: skip
            del model, loss, made, step, ours
            _free()


def _free() -> None:
    if kernels_gpu.DEVICE == "cuda":
        torch.cuda.empty_cache()


def run_of(arch: Any, dim: int = 64) -> RunConfig:
    """A small run on the device, with checkpoints on the way."""
    run = toy_recipe(
        f"gpu-{arch}", f"d{dim}", model_config.toy_config(arch, dim, vocab_size=TOY_VOCAB),
        tokens=STEPS * 2048,
    )  # fmt: skip
    precision = "bf16" if ACCELERATOR == "cuda" else "fp32"
    return run.override(
        [
            f"parallel.accelerator={ACCELERATOR}", f"parallel.precision={precision}",
            f"budget.checkpoint_every_tokens={STEPS * 2048 // 6}",
        ]
    )  # fmt: skip


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what is of the moment."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append({k: v for k, v in json.loads(line).items() if k not in TIMES})
        except ValueError:
            break  # being written
    return rows


def train_apart(run: RunConfig, sweep: Path) -> subprocess.Popen[bytes]:
    """The run in a process of its own, which can be killed."""
    path = sweep.parent / f"{run.run_id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run.to_json()))
    program = (
        "import json, sys; from pathlib import Path; from scaling.config.run import RunConfig; "
        "from scaling.training.train import train; "
        "config = RunConfig.from_json(json.loads(Path(sys.argv[1]).read_text())); "
        "sys.exit(train(config, Path(sys.argv[2])) != 'done')"
    )
    command = [sys.executable, "-c", program, str(path), str(sweep)]
    return subprocess.Popen(command, env=from_source())


def resume(size: str, out: Path) -> Iterator[dict[str, Any]]:
    """A run that is killed half way and started again ends bit for bit as one that was not. One
    that ended before it could be killed shows nothing, and is not right."""
    for arch in ARCHS:
        run = run_of(arch)
        straight, killed = out / "resume" / "straight", out / "resume" / "killed"
        if train_apart(run, straight).wait() != 0:
            yield {"part": "resume", "arch": arch, "right": False, "failed": "the straight run"}
            continue
        expected = metrics(straight / run.run_id)
        shutil.rmtree(killed / run.run_id, ignore_errors=True)  # of an earlier attempt
        process = train_apart(run, killed)
        while process.poll() is None and len(metrics(killed / run.run_id)) < len(expected) // 2:
            time.sleep(0.005)
        died = process.poll() is None
        if died:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            status = train_apart(run, killed).wait()
        else:
            status = process.returncode
        equal = status == 0 and metrics(killed / run.run_id) == expected
        weights = status == 0 and _same_weights(straight / run.run_id, killed / run.run_id)
        yield {
            "part": "resume", "arch": arch, "killed": died, "same_metrics": equal,
            "same_weights": weights, "right": died and equal and weights,
        }  # fmt: skip


def _same_weights(one: Path, other: Path) -> bool:
    """Whether all milestones hold the same bits."""
    from scaling.record.load_model import load_model

    names = [sorted(p.name for p in x.glob("checkpoints/milestone-*.pt")) for x in (one, other)]
    if names[0] != names[1] or not names[0]:
        return False
    for name in names[0]:
        a, b = (load_model(x / "checkpoints" / name)[0].state_dict() for x in (one, other))
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return False
    return True


PARTS = {"profile": profile, "compiled": compiled, "resume": resume}


def main(part: str, size: str, out: Path) -> int:
    """Print a line of JSON for each result; 1 if one is wrong."""
    wrong = 0
    with reproducible_cuda():
        for row in PARTS[part](size, out):
            print(json.dumps(row), flush=True)
            wrong += not row.get("right", True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
