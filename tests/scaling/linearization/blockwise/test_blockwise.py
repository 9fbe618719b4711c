"""Groups learn what all layers together would, in the memory that the plan says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from typer.testing import CliRunner

from experiments import lolcats_large
from linscale.errors import LinscaleError
from models.accounting import parameters
from models.architectures.lolcats import LoLCATs
from models.config import ConfigError, toy_config
from models.interop import import_model
from models.linearize.transfer import layer_losses
from scaling.cli.main import app
from scaling.config.experiment import load_experiment
from scaling.config.parts import DataConfig
from scaling.data.sampler import permute
from scaling.linearization.blockwise.hidden_cache import Boundary, cache_activations, tokens_of
from scaling.linearization.blockwise.teacher_layers import (
    learning_tensors,
    student_layers,
    teacher_layers,
)
from scaling.linearization.blockwise.train_groups import assemble, run, train_group
from scaling.linearization.blockwise.transfer_config import Blockwise
from scaling.linearization.blockwise.transfer_plan import plan, step_bytes
from scaling.linearization.costs import lora_parameters
from scaling.plan.plan import USABLE, rung
from scaling.system.devices import find_device
from scaling.system.live_memory import LiveBytes
from tests.docs.test_json import check

ROOT = Path(__file__).resolve().parents[4]
LARGE = ROOT / "experiments" / "lolcats_large.py"


def quiet(_: str) -> None:
    """A report to nobody."""


def jointly(config: Blockwise, text: torch.Tensor) -> tuple[Any, list[dict[int, float]]]:
    """All layers of the student at once, on the teacher's own hidden states."""
    layers = range(config.model.layers)
    student = student_layers(config, layers, outside=True)
    parameters = list(learning_tensors(student, layers).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
    lines = []
    for step in range(config.steps):
        epoch, position = divmod(step, config.batches)
        batch = permute(np.array([position]), config.batches, config.seed, epoch)[0]
        optimizer.zero_grad()
        lines.append({})
        for layer, loss in layer_losses(student, text[int(batch)].long()):
            loss.backward()
            lines[-1][layer] = float(loss.detach())
        optimizer.step()
    return student, lines


@pytest.mark.parametrize("group_layers", [1, 2, 5])
def test_groups_learn_what_all_layers_together_learn(
    make: Any, tmp_path: Path, group_layers: int
) -> None:
    """The same losses at every step, the same weights, the same model."""
    config, out = make(group_layers=group_layers, epochs=3), tmp_path / "out"
    run(config, out, report=quiet)
    student, expected = jointly(config, tokens_of(config, out))
    assert config.steps == 12
    found: list[dict[int, float]] = [{} for _ in range(config.steps)]
    for number in range(len(config.groups)):
        path = out / f"group-{number:02d}" / "losses.jsonl"
        if not path.is_file():
            assert list(config.groups[number]) == [2]  # keeps softmax: nothing to learn
            continue
        for line in map(json.loads, path.read_text().splitlines()):
            found[line["step"] - 1].update({int(k): v for k, v in line["losses"].items()})
    # The same operations on the same numbers; only their threads may differ.
    assert [sorted(losses) for losses in found] == [[0, 1, 3, 4]] * config.steps
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for layer in found[0]:  # the last epoch against the first: the same batches
        first, last = (sum(line[layer] for line in found[at : at + 4]) for at in (0, 8))
        assert last < 0.95 * first
    model, source = import_model(out / "model")
    assert source.config == config.student
    for name, value in student.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), value, rtol=1e-5, atol=1e-6)
    text = tokens_of(config, out)[0].long()
    with torch.no_grad():
        torch.testing.assert_close(model(text), student(text), rtol=1e-4, atol=1e-4)


def test_parts_can_be_jobs_of_their_own(make: Any, tmp_path: Path) -> None:
    config, out = make(), tmp_path / "out"
    with pytest.raises(LinscaleError, match=r"before layer 2 are not complete; run.*activations"):
        run(config, out, only="1", report=quiet)
    run(config, out, only="activations", report=quiet)
    run(config, out, only="2", report=quiet)
    with pytest.raises(LinscaleError, match="group 0 has not learned yet"):
        run(config, out, only="assemble", report=quiet)
    with pytest.raises(ConfigError, match=r"group 3: .*groups 0 to 2, of 2 layers"):
        run(config, out, only="3", report=quiet)
    with pytest.raises(LinscaleError, match="only='second'"):
        run(config, out, only="second", report=quiet)
    for number in (0, 1):
        train_group(config, out, number, report=quiet)
    assert (assemble(config, out) / "model.safetensors").is_file()


