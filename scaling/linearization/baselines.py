"""What a linearization is compared with, untrained: the teacher's weights with a window alone.

    window               the student's window, without sinks
    window + sink        and the first token (the student's own sinks, where it has more)
    equal window         a sliding window that holds as many bytes as the student's state
    equal window + sink  the same bytes, one key of which is the first token

Layers that keep their softmax do so here too. Bytes: recurrent states in float32, keys and values
in the run's precision, at its sequence length; a window of w keys is counted as w keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from models.accounting import kv_cache_bytes, state_bytes
from models.architectures.llama import LlamaOptions, softmax
from models.architectures.lolcats import LoLCATs
from models.config import ModelConfig
from models.language_model import LanguageModel, build
from models.linearize.layer_costs import with_softmax_layers
from models.linearize.options import linearized, linearized_config
from models.linearize.surgery import linearize
from scaling.config.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A window alone."""

    options: LoLCATs
    state_bytes: int
    """Of one sequence as long as the run's."""


def itemsize(config: RunConfig) -> int:
    """Bytes of a cached number in the run's precision."""
    return 2 if config.parallel.bf16 else 4


def held_bytes(model: ModelConfig, config: RunConfig) -> int:
    """State and cache of one sequence as long as the run's."""
    caches = kv_cache_bytes(model, config.data.sequence_length, itemsize=itemsize(config))
    return state_bytes(model) + caches


def windows(config: RunConfig, teacher: ModelConfig) -> dict[str, Baseline]:
    """The baselines of a run by name.

    Args:
        config: of a linearized run.
        teacher: its softmax model, `arch="llama"`.
    """
    model, length = config.model, config.data.sequence_length
    kept = model.softmax_layers
    linear = model.layers - len(kept)
    if not linear:
        return {}
    caches = [softmax(teacher, layer) for layer in range(teacher.layers)]
    key = 2 * caches[0].key_width * itemsize(config)  # one key with its value, a layer
    kept_bytes = sum(key * caches[layer].held(length) for layer in kept)

    def alone(window: int, sinks: int, arrangement: Any) -> LoLCATs:
        return LoLCATs(
            feature_map="none", window=window, arrangement=arrangement, sink_tokens=sinks,
            softmax_layers=kept,
        )  # fmt: skip

    found: dict[str, Baseline] = {}
    own = model.options
    if isinstance(own, LoLCATs):
        for name, sinks in (("window", 0), ("window + sink", max(1, own.sink_tokens))):
            options = alone(own.window, sinks, own.arrangement)
            size = held_bytes(linearized_config(teacher, options), config)
            found[name] = Baseline(options=options, state_bytes=size)
    keys = (held_bytes(model, config) - kept_bytes) // (linear * key)
    keys = max(2, min(length, keys))
    for name, sinks in (("equal window", 0), ("equal window + sink", 1)):
        options = alone(keys - sinks, sinks, "sliding")
        size = linear * key * keys + kept_bytes
        found[name] = Baseline(options=options, state_bytes=size)
    return found


def own_window(model: ModelConfig) -> str | None:
    """Name of the baseline with the student's own window and sinks; None where it has none."""
    if not isinstance(model.options, LoLCATs):
        return None
    return "window + sink" if model.options.sink_tokens else "window"


def measure(
    config: RunConfig, teacher: LanguageModel, losses: Callable[[LanguageModel], Tensor]
) -> dict[str, tuple[Baseline, Tensor]]:
    """Each baseline with its loss on every validation block.

    Args:
        config: of a linearized run.
        teacher: a softmax model.
        losses: of a model.
    """
    return {
        name: (baseline, losses(linearize(teacher, baseline.options)))
        for name, baseline in windows(config, teacher.config).items()
    }


def softmax_form(teacher: LanguageModel) -> LanguageModel:
    """The softmax model on a teacher's tensors: itself, or of a linearized one what it was."""
    if linearized(teacher.config) is None:
        return teacher
    whole = with_softmax_layers(teacher, tuple(range(teacher.config.layers)))
    options = linearized(whole.config)
    assert options is not None
    model = build(
        whole.config.replace(arch="llama", options=options.llama),
        device="meta",
        dtype=whole.embedding.weight.dtype,
    )
    model.load_state_dict(whole.state_dict(), assign=True)
    return model.eval()


def is_linearized(config: RunConfig) -> bool:
    """Whether a run's model has lost softmax layers of its teacher."""
    return not isinstance(config.model.options, LlamaOptions)
