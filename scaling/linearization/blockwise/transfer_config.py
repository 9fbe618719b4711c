"""What a block-wise attention transfer is: teacher, data, groups, and how they learn."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from models import flat
from models.architectures.llama import rope_scaling
from models.architectures.lolcats import LoLCATs
from models.config import ConfigError, ModelConfig
from models.fields import Part
from models.linearize.options import linearized_config
from scaling.config.parts import DataConfig


@dataclass(frozen=True, kw_only=True)
class Blockwise(Part):
    """One block-wise attention transfer.

    Raises:
        ConfigError: a value is out of range, or the teacher cannot be linearized.
    """

    name: str
    """Short name."""
    teacher: str
    """Directory in Hugging Face's layout (of a run: what `linscale export` writes). A plan does
    not read it."""
    model: ModelConfig
    """The teacher's configuration."""
    lolcats: LoLCATs = field(default_factory=LoLCATs)
    """Attention of the student."""
    data: DataConfig
    """Text, and the shape of a batch; its tokenizer has to be the teacher's."""
    tokens: int
    """Tokens whose activations are kept; rounded to whole batches."""
    epochs: int = 2
    """How often each of them is learned from. Published: 2."""
    group_layers: int
    """Layers of a group. Published: 5 for 70B and 9 for 405B."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the frozen weights and of the activations, in memory and on disk. What learns is
    float32."""
    lr: float = 1e-2
    """Learning rate, constant; no weight decay. Published: 1e-2, reduced on plateaus."""
    cross_entropy: float = 0.0
    """Factor of the attention weights' cross-entropy beside 1000 x the squared error."""
    seed: int = 0
    """Of the order of batches and of the fresh weights."""

    def _validate(self) -> None:
        linearized_config(self.model, self.lolcats)
        batch = self.data.batch_sequences * self.data.sequence_length
        self._require("tokens", self.tokens >= batch, f"at least one batch, {batch} tokens")
        self._require("epochs", self.epochs >= 1, "at least 1")
        self._require("group_layers", self.group_layers >= 1, "at least 1")
        self._require("lr", 0 < self.lr < float("inf"), "above 0 and finite")
        self._require("cross_entropy", 0 <= self.cross_entropy < float("inf"), "at least 0")

    @property
    def student(self) -> ModelConfig:
        """Configuration of the linearized model."""
        return linearized_config(self.model, self.lolcats)

    @property
    def groups(self) -> list[range]:
        """The layers of each group; the last may have fewer."""
        layers, size = self.model.layers, self.group_layers
        return [range(at, min(at + size, layers)) for at in range(0, layers, size)]

    @property
    def batches(self) -> int:
        """Batches whose activations are kept."""
        return self.tokens // (self.data.batch_sequences * self.data.sequence_length)

    @property
    def steps(self) -> int:
        """Optimizer steps of a group."""
        return self.batches * self.epochs

    @property
    def cached_tokens(self) -> int:
        """Tokens in whole batches."""
        return self.batches * self.data.batch_sequences * self.data.sequence_length

    def group(self, number: int) -> range:
        """The layers of group `number`.

        Raises:
            ConfigError: there is no such group.
        """
        if not 0 <= number < len(self.groups):
            raise ConfigError(
                f"group {number}: {self.name} has groups 0 to {len(self.groups) - 1}, of "
                f"{self.group_layers} layers each."
            )
        return self.groups[number]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    def digest(self) -> str:
        """Hash of all that the numbers depend on: everything but the name."""
        values = {key: value for key, value in self.to_json().items() if key != "name"}
        # In the layout that earlier transfers were named by.
        values["model"] = _without_later(flat.settings(self.model), self.model)
        del values["lolcats"]["llama"]
        for name in ("sink_tokens", "shared_state"):
            if not getattr(self.lolcats, name):
                del values["lolcats"][name]
        if not self.data.document_mask:
            del values["data"]["document_mask"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_FIRST = ("glu_bias", "glu_activation", "mup_base_dim")
"""Later fields of a model that the first layout had."""


def _without_later(settings: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """Settings less the fields that came after the first transfers, where they stand at their
    default; and with the transformer's own later options, where they do not."""

    def later(part: Any) -> dict[str, bool]:
        """Later field -> whether it was set."""
        return {
            f.name: getattr(part, f.name) != f.default
            for f in fields(part) if f.metadata.get("later") and f.name not in _FIRST
        }  # fmt: skip

    unset = {name for name, was_set in later(model).items() if not was_set}
    options = {name: getattr(model.options, name)
               for name, was_set in later(model.options).items() if was_set}  # fmt: skip
    kept = {name: value for name, value in settings.items() if name not in unset}
    scaling = rope_scaling(model)
    if scaling is not None:
        newer = {name for name, was_set in later(scaling).items() if not was_set}
        kept["rope_scaling"] = {n: v for n, v in kept["rope_scaling"].items() if n not in newer}
    return kept | ({"options": options} if options else {})
