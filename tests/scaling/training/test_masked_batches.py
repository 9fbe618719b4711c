"""Where only some targets count, each of a global batch weighs the same, however it is split."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models.config import Arch, toy_config
from models.cross_entropy import IGNORE_INDEX
from models.language_model import build
from scaling.config.linearize import LinearizeConfig
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig, ScheduleConfig
from scaling.config.schedule import segments
from scaling.data.loader import DataModule
from scaling.record.load_model import load_model
from scaling.training.module import TrainingModule
from scaling.training.train import train
from tests.support.ranks import DOUBLE, in_double, train_ranks
from tests.support.results import lines

STEP = 4 * 64


@pytest.fixture
def instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Examples whose answers are of very different lengths."""
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "examples.jsonl"
    examples = [{"instruction": f"say {n}", "output": "ab" * (1 + n % 17)} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, examples)))
    return f"instructions:{path}"


def make_run(corpus: str, *overrides: str, arch: Arch = "tnl") -> RunConfig:
    length = 256 if corpus.startswith("instructions") else 64
    return RunConfig(
        name="masked",
        model=toy_config(arch, 32, vocab_size=257, layers=1, head_dim=16),
        data=DataConfig(
            corpus=corpus,
            sequence_length=length,
            batch_sequences=4,
            validation_blocks=4,
            validation_fraction=0.2,
        ),
        schedule=ScheduleConfig(kind="constant", warmup_tokens=0),
        budget=BudgetConfig(tokens=6 * 4 * length),
        parallel=ParallelConfig(accelerator="cpu", threads=1),
    ).override(list(overrides))


def assert_same(one: RunConfig, a: Path, b: Path, tolerance: float, weights: float = 1e-7) -> None:
    """Losses and gradient norms of every step, and the weights at the end."""
    metrics = lines(one, a)
    assert len(metrics) > 6
    for x, y in zip(metrics, lines(one, b), strict=True):
        for key in ("loss", "grad_norm"):
            if x[key] is not None:
                # Losses are summed over micro-batches in float32 for the record.
                rel = max(tolerance, 1e-6) if key == "loss" else tolerance
                assert y[key] == pytest.approx(x[key], rel=rel), (key, x["step"])
    name = lines(one, a, "milestones.jsonl")[0]["checkpoint"]
    (p, _), (q, _) = (load_model(sweep / one.run_id / name) for sweep in (a, b))
    for (name, x), y in zip(p.named_parameters(), q.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=weights, msg=name)


@pytest.mark.parametrize("data", ["task:mqar:pairs=8,vocab=64", "instructions"])
def test_micro_batches_have_unequal_numbers_of_targets_and_one_gradient(
    data: str, instructions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_run(instructions if data == "instructions" else data)
    targets = next(iter(DataModule(one).train_dataloader()))[1]
    assert len(set((targets != IGNORE_INDEX).sum(1).tolist())) > 1
    in_double(monkeypatch)
    for micro in (4, 2, 1):
        split = one.override([f"parallel.micro_batch_sequences={micro}"])
        assert train(split, tmp_path / str(micro)) == "done"
    for micro in ("2", "1"):
        assert_same(one, tmp_path / "4", tmp_path / micro, 1e-11)


def test_in_float32_and_with_the_whole_batch_at_once_nothing_is_rescaled(tmp_path: Path) -> None:
    """One micro-batch divides by its targets as ever; two agree with it to float32's rounding.

    Adam divides a gradient by its own size: one with a relative error r moves its weight by up to
    r lr too far, and the smallest have the largest r. A wrong weighting moves weights by about lr.
    """
    one = make_run("task:mqar:pairs=8,vocab=64")
    two = one.override(["parallel.micro_batch_sequences=2"])
    train(one, tmp_path / "one")
    train(two, tmp_path / "two")
    assert_same(one, tmp_path / "one", tmp_path / "two", 1e-5, weights=1e-2 * one.optim.lr)


@pytest.mark.parametrize(
    ("overrides", "arch"),
    [
        (("parallel.strategy=ddp", "parallel.micro_batch_sequences=1"), "tnl"),
        pytest.param(("parallel.strategy=fsdp",), "llama", marks=pytest.mark.slow),
        pytest.param(
            ("parallel.strategy=ddp", "parallel.sequence=2"), "hgrn2", marks=pytest.mark.slow
        ),
    ],
)
def test_so_have_ranks(
    overrides: tuple[str, ...],
    arch: Arch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    zygote: None,
) -> None:
    one = make_run("task:mqar:pairs=8,vocab=64", arch=arch)
    two = one.override(["parallel.devices=2", *overrides])
    assert train_ranks(two, tmp_path / "two", prelude=DOUBLE) == 0
    in_double(monkeypatch)
    train(one, tmp_path / "one")
    assert_same(one, tmp_path / "one", tmp_path / "two", 1e-11)


@pytest.mark.parametrize("objective", ["text", "teacher", "teacher and text"])
@pytest.mark.parametrize("empty", [1, 2])
def test_a_micro_batch_without_targets_adds_nothing(
    objective: str, empty: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches of which one or all have no target: loss and gradients of them all at once."""
    in_double(monkeypatch)
    one = make_run("task:mqar:pairs=8,vocab=64")
    if objective != "text":
        hard = 0.5 if "text" in objective else 0.0
        distilled = LinearizeConfig(teacher="a model", temperature=2.0, hard=hard)
        one = dataclasses.replace(one, linearize=distilled)
    draw = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 64, (2, 4, 64), generator=draw)
    targets[-2 * empty :] = IGNORE_INDEX
    teacher = build(toy_config("llama", 32, vocab_size=257, layers=1, head_dim=16)).double()
    found: list[tuple[float, list[torch.Tensor]]] = []
    for parts in (1, 2):
        run = one.override([f"parallel.micro_batch_sequences={4 // parts}"])
        module = TrainingModule(run)
        strategy = SimpleNamespace(reduce=lambda share, reduce_op: share)
        trainer = SimpleNamespace(accumulate_grad_batches=parts, strategy=strategy)
        monkeypatch.setattr(TrainingModule, "trainer", trainer)
        module.lend(teacher)
        module.start(segments(run)[0], 0)
        module.loss_sum = torch.zeros((), dtype=torch.double)
        for rows in zip(tokens.chunk(parts), targets.chunk(parts), strict=True):
            (module.training_step(rows, 0) / parts).backward()
            module.on_after_backward()
        gradients = [p.grad for p in module.net.parameters() if p.grad is not None]
        found.append((float(module.loss_sum) / parts, gradients))
    (loss, whole), (split_loss, split) = found
    assert (loss > 0) == (empty == 1)
    assert split_loss == pytest.approx(loss, rel=1e-12)
    for x, y in zip(whole, split, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
