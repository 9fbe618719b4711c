"""Starting a TNL, HGRN2, cosFormer2, GLA or delta rule from a transformer's weights.

| weight here         | start                                                                    |
|---------------------|--------------------------------------------------------------------------|
| embedding, head, GLU| the teacher's                                                            |
| norms               | have no weights here: the teacher's go into the matrices after them      |
| q, k, v, output     | the teacher's; under grouped-query attention k and v once a query head   |
| HGRN2's gate logits | minus the teacher's k: the written 1 - f = (1 - lb) sigmoid(k) rises     |
|                     | with k (gates from key projections: Liger, arXiv 2503.01496)             |
| short convolution   | each token its own alone                                                 |
| output gate, decays | fresh, as are the delta rule's shares                                    |

Layers may keep the teacher's softmax attention: the student is then a hybrid
(`models.layer_pattern`).

Softmax mixes values by weights that sum to one; these mixers norm a sum instead. `fit_outputs`
makes up for what a linear map can: the output projection of each layer becomes the least-squares
solution that maps what reaches it, on the teacher's hidden states, to the teacher's output.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.architecture import BUILT_IN, find
from models.architectures.llama import LlamaOptions
from models.config import ConfigError, ModelConfig
from models.fields import build as build_part
from models.fields import hints
from models.language_model import Block, LanguageModel, build
from models.layer_pattern import Mixer, write
from models.layers import RMSNorm, make_span
from models.linearize.feature_maps import repeat_heads
from models.llama import SoftmaxAttention

STARTED = tuple(name for name in BUILT_IN if find(name).starts_from == "attention")
"""Built-in architectures that can start from attention weights."""


def gated_config(
    teacher: ModelConfig, arch: str, *, keep: Collection[int] = (), **changes: Any
) -> ModelConfig:
    """The configuration of a linear model that can take a transformer's weights.

    Args:
        teacher: a LLaMA without biases whose heads share its width.
        arch: one of `STARTED`, or your own that says `starts_from="attention"`.
        keep: layers, counted from 0, that keep the teacher's softmax attention.
        changes: options of the linear model, such as `decay_slopes`.

    Raises:
        ConfigError: one of the two is another model.
    """
    architecture = find(arch)
    if architecture.starts_from != "attention":
        raise ConfigError(
            f"model.arch={arch!r}: cannot start from attention weights here; choose one of "
            f"{', '.join(STARTED)}, or supra and lolcats by models.linearize.surgery."
        )
    theirs = teacher.options
    wrong = {"arch": teacher.arch, "glu_bias": teacher.glu_bias}
    if isinstance(theirs, LlamaOptions):
        same = teacher.heads * teacher.head_dim == teacher.dim
        wrong = {
            "glu_bias": teacher.glu_bias,
            "options.head_size": None if same else theirs.head_size,
            "options.qkv_bias": theirs.qkv_bias,
            "options.out_bias": theirs.out_bias,
        }
        wrong |= _imported(teacher)
    for name, value in ((name, value) for name, value in wrong.items() if value):
        raise ConfigError(
            f"model.{name}={value!r} of the teacher: {arch} has no such thing; "
            "only a llama without biases, with heads of dim / heads channels, can start it."
        )
    assert isinstance(theirs, LlamaOptions)
    own = ("vocab_size", "dim", "layers", "heads", "glu_dim", "norm_eps", "init_std")
    values: dict[str, Any] = {name: getattr(teacher, name) for name in own}
    # The final norm's weight goes into the head, which is then no longer the embedding.
    values |= {
        "arch": arch,
        "glu_activation": teacher.gate_activation,
        "tie_embeddings": False,
    }
    known = hints(architecture.options)
    # Keys and values as wide as the teacher's.
    wanted = {
        "rope_base": theirs.rope_base,
        "key_ratio": 1.0,
        "key_size": teacher.head_dim,
        "value_expansion": 1.0,
    }
    base = {name: value for name, value in wanted.items() if name in known}
    config = ModelConfig(**values, options=build_part(architecture.options, base | changes))
    return keep_attention(config, theirs, keep)


def keep_attention(
    config: ModelConfig, attention: LlamaOptions, keep: Collection[int]
) -> ModelConfig:
    """A `gated_config` with a transformer's softmax attention in exactly these layers.

    Raises:
        ConfigError: there is no such layer.
    """
    if strange := sorted(set(keep) - set(range(config.layers))):
        raise ConfigError(
            f"keep={tuple(keep)}: there is no layer {strange[0]}; the last is {config.layers - 1}."
        )
    linear, softmax = Mixer(config.arch, config.options), Mixer("llama", attention)
    each = [softmax if layer in keep else linear for layer in range(config.layers)]
    pattern = write(each, config.arch, config.options) if keep else None
    return config.replace(mixers=pattern)


def _imported(teacher: ModelConfig) -> dict[str, Any]:
    """What a teacher's blocks have beside the paper's: name -> value."""
    parts: list[tuple[str, Any]] = [("", teacher), ("options.", teacher.options)]
    return {
        prefix + known.name: getattr(part, known.name)
        for prefix, part in parts
        for known in fields(part)
        if known.metadata.get("later")
        and known.name not in ("glu_bias", "glu_activation", "mup_base_dim")
        and getattr(part, known.name) != known.default
    }


def from_attention(teacher: LanguageModel, arch: str, **changes: Any) -> LanguageModel:
    """A linear model with a transformer's weights; see the module docstring.

    Fresh weights come from torch's global random state. No tensor is shared.

    Raises:
        ConfigError: as `gated_config`.
    """
    weight = teacher.embedding.weight
    config = gated_config(teacher.config, arch, **changes)
    model = build(config, device=weight.device, dtype=weight.dtype)
    start_from(model, teacher)
    return model.train(teacher.training)


@torch.no_grad()
def start_from(model: LanguageModel, teacher: LanguageModel) -> None:
    """Give a model of a `gated_config` the teacher's weights, in place; what is fresh stays."""
    model.embedding.weight.copy_(teacher.embedding.weight)
    assert model.head is not None
    model.head.weight.copy_(teacher.head_weight * _scale(teacher.norm))
    for ours, theirs in zip(model.blocks, teacher.blocks, strict=True):
        _start_block(cast(Block, ours), cast(Block, theirs))


