"""Students of transformers with the blocks of imported families: all that is not attention stays.

What such a block computes is held to transformers in `test_interop_families`; here it has to be the
same in parallel, step by step, packed and carried on, with any of the attentions in it, and what
attention transfer compares has to be the teacher's.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import accounting
from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.config import ConfigError, ModelConfig, toy_config
from models.flat import nest, settings
from models.language_model import LanguageModel, build
from models.layers import make_span
from models.linearize.initialise import gated_config
from models.linearize.layer_costs import with_softmax_layers
from models.linearize.lolcats import HybridAttention
from models.linearize.options import Linearized, linearized_config
from models.linearize.surgery import linearize
from models.linearize.transfer import attention_weights, layer_losses
from tests.support.imported_blocks import BLOCKS, LIKE_GEMMA, LIKE_OLMO
from tests.support.linearize_oracles import tokens
from tests.support.mixer_contract import MixerContract
from tests.support.model_variants import vary

METHODS: list[Linearized] = [
    Supra(),
    LoLCATs(window=4),
    LoLCATs(window=5, arrangement="sliding", softmax_layers=(1,)),
]


def block_config(arch: str, like: dict[str, Any], **more: Any) -> ModelConfig:
    config = toy_config(arch, 32, vocab_size=61, layers=3, head_dim=8)
    return vary(config, kv_heads=2, **like, **more)


def teacher(like: dict[str, Any], dtype: torch.dtype = torch.float64) -> LanguageModel:
    torch.manual_seed(0)
    model = build(block_config("llama", like, init_std=0.3), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.rand_like(parameter))
    return model.eval()


class TestTeacherLikeGemma(MixerContract):
    config = block_config("llama", LIKE_GEMMA)


@pytest.mark.slow
class TestTeacherLikeOLMo(MixerContract):
    config = block_config("llama", LIKE_OLMO)


def student_config(method: Linearized, like: dict[str, Any]) -> ModelConfig:
    return linearized_config(block_config("llama", like), method)


@pytest.mark.slow
class TestSupraLikeGemma(MixerContract):
    """Heads of 16: SUPRA's norm of smaller ones multiplies bfloat16's rounding."""

    config = linearized_config(
        vary(toy_config("llama", 64, vocab_size=61, layers=2), **LIKE_GEMMA),
        Supra(softmax_layers=(1,)),
    )


@pytest.mark.slow
class TestLoLCATsLikeGemma(MixerContract):
    config = student_config(LoLCATs(window=24, arrangement="sliding"), LIKE_GEMMA)


class TestLoLCATsLikeOLMo(MixerContract):
    config = student_config(LoLCATs(window=24, softmax_layers=(2,)), LIKE_OLMO)


@pytest.mark.parametrize("like", BLOCKS)
@pytest.mark.parametrize("method", METHODS)
def test_surgery_keeps_all_but_the_attention(method: Linearized, like: str) -> None:
    model = teacher(BLOCKS[like])
    student = linearize(copy.deepcopy(model), method)
    for name, tensor in model.state_dict().items():
        assert torch.equal(student.state_dict()[name], tensor), name
    groups = accounting.parameters(student.config)
    assert sum(groups.values()) == sum(p.numel() for p in student.parameters())
    # With softmax in every layer it is the teacher.
    back = with_softmax_layers(linearize(copy.deepcopy(model), type(method)()), (0, 1, 2))
    text = tokens(2, 50)
    with torch.no_grad():
        torch.testing.assert_close(back(text), model(text), rtol=0, atol=1e-12)


@pytest.mark.parametrize("like", BLOCKS)
def test_transfer_runs_on_the_teachers_stream(like: str) -> None:
    """The hidden states that each layer is compared on are the teacher's own."""
    model = teacher(BLOCKS[like])
    student = linearize(copy.deepcopy(model), LoLCATs(window=4))
    text, seen = tokens(2, 40), {"teacher": list[Tensor](), "student": list[Tensor]()}

    def keep(place: list[Tensor]) -> Any:
        return lambda _, args: place.append(args[0].detach())

    for who, net in (("teacher", model), ("student", student)):
        for block in net.blocks:
            norm: nn.Module = block.channel_norm  # pyright: ignore[reportAssignmentType]
            norm.register_forward_pre_hook(keep(seen[who]))
    model(text)
    for _ in layer_losses(student, text):
        pass
    # The last layer's is needed by nobody.
    assert len(seen["student"]) == 2
    for theirs, mine in zip(seen["teacher"], seen["student"], strict=False):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
@pytest.mark.parametrize("like", BLOCKS)
def test_attention_weights_reproduce_the_outputs(like: str, arrangement: str) -> None:
    student = linearize(teacher(BLOCKS[like]), LoLCATs(window=4, arrangement=arrangement))  # pyright: ignore[reportArgumentType]
    text = tokens(1, 50)
    span = make_span(text, None, None, False)
    x, shared, _ = student.stem(student.embedding(text), span, None)
    for layer, block in enumerate(student.blocks):
        attention = block.mixer
        assert isinstance(attention, HybridAttention)
        q, k, theirs, mine = attention.compare(x, span, shared[layer])
        v = attention._project(x, shared[layer])[2].repeat_interleave(2, 2)
        weights = attention_weights(attention, q, k, span)
        for weight, output in zip(weights, (mine, theirs), strict=True):
            torch.testing.assert_close(torch.einsum("bhij,bjhv->bihv", weight, v), output)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("like", BLOCKS)
def test_records_and_exports_hold_every_option(like: str, method: Linearized) -> None:
    config = student_config(method, BLOCKS[like])
    assert ModelConfig.from_json(config.to_json()) == config
    assert ModelConfig.from_json(nest(settings(config))) == config


def test_gated_models_refuse_what_they_have_no_place_for() -> None:
    for like in BLOCKS.values():
        with pytest.raises(ConfigError, match=r"of the teacher: tnl has no such thing"):
            gated_config(block_config("llama", like), "tnl")