def test_activations_are_the_teachers_hidden_states(make: Any, tmp_path: Path) -> None:
    config, out = make(), tmp_path / "out"
    cache_activations(config, out)
    teacher, _ = import_model(config.teacher)
    seen: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        return lambda _, args: seen.update([(layer, args[0])])

    for layer, block in enumerate(teacher.blocks):
        block.register_forward_pre_hook(keep(layer))
    text = tokens_of(config, out)
    for batch in range(config.batches):
        with torch.no_grad():
            teacher(text[batch].long())
        for group in config.groups:
            torch.testing.assert_close(Boundary(out, group.start).batch(batch), seen[group.start])
    size = sum(path.stat().st_size for path in out.glob("activations/*/batch-*"))
    planned = plan(config, find_device("h100")).disk_bytes
    assert planned < size < planned + 200 * len(config.groups) * config.batches  # headers
    damaged = next((out / "activations" / "before-000").glob("batch-00003*"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(LinscaleError, match=r"batch-00003.*it is made anew"):
        Boundary(out, 0).batch(3)


def test_instructions_are_packed(make: Any, tmp_path: Path) -> None:
    """Rows of whole examples; what is asked and answered is learned from alike."""
    lines = [{"instruction": f"Add {n} and 2.", "output": f"It is {n + 2}."} for n in range(60)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(
        corpus=f"instructions:{tmp_path}/asked.jsonl", sequence_length=256, batch_sequences=2
    )
    config = make(data=data, tokens=1024)
    text = tokens_of(config, tmp_path / "out")
    assert text.shape == (2, 2, 256)
    row = bytes(token for token in text[0, 0].tolist() if token < 256).decode(errors="replace")
    assert "Add " in row
    assert "It is " in row


def test_bfloat16_halves_the_disk_and_learns_the_same(make: Any, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        config, out = make(precision=precision), tmp_path / precision
        run(config, out, report=quiet)
        lines = (out / "group-00" / "losses.jsonl").read_text().splitlines()
        losses[precision] = json.loads(lines[-1])["losses"]["0"]
        stored = safetensors.torch.load_file(out / "group-00" / "learned.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    assert Boundary(tmp_path / "bf16", 0).batch(0).dtype == torch.bfloat16
    # Rounding of 2^-8 in the hidden states and in the weights.
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1)
    model, _ = import_model(tmp_path / "bf16" / "model")
    assert model.embedding.weight.dtype == torch.bfloat16


# --- memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
def test_the_planned_peak_is_the_measured_one(make: Any, arrangement: str) -> None:
    """Tensors without memory and real ones, within 2 %: two layers of one group, differentiated."""
    options = LoLCATs(window=16, arrangement=arrangement)  # pyright: ignore[reportArgumentType]
    data = DataConfig(sequence_length=128, batch_sequences=4)
    config = make(lolcats=options, data=data, tokens=512)
    assert _peak_of_a_step(config, range(2)) == pytest.approx(step_bytes(config), rel=0.02)


def test_the_peak_is_the_teacher_and_one_layers_activations(make: Any) -> None:
    """However many layers there are; and all layers' if their graphs were kept."""
    data = DataConfig(sequence_length=128, batch_sequences=4)
    config = make(lolcats=LoLCATs(window=16), data=data, tokens=512)
    one = step_bytes(config)
    assert _peak_of_a_step(config, range(5)) <= 1.02 * one
    assert _peak_of_a_step(config, range(5), keep=True) > 2 * one
    # In groups not even the teacher is in memory, but for their layers.
    size = {}
    for layers in (range(2), range(5)):
        tensors = [*teacher_layers(config, layers).parameters()]
        size[len(layers)] = sum(p.nbytes for p in tensors if not p.is_meta)
    assert size[2] == pytest.approx(size[5] * 2 / 5)
    assert size[2] == plan(config, find_device("h100")).weights_bytes


def _peak_of_a_step(config: Blockwise, layers: range, keep: bool = False) -> float:
    """Bytes beside weights, gradients and what was there before."""
    from models.layers import make_span
    from models.linearize.transfer import block_losses

    student = student_layers(config, layers)
    parameters = list(learning_tensors(student, layers).values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    shape = config.data.batch_sequences, config.data.sequence_length
    span = make_span(torch.zeros(shape, dtype=torch.int64), None, None, False)
    x, shared, _ = student.stem(torch.randn(*shape, config.model.dim), span, None)
    held = [p for p in student.parameters() if not p.is_meta]
    blocks: Any = [student.blocks[layer] for layer in layers]
    with LiveBytes(*held) as live:
        before = live.live
        live.watch(x, *shared[0])
        losses = block_losses(blocks, layers.start, x, span, shared)
        kept = []
        for number, (_, loss) in enumerate(losses):
            if keep:
                kept.append(loss)
            elif number < 1 or len(layers) > 2:
                loss.backward()
            del loss
    gradients = sum(p.grad.nbytes for p in parameters if p.grad is not None)
    return live.peak - before - gradients


# --- plans ------------------------------------------------------------------------------------


def test_plan_of_llama_70b_and_405b() -> None:
    result = CliRunner().invoke(app, ["plan", str(LARGE), "--device", "h100", "--json"])
    assert result.exit_code == 0, result.output
    small, large = json.loads(result.stdout)
    assert small["parameters"] == 70_553_706_496  # as published
    assert large["parameters"] == 405_853_388_800
    assert (small["groups"], large["groups"]) == (16, 14)
    # 20M tokens in whole batches of 8 x 1024, bf16.
    assert small["tokens"] == 20_000_000 // 8192 * 8192
    assert small["boundary_bytes"] == small["tokens"] * 8192 * 2
    assert small["disk_bytes"] == 16 * small["boundary_bytes"]
    # A layer of 70B: q and o 8192^2, k and v 8192 x 1024, GLU 3 x 8192 x 28672, two norms.
    layer = 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert small["weights_bytes"] == 2 * 5 * layer
    # Two maps of 64 x 128 x 64 and 64 factors a layer.
    assert small["learning_parameters"] == 80 * (2 * 64 * 128 * 64 + 64)
    assert small["memory_per_device"] < 80 * 2**30 < small["whole_memory"]
    assert large["memory_per_device"] < 80 * 2**30
    # At least the matrix products: 2 FLOPs a weight, for 15 of 16 groups once, for all twice.
    products = 2 * layer * 80 * small["tokens"]
    assert products * (15 / 16 + 2) < small["flops"] < 1.5 * products * (15 / 16 + 2)


def test_plan_of_both_stages(tmp_path: Path) -> None:
    """Stage 2 is LoRA on all layers with FSDP: 70B on one node of eight, 405B on eight nodes."""
    result = CliRunner().invoke(app, ["plan", str(LARGE), "--device", "h100"])
    assert result.exit_code == 0, result.output
    assert "lolcats-405B: 406B parameters, 126 layers in 14 groups of 9" in result.stdout
    small, large = load_experiment(LARGE, [], False).runs
    assert (small.parallel.world_size, large.parallel.world_size) == (8, 64)
    assert small.linearize.transfer_tokens == large.linearize.transfer_tokens == 0
    rungs = [rung(one, find_device("h100"), "planned") for one in (small, large)]
    for one, row in zip((small, large), rungs, strict=True):
        assert row.strategy == "fsdp"
        # The float32 masters are shared out; what learns is LoRA alone.
        masters = 4 * sum(parameters(one.model).values()) / one.parallel.world_size
        assert masters < row.memory_per_device < 80 * 2**30 * USABLE
        assert lora_parameters(one.model, one.linearize.lora_rank) < 0.001 * sum(
            parameters(one.model).values()
        )


def test_a_group_that_does_not_fit_is_refused(make: Any) -> None:
    model = toy_config("llama", 8192, vocab_size=128_256, layers=80, head_dim=128)
    data = DataConfig(sequence_length=1024, batch_sequences=8)
    config = make(model=model, data=data, tokens=20_000_000, group_layers=80, precision="bf16")
    with pytest.raises(ConfigError, match=r"80 layers needs about .* H100 SXM .*group_layers=\d+"):
        plan(config, find_device("h100"))
    fits = int(str(_error(config)).rpartition("group_layers=")[2].split()[0])
    plan(Blockwise(**vars(config) | {"group_layers": fits}), find_device("h100"))
    with pytest.raises(ConfigError):
        plan(Blockwise(**vars(config) | {"group_layers": fits + 1}), find_device("h100"))


def _error(config: Blockwise) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        plan(config, find_device("h100"))
    return caught.value


# --- errors and the command -------------------------------------------------------------------


def test_what_does_not_belong_together(make: Any, tmp_path: Path) -> None:
    config, out = make(), tmp_path / "out"
    run(config, out, only="activations", report=quiet)
    with pytest.raises(LinscaleError, match="with other settings"):
        run(make(lr=0.02), out, only="0", report=quiet)
    other = make(model=config.model.replace(norm_eps=1e-5))
    with pytest.raises(LinscaleError, match=r"model.norm_eps=1e-06.*1e-05"):
        run(other, tmp_path / "other", report=quiet)
    with pytest.raises(LinscaleError, match=r"tokens=1000000: corpus .* lower tokens"):
        run(make(tokens=1_000_000), tmp_path / "long", report=quiet)
    with pytest.raises(ConfigError, match=r"tokens=63.*at least one batch, 64"):
        make(tokens=63)
    with pytest.raises(ConfigError, match="softmax_layers"):
        make(lolcats=LoLCATs(softmax_layers=(5,)))


def test_the_teachers_tokenizer_is_asked_for(make: Any, tmp_path: Path) -> None:
    from scaling.data.tokenizers import train_bpe

    trained = train_bpe("bpe:270", ["in the beginning was the word " * 20])
    (tmp_path / "teacher" / "tokenizer.json").write_text(trained.to_json())
    with pytest.raises(LinscaleError, match=r"data.tokenizer=bytes: .*file:.*tokenizer.json"):
        run(make(), tmp_path / "out", report=quiet)


def test_command(make: Any, tmp_path: Path) -> None:
    config = make()
    (tmp_path / "e.py").write_text(
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from models.architectures.lolcats import LoLCATs\n"
        "from models.interop import read_source\n"
        "from scaling.linearization.blockwise.transfer_config import Blockwise\n"
        "from scaling.config.parts import DataConfig\n"
        "def blockwise():\n"
        "    model = read_source('teacher').config\n"
        f"    data = DataConfig(corpus={config.data.corpus!r}, sequence_length=32,\n"
        "                      batch_sequences=2, validation_fraction=0.2)\n"
        "    one = Blockwise(name='one', teacher='teacher', model=model, data=data, tokens=128,\n"
        "                    group_layers=3, precision='fp32', lolcats=LoLCATs(window=4))\n"
        "    return [one, replace(one, name='two', seed=1)]\n"
    )

    def linscale(*arguments: str) -> Any:
        return CliRunner().invoke(app, list(arguments))

    shown = linscale("plan", "e.py", "--device", "h100").stdout
    assert "one: " in shown
    assert "two: " in shown
    result = linscale("blockwise", "e.py")
    assert isinstance(result.exception, LinscaleError)
    assert "has one, two; choose one" in str(result.exception)
    result = linscale("blockwise", "e.py", "--name", "two", "--json")
    assert result.exit_code == 0, result.output
    assert "parameters learn" in result.stderr
    document = json.loads(result.stdout)
    check("linscale blockwise", document)
    assert (document["transfer"], document["folder"]) == ("two", "blockwise/two")
    model, _ = import_model("blockwise/two/model")
    assert model.config.arch == "lolcats"
    for text, error in (("x = 1", r"no function blockwise\(\)"), ("def blockwise(): return 3", "")):
        (tmp_path / "f.py").write_text(text + "\n")
        exception = linscale("blockwise", "f.py").exception
        assert isinstance(exception, LinscaleError)
        assert error.replace("\\", "") in str(exception)


def test_transfers_keep_the_names_that_they_had() -> None:
    """Digests as of the layout that the first transfers were kept under; newer options change
    them where they are set."""
    large, small = lolcats_large.blockwise()
    assert (large.digest(), small.digest()) == ("e6259bf66f2faf82", "0c315ec5d7fbf2fb")
    normed = replace(large, model=large.model.with_options(qk_norm="head"))
    assert normed.digest() != large.digest()
    for option in ({"sink_tokens": 1}, {"shared_state": True}):
        changed = replace(large, lolcats=replace(large.lolcats, **option))
        assert changed.digest() != large.digest()
