"""Linearizations as runs: what they start from, what learns, what they leave, and interruptions.

The oracle for resuming is a run that was not disturbed; that for weights is the surgery of
`models.linearize`, whose own tests are elsewhere.
"""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from models.accounting import forward_flops_per_token
from models.language_model import build
from models.linearize.lora import LoRALinear
from models.linearize.surgery import linearize
from scaling.config.run import RunConfig
from scaling.data.prepare import prepare
from scaling.linearization import linearization_record as linearization
from scaling.linearization.costs import lora_parameters
from scaling.plan.costs import stages
from scaling.record.load_model import load_model
from scaling.record.pretrained import load_pretrained
from scaling.record.record import RunRecord
from scaling.training.loss import block_means
from scaling.training.module import TrainingModule
from scaling.training.train import train
from tests.support import results
from tests.support.results import StopAfter, read_lines

ROOT = Path(__file__).resolve().parents[3]
STEP = 4 * 32
METHODS = ("supra", "lolcats", "llama")


def result(config: RunConfig, sweep: Path) -> tuple[Any, ...]:
    """As `results.result`, with linearization.json."""
    return *results.result(config, sweep), linearization.read(sweep / config.run_id)


def validation_loss(model: Any, config: RunConfig) -> float:
    rows = torch.from_numpy(prepare(config.data).validation)
    with torch.no_grad():
        return block_means(model, (rows[:, :-1], rows[:, 1:])).mean().item()


@pytest.mark.parametrize("method", METHODS)
def test_losses_before_and_after(student: Any, tmp_path: Path, method: str) -> None:
    config = student(method)
    assert train(config, tmp_path) == "done"
    folder = tmp_path / config.run_id
    found = linearization.read(folder)["validation"]
    original = load_pretrained(config.linearize.teacher).model
    # Another batch size sums in another order: float32 rounding, 1e-6 relative.
    assert found["teacher"]["loss"] == pytest.approx(validation_loss(original, config), rel=1e-6)
    milestones = read_lines(folder / "milestones.jsonl")
    for line in milestones:
        model, stored = load_model(folder / line["checkpoint"])
        assert stored == config
        assert not any(isinstance(module, LoRALinear) for module in model.modules())
        assert validation_loss(model, config) == pytest.approx(line["val_loss"], rel=1e-5)
    rows = linearization.losses(folder)
    reached = [row for row in rows if row["what"] == "milestone"]
    assert [row["loss"] for row in reached] == [line["val_loss"] for line in milestones]
    if method == "llama":
        assert found["surgery"]["loss"] == found["teacher"]["loss"]
        assert all(row["recovered"] is None for row in rows)
        return
    # Surgery costs something, and what is trained gives part of it back.
    assert found["surgery"]["loss"] > found["teacher"]["loss"]
    assert found["surgery"]["loss"] > milestones[-1]["val_loss"]
    assert reached[-1]["of_surgery"] > 0
    if method == "supra":  # no window: the surgery is its zero
        assert reached[-1]["recovered"] == reached[-1]["of_surgery"]


