"""The `linearize` part of a run's configuration: where the weights come from, and the stages.

    linearize.teacher  ->  stage 1, attention transfer  ->  the rest of the run
                           `transfer_tokens`, may be 0      all weights, or LoRA (`lora_rank`)

The method is the model's architecture, with its own options: `model.arch` is `supra` or `lolcats`,
or `llama`, which goes on training the teacher as it is: the control that has no surgery. The
budget counts the tokens of both stages; the run's schedule, its warm-up and decays, is that of
what follows stage 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ConfigError, ModelConfig
from scaling.parts import Part

STARTS = ("llama", "supra", "lolcats")
"""Architectures that can take over a teacher's weights."""


@dataclass(frozen=True, kw_only=True)
class LinearizeConfig(Part):
    """From which transformer a run starts, and how it learns to do without softmax."""

    teacher: str = ""
    """Run directory, checkpoint or directory in Hugging Face's layout; empty: from scratch. The
    path is part of the run's identity: give it relative to the working directory."""
    transfer_tokens: int = 0
    """Tokens of stage 1, LoLCATs' attention transfer: only feature maps and window factors learn,
    from the teacher's attention outputs. Part of `budget.tokens`. 0: no such stage."""
    transfer_lr: float = 1e-2
    """Learning rate of stage 1, constant; its weight decay is 0. Published: 1e-2, divided by ten
    when ten evaluations a hundred steps apart bring nothing, which a run of 2400 steps can see
    twice at most."""
    cross_entropy: float = 0.0
    """Stage 1: factor of the attention weights' cross-entropy beside 1000 x the squared error.
    Published: 0."""
    lora_rank: int = 0
    """After stage 1 only low-rank additions of this rank to q, k, v and o learn. 0: all weights."""
    lora_alpha: float = 16.0
    """Low-rank additions are scaled by alpha / rank."""

    _prefix = "linearize."

    def _validate(self) -> None:
        self._require("transfer_tokens", self.transfer_tokens >= 0, "at least 0")
        self._require("transfer_lr", 0 < self.transfer_lr < float("inf"), "above 0 and finite")
        self._require("cross_entropy", 0 <= self.cross_entropy < float("inf"), "at least 0")
        self._require("lora_rank", self.lora_rank >= 0, "at least 0")
        self._require("lora_alpha", 0 < self.lora_alpha < float("inf"), "above 0 and finite")

    def check(self, model: ModelConfig, strategy: str) -> None:
        """Rules that take in the model and the devices.

        Raises:
            ConfigError: the architecture has no such stage, or the strategy cannot do it.
        """
        if not self.teacher:
            self._require("transfer_tokens", self.transfer_tokens == 0, "0 without a teacher")
            self._require("lora_rank", self.lora_rank == 0, "0 without a teacher")
            return
        if model.arch not in STARTS:
            raise ConfigError(
                f"model.arch={model.arch!r} with linearize.teacher={self.teacher!r}: it has no "
                f"use for a transformer's weights; choose one of {', '.join(STARTS)}."
            )
        if self.transfer_tokens and model.arch != "lolcats":
            raise ConfigError(
                f"linearize.transfer_tokens={self.transfer_tokens} with model.arch="
                f"{model.arch!r}: attention transfer is LoLCATs' first stage; set "
                "linearize.transfer_tokens=0, or linearize with lolcats."
            )
        if strategy == "fsdp" and (self.transfer_tokens or self.lora_rank):
            raise ConfigError(
                "parallel.strategy='fsdp' with attention transfer or LoRA: these learn a few "
                "parameters of a model that every device holds whole; choose parallel.strategy="
                "ddp, or train groups of layers block by block (scaling.blockwise)."
            )
