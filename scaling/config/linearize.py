"""The `linearize` part of a run's configuration: where the weights come from, and the stages.

    linearize.teacher -> [fit outputs] -> stages that align layers, each its tokens -> the rest
                         `fit_sequences`  matrices | transfer | hidden                 of the run

    matrices   mixing matrices against attention matrices (MOHAWK, arXiv 2408.10189, stage 1)
    transfer   attention outputs (LoLCATs, arXiv 2410.10254, stage 1)
    hidden     outputs of whole blocks on the teacher's hidden states (MOHAWK, stage 2)
    the rest   all weights or LoRA (`lora_rank`), on the text, or on the teacher's logits
               (`temperature`; MOHAWK, stage 3)

Each is an objective (`scaling.linearization.objectives`).

The method is the model's architecture, with its own options: `model.arch` is `supra` or `lolcats`;
`tnl`, `hgrn2` or `cosformer2`, which start from attention weights (`models.linearize.initialise`);
or `llama`, which goes on training the teacher as it is: the control that has no surgery. A teacher
that is linearized already, such as one assembled by `linscale blockwise`, is taken over whole. The
budget counts the tokens of all stages; the run's schedule, its warm-up and decays, is that of the
rest. A budget that the aligning stages fill has no rest: the run ends with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from models.architecture import BUILT_IN, find
from models.architectures.lolcats import LoLCATs
from models.config import ConfigError, ModelConfig
from models.fields import LATER, Part
from scaling.config.objectives import NEXT_TOKEN
from scaling.config.parts import DataConfig

ALIGNMENTS = {
    "matrices": "matrix_tokens",
    "transfer": "transfer_tokens",
    "hidden": "hidden_tokens",
}
"""Objectives that align layers with a teacher's, in the order in which a run takes them -> the
field with their tokens."""
STARTED = tuple(name for name in BUILT_IN if find(name).starts_from == "attention")
"""Architectures that start from attention weights (`models.linearize.initialise`)."""
STARTS = tuple(name for name in BUILT_IN if find(name).starts_from != "nothing")
"""Architectures that can take over a teacher's weights."""


