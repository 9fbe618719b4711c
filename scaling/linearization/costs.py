"""Training FLOPs of a token by the objectives of a linearization, as closed forms.

With F the forward FLOPs of a term (`models.accounting`, `exact` convention), a token costs

    transfer    the teacher's F, without the head, and 3 x the F of feature maps and new attentions;
                with the error of the residual stream 2 x the F of the students' output projections
    matrices    the teacher's F, without the head, and the T x T matrices of both, 1 + 3 x
    hidden      2 x the teacher's F and 3 x the student's, without the heads
    lora        3 F of the attention products, 2 F of everything else, whose weights are frozen,
                and 6 FLOPs for each parameter of the low-rank additions
    full        3 F, as in any run
    on logits   in `lora` and `full` the teacher's F as well

The frozen first layer's share of the backward pass is counted though autograd leaves it out;
fitting outputs is not counted.
"""

from __future__ import annotations

from dataclasses import replace

from models.accounting import forward_flops_per_token, mean_keys, parameters
from models.architecture import Options
from models.architectures.llama import LlamaBased, key_value_heads
from models.config import ModelConfig
from scaling.config.run import RunConfig
from scaling.plan.costs import Cost, forward_flops


def transfer(config: RunConfig) -> float:
    """FLOPs of a token in attention transfer."""
    model, forward, teacher = config.model, forward_flops(config), _teacher_flops(config)
    kept = teacher["attention"] * len(model.softmax_layers) / model.layers
    flops = _without_head(teacher) + 3 * (forward["attention"] - kept + forward["feature_map"])
    if config.linearize.transfer_error == "residual":  # whose weights are frozen
        linear = model.layers - len(model.softmax_layers)
        flops += 2 * linear * 2.0 * model.dim * model.heads * model.head_dim
    return flops


def matrices(config: RunConfig) -> float:
    """FLOPs of a token where mixing matrices are aligned."""
    own = _matrix_flops(config.model, config.data.sequence_length)
    return _without_head(_teacher_flops(config)) + own + 3 * own


def hidden(config: RunConfig) -> float:
    """FLOPs of a token where block outputs are aligned."""
    student = _without_head(forward_flops(config))
    return 2 * _without_head(_teacher_flops(config)) + 3 * student


def low_rank(config: RunConfig) -> Cost:
    """Of low-rank additions on the text."""
    forward = forward_flops(config)
    learning = lora_parameters(config.model, config.linearize.lora_rank)
    return Cost(
        flops=2 * sum(forward.values()) + forward["attention"] + 6 * learning, parameters=learning
    )


def distilled(config: RunConfig, own: Cost) -> Cost:
    """Of what costs `own` on the text, on the teacher's logits."""
    flops = own.flops + sum(_teacher_flops(config).values())
    return replace(own, flops=flops, teacher_parameters=teacher_parameters(config))


def teacher_parameters(config: RunConfig) -> int:
    """Parameters of the teacher."""
    return sum(parameters(_teacher(config.model)).values())


def lora_parameters(model: ModelConfig, rank: int) -> int:
    """Parameters of low-rank additions to q, k, v and o of every layer: rank x (in + out)."""
    queries, keys = model.heads * model.head_dim, key_value_heads(model) * model.head_dim
    outputs = ((model.dim, queries), (model.dim, keys), (model.dim, keys), (queries, model.dim))
    return model.layers * rank * sum(a + b for a, b in outputs)


def _teacher_flops(config: RunConfig) -> dict[str, float]:
    """Forward FLOPs of a token by term in the teacher."""
    keys = mean_keys(config.data.sequence_length)
    return forward_flops_per_token(_teacher(config.model), keys)


def _without_head(forward: dict[str, float]) -> float:
    return sum(forward.values()) - forward["head"]


def _teacher(model: ModelConfig) -> ModelConfig:
    """The transformer of a student; of a TNL and its kin as if it had as many key-value heads, and
    a head of its own."""
    options = model.options
    llama = options.llama if isinstance(options, LlamaBased) else Options()
    return model.replace(arch="llama", options=llama)


def _matrix_flops(model: ModelConfig, length: int) -> float:
    """Of the mixing matrices of all layers and a token, forward: T products of K channels a head,
    twice (kernels get the T unit vectors as values), and the projections of q and k."""
    width = model.heads * model.head_dim
    layers = model.layers - len(model.softmax_layers)
    return layers * (4.0 * length * width + 4.0 * model.dim * width)
