"""One set of hyper-parameters for all widths: the maximal update parametrisation (muP).

With `ModelConfig.mup_base_dim` = d0 and m = d / d0, a model of width d starts and learns such that
neither its activations nor what a step changes in them grow or vanish with m. Learning rate,
initial spread s and weight decay are then those that suit width d0; at d = d0 nothing changes.

| parameters                              | fan-in | fan-out | spread      | Adam's rate |
|-----------------------------------------|--------|---------|-------------|-------------|
| embedding; expansion of a low-rank gate | fixed  | ~ d     | s           | lr          |
| matrices between wide layers            | ~ d    | ~ d     | s / sqrt(m) | lr / m      |
| reduction of a low-rank gate            | ~ d    | fixed   | s / m       | lr / m      |
| head, tied or not; logits times 1 / m   | ~ d    | fixed   | s           | lr          |
| biases, norm weights, angles, decays,   | -      | -       | as they are | lr          |
| bounds, what acts inside a head         |        |         |             |             |

Yang et al., arXiv 2203.03466: Table 8, the form that allows a tied head; the third row is the
output weight of Table 3, which is the same without a multiplier. Adam's eps is divided by m, as
all gradients are (their appendix B.3). Weight decay of the slower matrices is multiplied by m, so
that a step shrinks them by the same share at every width (lr x decay).

Width here means more heads of the same dimension, as in all sizes of the paper. What happens inside
a head therefore has a fixed size, and needs no rule:

* softmax attention: q k^T sums over the channels of one head, so 1 / sqrt(d/h) is a constant. (A
  wider head would want 1 / (d/h), the paper's definition 4.1.)
* the state of the linear mixers, k v^T, and its reading, S^T q, sum over the channels of one head
  and over tokens. The norm over all heads that follows divides by a mean over d channels, which
  converges as d grows; it also takes out any scale of q and k.
* decay slopes (TNL) and lower bounds (HGRN2) act channel by channel, like a bias; LRPE's angles
  depend on the share c / d of a channel, so their distribution is that of d0; TPE's matrices act
  inside a head.
* the gated channel mixers multiply two wide activations of fixed size: again one of fixed size.

Which dimensions grow with the width is read off the model: it is built twice on the meta device,
once with twice as many heads. So the rules hold for a new architecture as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models import layer_pattern
from models.config import ModelConfig
from models.errors import ConfigError

if TYPE_CHECKING:
    from models.language_model import LanguageModel


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the weight of one module follows the width."""

    spread: float
    """Factor on the initial standard deviation."""
    rate: float
    """Factor on the learning rate."""


def multiplier(config: ModelConfig) -> float:
    """m: how many times wider than the base; 1 without muP."""
    return 1.0 if config.mup_base_dim is None else config.dim / config.mup_base_dim


def mark(model: LanguageModel) -> None:
    """Give every matrix of a model under construction its `width_rule`.

    Raises:
        ConfigError: a parameter is none of the kinds that there are rules for.
    """
    config = model.config
    with torch.device("meta"):
        wide = dict(type(model)(_twice_as_wide(config)).named_modules())
    m = multiplier(config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not model.head:
            grown = wide[name]
            assert isinstance(grown, nn.Linear)
            fan_in = m if grown.in_features > module.in_features else 1.0
            fan_out = m if grown.out_features > module.out_features else 1.0
            spread = fan_in**-0.5 if fan_out == fan_in else 1 / fan_in
            module.width_rule = Rule(spread=spread, rate=1 / fan_in)  # pyright: ignore[reportArgumentType]
        elif not isinstance(module, nn.Linear | nn.Embedding):
            for local, parameter in module.named_parameters(recurse=False):
                _check(f"{name}.{local}", parameter, wide[name].get_parameter(local))


def rates(model: nn.Module) -> dict[Tensor, float]:
    """Factor on the learning rate of every parameter for which it is not 1."""
    rules = ((module, getattr(module, "width_rule", None)) for module in model.modules())
    return {module.weight: rule.rate for module, rule in rules if rule and rule.rate != 1}  # pyright: ignore[reportReturnType,reportAttributeAccessIssue]


def _twice_as_wide(config: ModelConfig) -> ModelConfig:
    mixers = config.mixers
    if mixers is not None:
        mixers = layer_pattern.widened(mixers, config.arch, config.options, 2)
    return config.replace(
        dim=2 * config.dim,
        heads=2 * config.heads,
        options=config.options.widened(2),
        mixers=mixers,
        glu_dim=2 * config.glu_dim,
        mup_base_dim=None,
    )


def _check(name: str, parameter: Tensor, wide: Tensor) -> None:
    """Refuse a parameter, of a module that is no `nn.Linear`, that mixes two wide dimensions."""
    if sum(a != b for a, b in zip(parameter.shape, wide.shape, strict=True)) > 1:
        raise ConfigError(
            f"model.mup_base_dim: {name} is a matrix between wide layers in a module that is no "
            "nn.Linear, for which there is no rule; build it as nn.Linear, or leave mup_base_dim "
            "out."
        )


def unscaled(model: LanguageModel) -> LanguageModel:
    """The same function without muP, for formats that do not know it.

    The factor 1 / m of the logits goes into the head, which is then one of its own. The other
    weights are shared with `model`.
    """
    if model.config.mup_base_dim is None:
        return model
    config = model.config.replace(mup_base_dim=None, tie_embeddings=False)
    with torch.device("meta"):
        plain = type(model)(config)
    weights = model.state_dict()
    weights["head.weight"] = model.head_weight.detach() / multiplier(model.config)
    plain.load_state_dict(weights, assign=True)
    for name, buffer in model.named_buffers():
        parent, _, local = name.rpartition(".")
        plain.get_submodule(parent)._buffers[local] = buffer
    return plain.train(model.training)
