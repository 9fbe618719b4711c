"""Runs that align layers, distil logits, start other mixers, or go on from a student.

The oracle for resuming is a run that was not disturbed; those for losses and starts are the
functions of `models.linearize`, whose own tests are elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from linscale.errors import LinscaleError
from models.linearize.distill import distillation_loss, hidden_losses, matrix_losses
from models.linearize.initialise import from_attention, gated_config
from scaling.config.run import RunConfig
from scaling.data.prepare import prepare
from scaling.linearization import linearization_record as linearization
from scaling.plan.costs import stages, teacher_parameters
from scaling.plan.memory import memory
from scaling.record.load_model import load_model
from scaling.record.pretrained import load_pretrained
from scaling.record.record import RunRecord
from scaling.training.module import TrainingModule
from scaling.training.train import train
from tests.support import results
from tests.support.results import StopAfter, read_lines

STEP = 4 * 32
MOHAWK = (f"linearize.matrix_tokens={3 * STEP}", f"linearize.hidden_tokens={4 * STEP}",
          "linearize.temperature=2")  # fmt: skip
LOLCATS = (f"linearize.hidden_tokens={3 * STEP}", "linearize.temperature=1", "linearize.hard=0.5")


def result(config: RunConfig, sweep: Path) -> tuple[Any, ...]:
    """As `results.result`, with linearization.json."""
    return *results.result(config, sweep), linearization.read(sweep / config.run_id)


@pytest.fixture
def staged(student: Any, teacher: Any) -> Any:
    """Runs of any architecture that can start from the teacher."""

    def build(arch: str, *overrides: str) -> RunConfig:
        if arch in ("llama", "supra", "lolcats"):
            return student(arch, *overrides)
        model = gated_config(teacher[0].model, arch)
        return replace(student("llama"), name=f"{arch}-test", model=model).override(list(overrides))

    return build


@pytest.mark.parametrize("arch", ["supra", "lolcats", "hgrn2"])
def test_stages_lower_their_loss_in_every_layer(staged: Any, tmp_path: Path, arch: str) -> None:
    config = staged(arch, *MOHAWK, "linearize.transfer_lr=3e-3", "budget.horizons=")
    assert train(config, tmp_path) == "done"
    folder = tmp_path / config.run_id
    content = linearization.read(folder)
    for stage in ("matrices", "hidden"):
        before, after = (content["layers"][f"{stage} {when}"] for when in ("before", "after"))
        assert len(before) == len(after) == config.model.layers
        assert sum(after) < sum(before)
    assert all(b > a for b, a in zip(before, after, strict=True))  # hidden: the last stage
    splits = [line["split"] for line in read_lines(folder / "metrics.jsonl")]
    names = list(dict.fromkeys(splits))
    assert names == ["matrices", *(["transfer"] if arch == "lolcats" else []), "hidden", "train",
                     "validation"]  # fmt: skip
    rows = {row["what"]: row for row in linearization.losses(folder)}
    assert rows["after mixing matrices"]["tokens"] == 3 * STEP
    assert rows["milestone"]["loss"] < rows["after surgery"]["loss"]


@pytest.mark.parametrize("arch", ["supra", "hgrn2"])
def test_losses_are_those_of_models(staged: Any, tmp_path: Path, arch: str) -> None:
    """The first recorded loss of every stage, from the weights at its start."""
    config = staged(arch, *MOHAWK, "linearize.hard=0.3", "budget.horizons=")
    losses = {"matrices": matrix_losses, "hidden": hidden_losses}
    rows = torch.from_numpy(prepare(config.data).train.gather(
        prepare(config.data).order(config.seed).blocks(0, 4)))  # fmt: skip
    module = TrainingModule(config)
    original = load_pretrained(config.linearize.teacher).model
    module.lend(original)
    from scaling.linearization.teacher import adopt

    adopt(module.net, original)
    batch = (rows[:, :-1], rows[:, 1:])
    for segment in RunRecord(config, tmp_path).segments[:2]:
        module.start(segment, segment.first)
        loss = module.training_step(batch, 0)
        parts = [part for _, part in losses[segment.name](module.net, original, batch[0])]
        assert loss.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-6)
        loss.backward()
        grads = {n: p.grad for n, p in module.net.named_parameters() if p.requires_grad}
        # What learns is what the loss reaches, so that DDP has no unused parameter.
        assert all(grad is not None for grad in grads.values()), segment.name
        module.net.zero_grad()
        assert stages(config)["transfer_parameters"] >= sum(
            p.numel() for p in module.net.parameters() if p.requires_grad
        )
    last = RunRecord(config, tmp_path).segments[-1]
    module.start(last, last.first)
    assert all(p.requires_grad for p in module.net.parameters())
    expected = distillation_loss(module.net, original, *batch, temperature=2.0, hard=0.3)
    assert module.training_step(batch, 0).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("arch", "overrides", "steps"),
    [("tnl", MOHAWK, 2), ("tnl", MOHAWK, 5), ("lolcats", LOLCATS, 10), ("lolcats", LOLCATS, 14)],
)
def test_a_stopped_run_leaves_no_trace(
    staged: Any, tmp_path: Path, arch: str, overrides: tuple[str, ...], steps: int
) -> None:
    config = staged(arch, *overrides)
    assert train(config, tmp_path / "whole") == "done"
    assert train(config, tmp_path / "parts", stop_event=StopAfter(steps)) == "preempted"
    assert train(config, tmp_path / "parts") == "done"
    assert result(config, tmp_path / "parts") == result(config, tmp_path / "whole")


@pytest.mark.parametrize("arch", ["tnl", "hgrn2", "cosformer2"])
def test_other_mixers_start_from_attention(staged: Any, tmp_path: Path, arch: str) -> None:
    """Weights that are taken over, and outputs fitted: the fitted model is nearer."""
    config = staged(arch, "linearize.fit_sequences=40")
    train(config, tmp_path, stop_event=StopAfter(1))
    found = linearization.read(tmp_path / config.run_id)["validation"]
    assert found["teacher"]["loss"] < found["surgery"]["loss"]
    if arch != "cosformer2":  # attention is nearer, which need not be so for the loss
        assert found["surgery"]["loss"] < found["weights"]["loss"]
    original = load_pretrained(config.linearize.teacher).model
    expected = from_attention(original, arch)
    plain = staged(arch)
    train(plain, tmp_path, stop_event=StopAfter(1))
    module = TrainingModule(plain)
    from scaling.linearization.teacher import adopt

    adopt(module.net, original)
    taken = [n for n in expected.state_dict() if ".gate." not in n or ".channel." in n]
    for name in taken:
        if not name.startswith("stem.") and "theta" not in name:
            assert torch.equal(module.net.state_dict()[name], expected.state_dict()[name]), name


def test_the_teacher_must_stay_the_same(staged: Any, teacher: Any, tmp_path: Path) -> None:
    """A stage that learns from it as a second model goes on only with the weights it began with."""
    import shutil

    copied = tmp_path / "copy" / teacher[1].name
    shutil.copytree(teacher[1], copied)
    config = staged("tnl", *MOHAWK, f"linearize.teacher={copied}")
    assert train(config, tmp_path / "runs", stop_event=StopAfter(5)) == "preempted"
    text = (copied / "milestones.jsonl").read_text()
    line = json.loads(text) | {"sha256": "0" * 64}
    (copied / "milestones.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(LinscaleError, match=r"not those that the run began with.*put them back"):
        train(config, tmp_path / "runs")
    (copied / "milestones.jsonl").write_text(text)
    assert train(config, tmp_path / "runs") == "done"


def test_stages_alone_are_a_run(staged: Any, tmp_path: Path) -> None:
    """A budget that attention transfer fills: nothing but feature maps and factors has learned."""
    config = staged("lolcats", "linearize.lora_rank=0", "budget.horizons=",
                    f"linearize.transfer_tokens={24 * STEP}")  # fmt: skip
    assert train(config, tmp_path) == "done"
    folder = tmp_path / config.run_id
    (milestone,) = read_lines(folder / "milestones.jsonl")
    assert milestone["train_loss"] is None
    assert not milestone["decayed"]
    content = linearization.read(folder)
    assert content["validation"]["transfer"]["loss"] == pytest.approx(milestone["val_loss"])
    text = " ".join(linearization.describe(content))
    assert "stage 1 trains" in text
    assert "stage 2 trains" not in text
    model, _ = load_model(folder / milestone["checkpoint"])
    theirs = load_pretrained(config.linearize.teacher).model.state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in theirs.items())


def test_a_student_is_a_teacher(staged: Any, tmp_path: Path) -> None:
    """LoRA on a model that went through attention transfer elsewhere: LoLCATs' second stage."""
    first = staged("lolcats", "linearize.lora_rank=0", "budget.horizons=",
                   f"linearize.transfer_tokens={24 * STEP}")  # fmt: skip
    assert train(first, tmp_path) == "done"
    second = staged("lolcats", f"linearize.teacher={tmp_path / first.run_id}",
                    "linearize.transfer_tokens=0")  # fmt: skip
    assert train(second, tmp_path) == "done"
    found = linearization.read(tmp_path / second.run_id)["validation"]
    before = read_lines(tmp_path / first.run_id / "milestones.jsonl")[-1]["val_loss"]
    assert found["teacher"]["loss"] == found["surgery"]["loss"] == pytest.approx(before, rel=1e-5)
    after = read_lines(tmp_path / second.run_id / "milestones.jsonl")[-1]
    assert after["val_loss"] < before
    assert not any("down" in name for name in
                   load_model(tmp_path / second.run_id / after["checkpoint"])[0].state_dict()
                   if ".mixer." in name)  # fmt: skip
    other = staged("lolcats", f"linearize.teacher={tmp_path / first.run_id}")
    other = replace(other, model=other.model.with_options(window=8))
    with pytest.raises(LinscaleError, match=r"model.options=.*keeps everything of its teacher"):
        train(other, tmp_path)


def test_a_second_model_is_counted(staged: Any, tmp_path: Path) -> None:
    config, plain = staged("tnl", *MOHAWK), staged("tnl")
    assert teacher_parameters(plain) == 0
    assert (
        teacher_parameters(config)
        == sum(p.numel() for p in load_pretrained(config.linearize.teacher).model.parameters())
        + 2 * 2 * 32 * 8 * 2
        + 257 * 32
    )  # as if it had four key-value heads, and an untied head
    assert memory(config).total - memory(plain).total == 4 * teacher_parameters(config)
    a, b = stages(config), stages(plain)
    forward = b["flops_per_token"]["exact"] / 3
    # The teacher's pass is about as long as the student's.
    assert a["flops_per_token"]["exact"] == pytest.approx(4 * forward, rel=0.1)
    assert RunRecord(config, tmp_path).flops(7 * STEP) == pytest.approx(
        7 * STEP * a["transfer_flops_per_token"]["exact"]
    )