def test_what_a_student_is_compared_with(student: Any, tmp_path: Path) -> None:
    """Windows alone and parts switched off, against models that are built for it."""
    config = student("lolcats", "model.options.window=4")
    assert train(config, tmp_path) == "done"
    folder = tmp_path / config.run_id
    content = linearization.read(folder)
    original = load_pretrained(config.linearize.teacher).model
    state = {k: v for k, v in original.state_dict().items()}

    # A sliding window is LLaMA's own; the student's state in keys of 2 heads x 8 channels.
    equal = content["baselines"]["equal window"]
    assert equal["state_bytes"] <= content["state_bytes"]["student"]
    windowed = build(original.config.with_options(window=equal["window"]))
    windowed.load_state_dict(state)
    assert equal["loss"] == pytest.approx(validation_loss(windowed, config), rel=1e-5)
    assert equal["window"] == content["baselines"]["equal window + sink"]["window"] + 1
    # 2 x 4 heads x 2 x 4 features x (8 + 1) and 8 keys with values, in 2 layers of float32; of the
    # window alone the keys.
    assert content["state_bytes"]["student"] == 2 * 4 * (2 * 4 * 8 * 9 + 2 * 8 * 16)
    assert content["baselines"]["window"]["state_bytes"] == 2 * 4 * 2 * 8 * 16

    # Blocks of 4: a mask over the whole, in torch's own attention.
    losses = {"window": 0, "window + sink": 1}
    for name, sinks in losses.items():
        found = content["baselines"][name]
        assert found["sink_tokens"] == sinks
        expected = validation_loss(masked(original, 4, sinks), config)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)

    milestone = read_lines(folder / "milestones.jsonl")[-1]
    parts = content["parts"][str(milestone["tokens"])]
    assert parts["loss"] == pytest.approx(milestone["val_loss"], rel=1e-5)
    model, _ = load_model(folder / milestone["checkpoint"])
    # The student's projections behind the window alone: a model without its linear part.
    off = validation_loss(masked(model, 4, 0), config)
    assert parts["linear off"]["loss"] == pytest.approx(off, rel=1e-5)
    assert parts["linear off"]["difference"] == pytest.approx(off - parts["loss"], abs=1e-5)
    assert parts["linear off"]["stderr"] > 0
    assert parts["window off"]["loss"] > parts["loss"]
    assert [entry["layer"] for entry in parts["layers"]] == [0, 1]
    # With one layer off the other still works.
    assert all(entry["linear off"]["loss"] != parts["linear off"]["loss"]
               for entry in parts["layers"])  # fmt: skip

    # The headline is counted from the window alone, by hand.
    teacher = content["validation"]["teacher"]["loss"]
    window = content["baselines"]["window"]["loss"]
    (last,) = [r for r in linearization.losses(folder)
               if r["what"] == "milestone" and r["tokens"] == milestone["tokens"]]  # fmt: skip
    assert content["counts_from"] == "the window alone"
    if window > teacher:
        by_hand = (window - milestone["val_loss"]) / (window - teacher)
        assert last["recovered"] == pytest.approx(by_hand)
    else:  # nothing to recover
        assert last["recovered"] is None
    spent = linearization.cost(folder)
    assert spent["tokens"] == 24 * STEP
    assert spent["flops"] == milestone["flops"]
    wall = max(line["wall"] for line in read_lines(folder / "metrics.jsonl"))
    assert spent["device_hours"] == pytest.approx(wall / 3600)


