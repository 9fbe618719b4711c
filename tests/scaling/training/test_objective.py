"""The registry of objectives: found by name, loaded when a run asks, next-token loss by default."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from models.config import toy_config
from models.language_model import build
from scaling.config.linearize import LinearizeConfig
from scaling.config.objectives import NEXT_TOKEN, OBJECTIVES
from scaling.config.run import BudgetConfig, DataConfig, OptimConfig, RunConfig, ScheduleConfig
from scaling.config.schedule import changes, learning_rate, segments
from scaling.linearization.objectives import FromTeacher
from scaling.training.objective import Objective, objective_of

STEP = 4 * 64


@pytest.fixture
def plain() -> RunConfig:
    """20 steps of a toy transformer."""
    return RunConfig(
        name="plain",
        model=toy_config("llama", 32, vocab_size=64, layers=2, head_dim=16),
        data=DataConfig(sequence_length=64, batch_sequences=4),
        optim=OptimConfig(lr=1e-3),
        schedule=ScheduleConfig(kind="constant"),
        budget=BudgetConfig(tokens=20 * STEP),
    )


def test_every_name_is_an_objective(plain: RunConfig) -> None:
    for name in OBJECTIVES:
        objective = objective_of(plain, name)
        assert isinstance(objective, Objective)
        assert isinstance(objective, FromTeacher) == (name != NEXT_TOKEN)
    assert type(objective_of(plain, NEXT_TOKEN)) is Objective


@pytest.mark.parametrize("share", [None, 0.75])
def test_the_default_is_next_token_loss(plain: RunConfig, share: float | None) -> None:
    """Against PyTorch's cross-entropy of the logits."""
    net = build(plain.model)
    draw = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(0, 64, (2, 4, 64), generator=draw)
    targets[:, 48:] = -100  # a quarter
    logits = net(tokens).reshape(-1, 64)
    expected = functional.cross_entropy(logits, targets.reshape(-1), ignore_index=-100)
    given = None if share is None else torch.tensor(share)
    loss = objective_of(plain, NEXT_TOKEN).loss(net, (tokens, targets), share=given)
    torch.testing.assert_close(loss, expected * (share or 1.0))


def test_a_list_of_objectives_becomes_segments(plain: RunConfig) -> None:
    part = LinearizeConfig(
        teacher="runs/a", matrix_tokens=3 * STEP, hidden_tokens=4 * STEP, temperature=1.0
    )
    model = replace(plain.model, arch="tnl", rope_base=plain.model.rope_base)
    staged = replace(plain, model=model, linearize=part)
    assert [(s.objective, s.steps) for s in staged.objectives] == [
        ("matrices", 3),
        ("hidden", 4),
        ("distillation", 13),
    ]
    assert [(s.name, s.objective, s.first, s.last) for s in segments(staged)] == [
        ("matrices", "matrices", 0, 3),
        ("hidden", "hidden", 3, 7),
        ("trunk", "distillation", 7, 20),
    ]
    rates = [learning_rate(staged, s, s.first) for s in segments(staged)]
    assert rates == [part.transfer_lr, part.transfer_lr, plain.optim.lr]
    assert changes(staged) == {0, 3, 7}
    assert [s.objective for s in segments(plain)] == [NEXT_TOKEN]
    assert changes(plain) == {0}


def test_plain_training_loads_no_linearization() -> None:
    """And planning no torch."""
    code = (
        "import sys, scaling.plan.costs as costs\n"
        "from models.config import toy_config\n"
        "from scaling.config.run import BudgetConfig, RunConfig\n"
        "run = RunConfig(name='a', model=toy_config('llama', 32, vocab_size=64, layers=1,\n"
        "                head_dim=16),\n"
        "                budget=BudgetConfig(tokens=10**7))\n"
        "assert costs.flops(run, 1.0) > 0 and not costs.teacher_parameters(run)\n"
        "assert 'torch' not in sys.modules\n"
        "import scaling.training.session\n"
        "loaded = [name for name in sys.modules if 'linearization' in name]\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