@dataclass(frozen=True, kw_only=True)
class LinearizeConfig(Part):
    """From which transformer a run starts, and how it learns to do without softmax."""

    teacher: str = ""
    """Run directory, checkpoint or directory in Hugging Face's layout; empty: from scratch. The
    path is part of the run's identity: give it relative to the working directory."""
    transfer_tokens: int = 0
    """Tokens of LoLCATs' attention transfer: only feature maps and window factors learn, from the
    teacher's attention outputs. Part of `budget.tokens`. 0: no such stage."""
    transfer_lr: float = 1e-2
    """Learning rate of the stages that align layers, constant; their weight decay is 0. Published
    for attention transfer: 1e-2, divided by ten when ten evaluations a hundred steps apart bring
    nothing, which a run of 2400 steps can see twice at most."""
    cross_entropy: float = 0.0
    """Attention transfer: factor of the attention weights' cross-entropy beside 1000 x the squared
    error. Published: 0."""
    far_error: float = field(default=0.0, metadata=LATER)
    """Attention transfer: factor of the squared error of the linear part alone against the
    teacher's attention to the keys before the window, which the window cannot stand in for. 0:
    none. Takes memory of sequence_length^2 a head."""
    transfer_error: Literal["heads", "residual"] = field(default="heads", metadata=LATER)
    """Attention transfer: where the squared error is taken. `heads`, as published: at the heads'
    outputs. `residual`: at what attention adds to the residual stream, after the output projection
    and the norm behind it."""
    window_dropout: float = field(default=0.0, metadata=LATER)
    """Probability with which a layer's window is masked in a step of training, so that its linear
    part must do without: at the start of attention transfer and of what follows, falling linearly
    to 0 at the end of each. 0: never."""
    lora_rank: int = 0
    """After the aligning stages only low-rank additions of this rank to q, k, v and o learn. 0: all
    weights."""
    lora_alpha: float = 16.0
    """Low-rank additions are scaled by alpha / rank."""
    matrix_tokens: int = field(default=0, metadata=LATER)
    """Tokens of a stage in which token mixers learn the teacher's attention matrices, which takes
    memory of sequence_length^2 a head. Part of `budget.tokens`. 0: no such stage."""
    hidden_tokens: int = field(default=0, metadata=LATER)
    """Tokens of a stage in which whole blocks learn the outputs of the teacher's, each on the
    teacher's hidden states. Part of `budget.tokens`. 0: no such stage."""
    temperature: float = field(default=0.0, metadata=LATER)
    """After the aligning stages the loss is tau^2 KL(teacher || student) of the next-token
    distributions at this temperature (arXiv 1503.02531). 0: the text's cross-entropy."""
    hard: float = field(default=0.0, metadata=LATER)
    """With `temperature`: factor of the text's cross-entropy beside the divergence."""
    fit_sequences: int = field(default=0, metadata=LATER)
    """Before training, the output projection of every linear layer is solved for the teacher's
    attention, by least squares on this many training sequences. 0: it is the teacher's."""

    _prefix = "linearize."

    def _validate(self) -> None:
        for name in ("transfer_tokens", "matrix_tokens", "hidden_tokens", "fit_sequences"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("transfer_lr", 0 < self.transfer_lr < float("inf"), "above 0 and finite")
        self._require("lora_rank", self.lora_rank >= 0, "at least 0")
        self._require("lora_alpha", 0 < self.lora_alpha < float("inf"), "above 0 and finite")
        self._require("window_dropout", 0 <= self.window_dropout < 1, "at least 0 and below 1")
        for name in ("cross_entropy", "far_error", "temperature", "hard"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "at least 0")
        self._require("hard", not self.hard or self.temperature > 0, "0 without a temperature")

    @property
    def prelude(self) -> dict[str, int]:
        """The objectives that align layers, before the run's schedule starts: name -> tokens."""
        tokens = {name: getattr(self, field) for name, field in ALIGNMENTS.items()}
        return {name: count for name, count in tokens.items() if count}

    @property
    def objective(self) -> str:
        """The objective of the rest of the run."""
        if not self.teacher:
            return NEXT_TOKEN
        if self.lora_rank:
            return "lora-distillation" if self.temperature else "lora"
        return "distillation" if self.temperature else "full"

    def check(self, model: ModelConfig, strategy: str, data: DataConfig) -> None:
        """Rules that take in the model, the devices and the text.

        Raises:
            ConfigError: the architecture has no such stage, or strategy or text do not allow it.
        """
        extras = ("transfer_tokens", "lora_rank", "matrix_tokens", "hidden_tokens", "temperature",
                  "fit_sequences")  # fmt: skip
        given = [name for name in extras if getattr(self, name)]
        if not self.teacher:
            for name in (*given, "far_error", "window_dropout"):
                self._require(name, not getattr(self, name), "0 without a teacher")
            heads = self.transfer_error == "heads"
            self._require("transfer_error", heads, "heads without a teacher")
            return
        start = model.architecture.starts_from
        if start == "nothing":
            raise ConfigError(
                f"model.arch={model.arch!r} with linearize.teacher={self.teacher!r}: it has no "
                f"use for a transformer's weights; choose one of {', '.join(STARTS)}."
            )
        if self.transfer_tokens and not isinstance(model.options, LoLCATs):
            raise ConfigError(
                f"linearize.transfer_tokens={self.transfer_tokens} with model.arch="
                f"{model.arch!r}: attention transfer is LoLCATs' first stage; set "
                "linearize.transfer_tokens=0, or linearize with lolcats."
            )
        for name in ("far_error", "window_dropout"):
            if getattr(self, name) and not isinstance(model.options, LoLCATs):
                raise ConfigError(
                    f"linearize.{name}={getattr(self, name)} with model.arch={model.arch!r}: it "
                    f"has no window; set linearize.{name}=0, or linearize with lolcats."
                )
        wanted = self.far_error and not self.transfer_tokens
        self._require("far_error", not wanted, "0 without linearize.transfer_tokens")
        wanted = self.transfer_error != "heads" and not self.transfer_tokens
        self._require("transfer_error", not wanted, "heads without linearize.transfer_tokens")
        wrong = {
            "lora_rank": start == "attention",  # has other projections
            "matrix_tokens": start == "itself",  # has nothing to align
            "hidden_tokens": start == "itself",
            "fit_sequences": start == "itself",
        }
        for name in (name for name in given if wrong.get(name)):
            raise ConfigError(
                f"linearize.{name}={getattr(self, name)} with model.arch={model.arch!r}: that "
                f"architecture has no such option; set linearize.{name}=0."
            )
        for name in ("matrix_tokens", "fit_sequences"):
            if getattr(self, name) and data.packed:
                raise ConfigError(
                    f"linearize.{name}={getattr(self, name)} with {data.why_packed}: works on "
                    f"whole sequences, and rows of this corpus are packed; set "
                    f"linearize.{name}=0, or take plain text."
                )
        if strategy == "fsdp" and start == "attention":
            raise ConfigError(
                f"parallel.strategy='fsdp' with model.arch={model.arch!r} and linearize.teacher: "
                "starting from attention weights needs the whole model on every device; choose "
                "parallel.strategy=ddp."
            )
        if strategy == "fsdp" and (whole := [n for n in given if n != "lora_rank"]):
            raise ConfigError(
                f"parallel.strategy='fsdp' with linearize.{whole[0]}={getattr(self, whole[0])}: "
                "needs whole models on every device; choose parallel.strategy=ddp, or train "
                "attention transfer in groups of layers (linscale blockwise)."
            )