def _start_block(ours: Block, theirs: Block) -> None:
    attention, mixer = cast(SoftmaxAttention, theirs.mixer), ours.mixer
    size, heads = attention.head_dim, attention.heads
    sizes = [heads * size, attention.kv_heads * size, attention.kv_heads * size]
    q, k, v = (
        repeat_heads(part.unflatten(0, (-1, size)).movedim(0, -2), heads)
        .movedim(-2, 0)
        .flatten(0, 1)
        for part in (attention.qkv.weight * _scale(theirs.mixer_norm)).split(sizes)
    )
    if type(mixer) is SoftmaxAttention:  # it is kept, with as many key-value heads
        mixer.qkv.weight.copy_(attention.qkv.weight * _scale(theirs.mixer_norm))
        mixer.out.weight.copy_(attention.out.weight)
    else:
        mixer.take_attention(q, k, v, attention.out.weight)
    scale = _scale(theirs.channel_norm)
    ours.channel.up.weight.copy_(theirs.channel.up.weight * scale)
    ours.channel.gate.weight.copy_(theirs.channel.gate.weight * scale)
    ours.channel.down.weight.copy_(theirs.channel.down.weight)


def _scale(norm: nn.Module) -> Tensor:
    """A norm's weight, (d,)."""
    return cast(RMSNorm, norm).factors()


@torch.no_grad()
def fit_outputs(
    student: LanguageModel, teacher: LanguageModel, tokens: Tensor, ridge: float = 1e-3
) -> dict[int, float]:
    """Solve the output projection of every linear layer for the teacher's attention, in place.

    With z (n, H V) what reaches the projection and y (n, d) the output of the teacher's attention,
    both on the teacher's hidden states: W = argmin |z W^T - y|^2 + ridge |z|^2 / (H V) |W|^2.

    Args:
        student: any model of the teacher's depth and width; shares no tensors with it.
        teacher: a softmax model.
        tokens: (B, T), preferably ten times as many as the model is wide.
        ridge: of the mean square of z, against directions that z hardly has.

    Returns:
        Layer -> share of y's mean square that is not explained.
    """
    span = make_span(tokens, None, None, False)
    x, shared, _ = teacher.stem(teacher.embedding(tokens), span, None)
    errors: dict[int, float] = {}
    reached: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor]) -> None:
        reached.append(args[0])

    for layer, (mine, theirs) in enumerate(zip(student.blocks, teacher.blocks, strict=True)):
        ours, block = cast(Block, mine), cast(Block, theirs)
        y = block.mixer(block.mixer_norm(x), span, shared[layer], None)[0].flatten(0, 1)
        if layer not in student.config.softmax_layers:
            out = cast(nn.Linear, ours.mixer.out)
            hook = out.register_forward_pre_hook(keep)
            ours.mixer(ours.mixer_norm(x), span, student.stem(x, span, None)[1][layer], None)
            hook.remove()
            z, goal = reached.pop().flatten(0, 1).double(), y.double()
            gram = z.mT @ z
            gram.diagonal().add_(ridge * gram.diagonal().mean())
            weight = torch.linalg.solve(gram, z.mT @ goal)  # (H V, d)
            errors[layer] = float((z @ weight - goal).square().sum() / goal.square().sum())
            out.weight.copy_(weight.mT)
            if out.bias is not None:
                out.bias.zero_()
        x, _ = block(x, span, shared[layer], None)
    return errors
