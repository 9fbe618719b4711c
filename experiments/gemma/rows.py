"""What is compared: models made of the teacher, what they are trained on, and which part is read.

    teacher
    windows alone         without and with the first token kept, at several sizes
    lean, equal           a window of as many bytes as a student needs, and as it holds here
    students              globals only; all layers as published; with layers kept
    each                  untrained, after attention transfer, after the same low-rank training
    students              also with their linear part or their window off

Bytes are those of one sequence of the scored length: recurrent states in float32, keys and values
in 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from models.accounting import layer_costs
from models.architectures.llama import llama_options, softmax
from models.architectures.lolcats import LoLCATs
from models.config import ModelConfig
from models.linearize.options import linearized_config
from models.linearize.parts import Reads
from models.linearize.transfer import ErrorAt
from scaling.config.run import DataConfig, RunConfig
from scaling.linearization.baselines import itemsize
from scaling.linearization.controls import controls
from scaling.linearization.recipes import lolcats_run

Stage = Literal["untrained", "transfer", "lora"]
KEPT = (3, 6)
"""Softmax layers of the hybrids whose layers are chosen by KL."""
STAGES: tuple[Stage, ...] = ("untrained", "transfer", "lora")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is made of the teacher."""

    name: str
    options: Any
    """None: the teacher itself."""
    config: RunConfig
    """What it would be as a run: precision, length and recipe, for costs and bytes."""
    beside: tuple[str, ...] = ()
    """Windows that it is compared with: its own, and those of as many bytes."""

    @property
    def linear(self) -> bool:
        """Whether it has a linear part to train."""
        return self.options is not None and self.options.feature_map != "none"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    model: Model
    stage: Stage = "untrained"
    reads: Reads = "both"
    keep: int = 0
    """Linear layers that get their softmax back: those whose linear form changes the next tokens
    most (`models.linearize.layer_costs.divergence`)."""

    @property
    def name(self) -> str:
        parts = {"window": "linear off", "past": "window off", "both": ""}
        words = [self.model.name, "" if self.stage == "untrained" else self.stage]
        kept = f"{self.keep} layers kept by KL" if self.keep else ""
        return ", ".join(word for word in (*words, kept, parts[self.reads]) if word)

    @property
    def slug(self) -> str:
        return self.name.replace(", ", "-").replace(" ", "-").replace("+", "and")


def needed_bytes(model: ModelConfig, config: RunConfig) -> int:
    """Bytes of one sequence of the run's length that a model cannot do without.

    What is held (`held_bytes`) is more: the hybrid attention keeps its state twice and a window
    more than a sliding one needs, so that every step costs the same.
    """
    options, total = model.options, 0
    for layer, cost in enumerate(layer_costs(model)):
        total += 4 * cost.state
        if cost.softmax is not None:
            keys = cost.softmax.held(config.data.sequence_length)
            if isinstance(options, LoLCATs) and layer not in options.softmax_layers:
                keys -= options.window * (options.arrangement == "sliding")
            total += keys * 2 * cost.softmax.key_width * itemsize(config)
    return total


def models(
    teacher: ModelConfig, length: int, tokens: int, low_rank: int, seed: int = 0
) -> dict[str, Model]:
    """The models by name.

    Args:
        teacher: a softmax model.
        length: tokens of a block.
        tokens: of attention transfer.
        low_rank: tokens of low-rank training.
        seed: of fresh weights.
    """
    full = llama_options(teacher).full_layers
    local = tuple(layer for layer in range(teacher.layers) if layer not in full)
    width, narrow = min(512, length // 8), min(64, length // 16)

    def student(
        name: str, options: LoLCATs, beside: Sequence[str], error: ErrorAt = "heads"
    ) -> Model:
        data = DataConfig(sequence_length=length, batch_sequences=1)
        made = linearized_config(teacher, options)
        config = lolcats_run("gemma", "gemma", made, data, tokens=tokens + low_rank, seed=seed)
        stages = replace(config.linearize, transfer_tokens=tokens, transfer_error=error)
        config = replace(config, linearize=stages)
        return Model(name=name, options=options, config=config, beside=tuple(beside))

    def beside(name: str, of: Model, control: str) -> Model:
        """What is trained beside a student (`scaling.linearization.controls`)."""
        config = controls(of.config)[control]
        options = config.model.options if control != "teacher" else None
        return Model(name=name, options=options, config=config)

    def alone(name: str, of: Model, options: LoLCATs) -> Model:
        made = linearized_config(teacher, options)
        return Model(name=name, options=options, config=replace(of.config, model=made))

    branch = LoLCATs(
        window=width, arrangement="sliding", sink_tokens=1, affine=True, window_factor=0.99,
        shared_state=True, softmax_layers=local,
    )  # fmt: skip
    windows = ["globals window + sink", "globals lean window + sink"]
    windows.append("globals equal window + sink")
    globals_ = student("globals", branch, windows, "residual")
    apart = replace(branch, shared_state=False)
    apart = student("globals, a state a head", apart, windows[:1], "residual")
    key = 2 * softmax(teacher, full[0]).key_width * itemsize(globals_.config)
    state = 4 * layer_costs(globals_.config.model)[full[0]].state
    published = student("all layers", LoLCATs(window=narrow), ["all layers window"])
    sinks = LoLCATs(window=narrow, sink_tokens=1)
    sunk = student("all layers + sink", sinks, ["all layers window + sink"])
    window = beside("globals window + sink", globals_, "window")
    lean = width + state // key
    found = [
        beside("teacher", globals_, "teacher"),
        window,
        alone("globals window", window, replace(window.options, sink_tokens=0)),
        alone("globals lean window + sink", window, replace(window.options, window=lean)),
        beside("globals equal window + sink", globals_, "equal window"),
        globals_,
        beside("all layers window + sink", sunk, "window"),
        beside("all layers window", published, "window"),
        apart,
        sunk,
        published,
    ]
    return {m.name: m for m in found}


def rows(found: dict[str, Model], stages: Sequence[Stage] = STAGES) -> list[Row]:
    """The table's lines, those that cost least first; only those of some stages.

    After attention transfer the students alone have changed; a linear part before it is random.
    With the linear part off a student is then its window untrained, which has its own line.
    """
    low_rank = ("globals window + sink", "globals", "globals lean window + sink", "teacher",
                "globals equal window + sink")  # fmt: skip
    lines = [Row(model=m) for m in found.values() if not m.linear]
    for model in (m for m in found.values() if m.linear):
        parts: tuple[Reads, ...] = ("both", "past")
        lines += [Row(model=model, stage="transfer", reads=reads) for reads in parts]
    lines += [Row(model=found[name], stage="lora") for name in low_rank]
    lines.append(Row(model=found["globals"], stage="lora", reads="window"))
    whole: tuple[Reads, ...] = ("both", "window")
    lines += [
        Row(model=found["all layers + sink"], stage="transfer", keep=n, reads=reads)
        for n in KEPT
        for reads in whole
    ]
    return [row for row in lines if row.stage in stages]