def masked(model: Any, window: int, sinks: int) -> Any:
    """The LLaMA on a model's projections whose queries see the token's block of `window`, the block
    before, and the first tokens, by a mask in torch's attention."""
    config, plain = model.config, copy.deepcopy(model)
    options = getattr(config.options, "llama", config.options)
    llama = build(config.replace(arch="llama", options=options))
    names = llama.state_dict().keys()
    llama.load_state_dict({k: v for k, v in plain.state_dict().items() if k in names})

    def read(self: Any, q: Any, k: Any, v: Any, span: Any, state: Any) -> Any:
        at = torch.arange(q.shape[1])
        seen = (at <= at[:, None]) & ((at >= (at[:, None] // window - 1) * window) | (at < sinks))
        return self._softmax(q, k, v, seen)

    for block in llama.blocks:
        block.mixer._read = types.MethodType(read, block.mixer)
    return llama.eval()


def test_surgery_is_that_of_models(student: Any, tmp_path: Path) -> None:
    config = student("supra")
    train(config, tmp_path, stop_event=StopAfter(1))
    torch.manual_seed(config.seed)
    module = TrainingModule(config)
    expected = linearize(load_pretrained(config.linearize.teacher).model, config.model.options)
    new = {name for name in expected.state_dict() if "feature_map" in name}
    for name in new:  # drawn at another time: take those of the run
        expected.state_dict()[name].copy_(module.net.state_dict()[name])
    found = linearization.read(tmp_path / config.run_id)["validation"]["surgery"]["loss"]
    assert new
    assert found == pytest.approx(validation_loss(expected, config), rel=1e-6)


def test_stage_1_learns_every_layer_and_stage_2_the_rest(student: Any, tmp_path: Path) -> None:
    config = student("lolcats", "budget.horizons=")
    assert train(config, tmp_path) == "done"
    folder = tmp_path / config.run_id
    content = linearization.read(folder)
    before, after = content["layers"]["before"], content["layers"]["after"]
    assert len(before) == len(after) == config.model.layers
    assert all(b > a for b, a in zip(before, after, strict=True))

    metrics = read_lines(folder / "metrics.jsonl")
    transfer = [m for m in metrics if m["split"] == "transfer"]
    assert [m["step"] for m in transfer] == list(range(1, 9))
    assert {m["lr"] for m in transfer} == {config.linearize.transfer_lr}
    assert all(m["bpb"] is None and m["segment"] == "transfer" for m in transfer)
    rest = [m for m in metrics if m["split"] == "train"]
    # The warm-up of one step starts after stage 1: half of the rate, then all of it.
    assert rest[0]["step"] == 9
    assert [m["lr"] for m in rest[:2]] == pytest.approx([1.5e-3, 3e-3])
    assert max(m["loss"] for m in rest) < 6  # nats, and not 1000 x the squared error

    # What is not trained is the teacher's to the bit; what is trained is not.
    ours, _ = load_model(folder / read_lines(folder / "milestones.jsonl")[-1]["checkpoint"])
    theirs = load_pretrained(config.linearize.teacher).model.state_dict()
    weights = ours.state_dict()
    for name, tensor in theirs.items():
        same = torch.equal(weights[name], tensor)
        assert same == (".mixer.qkv." not in name and ".mixer.out." not in name), name


@pytest.mark.parametrize("method", ["supra", "lolcats"])
def test_counts_and_flops(student: Any, tmp_path: Path, method: str) -> None:
    config = student(method)
    module = TrainingModule(config)
    segments = RunRecord(config, tmp_path).segments
    learning = {}
    for segment in (segments[0], segments[-1]):
        module.start(segment, segment.first)
        learning[segment.name] = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
    counted = stages(config)
    assert counted["parameters"] == learning[segments[-1].name]
    record = RunRecord(config, tmp_path)
    per_token = record.flops_per_token(False)
    whole = 3 * sum(forward_flops_per_token(config.model, lambda _: 0.0).values())
    if method == "supra":
        assert counted["transfer_tokens"] == 0
        assert per_token == whole
        assert record.flops(24 * STEP) == 24 * STEP * whole
        return
    assert counted["transfer_parameters"] == learning["transfer"]
    assert counted["parameters"] == lora_parameters(config.model, 2)
    first, rest = record.flops_per_token(True), per_token
    assert first < rest < record.accounting["flops_per_token"]["exact"]["total"]
    assert record.flops(8 * STEP) == pytest.approx(8 * STEP * first)
    assert record.flops(24 * STEP) == pytest.approx(STEP * (8 * first + 16 * rest))
    assert json.dumps(record.accounting["stages"])


@pytest.mark.parametrize(
    ("method", "steps"), [("supra", 5), ("lolcats", 5), ("lolcats", 8), ("lolcats", 13)]
)
def test_a_stopped_run_leaves_no_trace(
    student: Any, tmp_path: Path, method: str, steps: int
) -> None:
    config = student(method)
    assert train(config, tmp_path / "whole") == "done"
    assert train(config, tmp_path / "parts", stop_event=StopAfter(steps)) == "preempted"
    assert train(config, tmp_path / "parts") == "done"
    assert result(config, tmp_path / "parts") == result(config, tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_leaves_no_trace(student: Any, tmp_path: Path) -> None:
    config = student("lolcats")
    assert train(config, tmp_path / "whole") == "done"
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    command = [sys.executable, "-m", "scaling.training.train", str(tmp_path / "config.json")]
    metrics = tmp_path / "killed" / config.run_id / "metrics.jsonl"
    for wanted in (3, 9, 15):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and metrics.read_text().count("\n") >= wanted:
                break
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert train(config, tmp_path / "killed") == "done"
    assert result(config, tmp_path / "killed") == result(config, tmp_path / "whole")


def test_a_decay_right_after_stage_1(student: Any, tmp_path: Path) -> None:
    """The trunk goes on from a checkpoint without low-rank additions after a branch with them."""
    config = student(
        "lolcats", f"budget.horizons={9 * STEP},{12 * STEP}", "schedule.warmup_tokens=0"
    )
    assert train(config, tmp_path / "a") == "done"
    assert train(config, tmp_path / "b", stop_event=StopAfter(10)) == "preempted"
    assert train(config, tmp_path / "b") == "done"
    assert result(config, tmp_path / "a") == result(config, tmp_path / "b")


def test_all_weights_may_learn_after_stage_1(student: Any, tmp_path: Path) -> None:
    config = student("lolcats", "linearize.lora_rank=0")
    assert train(config, tmp_path) == "done"
    content = linearization.read(tmp_path / config.run_id)
    assert content["parameters"]["after"] == content["parameters"]["total"]


def test_resuming_does_not_need_the_teacher(student: Any, tmp_path: Path) -> None:
    config = student("supra")
    train(config, tmp_path, stop_event=StopAfter(5))
    hidden = Path(config.linearize.teacher)
    try:
        hidden.rename(hidden.parent / "elsewhere")
        assert train(config, tmp_path) == "done"
    finally:
        (hidden.parent / "elsewhere").rename(hidden)


def test_words_for_people(student: Any, tmp_path: Path) -> None:
    config = student("lolcats")
    train(config, tmp_path, stop_event=StopAfter(1))
    text = " ".join(linearization.describe(linearization.read(tmp_path / config.run_id)))
    assert "of the teacher's 19,200" in text
    assert all(share in text for share in ("0.2%", "0.4%", "5%"))
    log = (tmp_path / config.run_id / "log.txt").read_text()
    assert "stage 1 trains" in log
