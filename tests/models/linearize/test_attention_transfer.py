"""Attention transfer and LoRA: losses, gradients, what learns, and how much of it there is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from models.architectures.llama import LlamaOptions
from models.architectures.lolcats import LoLCATs
from models.config import ConfigError, ModelConfig, toy_config
from models.language_model import build
from models.layers import make_span
from models.linearize.lolcats import HybridAttention
from models.linearize.lora import add_lora, merge_lora
from models.linearize.surgery import linearize
from models.linearize.transfer import (
    attention_transfer_loss,
    attention_weights,
    count_trained,
    far_error,
    freeze_for_transfer,
    layer_losses,
)
from tests.support.linearize_oracles import dense_lolcats, mixer, teacher, tokens


def test_transfer_loss_is_the_error_of_the_heads_outputs() -> None:
    model = teacher()
    student = linearize(model, LoLCATs(window=4, softmax_layers=(1,)))
    text = tokens(2, 15)
    losses = attention_transfer_loss(student, text)
    # The teacher's residual stream, from hooks on the softmax model itself.
    inputs: dict[int, Tensor] = {}
    heads: dict[int, Tensor] = {}

    def keep(place: dict[int, Tensor], layer: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, args: place.update([(layer, args[0])])

    for layer in (0, 2):
        attention = mixer(model, layer)
        attention.register_forward_pre_hook(keep(inputs, layer))
        cast(nn.Module, attention.out).register_forward_pre_hook(keep(heads, layer))
    model(text)
    expected = []
    for layer in (0, 2):
        attention = mixer(student, layer)
        assert isinstance(attention, HybridAttention)
        plain = copy.deepcopy(attention)
        cast(nn.Parameter, plain.out.weight).data = torch.eye(32, dtype=torch.float64)
        student_heads = dense_lolcats(plain, inputs[layer], model.config)
        expected.append(1000 * (student_heads - heads[layer]).square().mean())
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norms", ["pre", "both"])
def test_error_of_what_reaches_the_residual_stream(norms: str) -> None:
    """The difference of the two blocks' inputs to their channel mixers, from hooks."""
    model = teacher(norms=norms)
    student = linearize(model, LoLCATs(window=4))
    text, after = tokens(2, 15), []
    losses = attention_transfer_loss(student, text, at="residual")
    span = make_span(text, None, None, False)
    x, shared, _ = model.stem(model.embedding(text), span, None)
    expected = []

    def keep(_: nn.Module, args: tuple[Tensor]) -> None:
        after.append(args[0])

    for layer, (block, mine) in enumerate(zip(model.blocks, student.blocks, strict=True)):
        for part in (block, mine):
            hook = cast(nn.Module, part.channel_norm).register_forward_pre_hook(keep)
            out, _ = part(x, span, shared[layer], None)
            hook.remove()
            after.append(out)
        theirs, whole, ours, _ = after
        expected.append(1000 * (ours - theirs).square().mean())
        x = whole
        after.clear()
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared_state", [False, True])
@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
def test_attention_weights_reproduce_the_outputs(arrangement: str, shared_state: bool) -> None:
    options = LoLCATs(window=4, arrangement=arrangement, shared_state=shared_state)  # pyright: ignore[reportArgumentType]
    student = linearize(teacher(), options)
    attention = mixer(student, 0)
    assert isinstance(attention, HybridAttention)
    text = tokens(1, 19)
    for lengths in (None, torch.tensor([0, 8, 19], dtype=torch.int32)):
        span = make_span(text, None, lengths, False)
        x, shared, _ = student.stem(student.embedding(text), span, None)
        q, k, theirs, mine = attention.compare(x, span, shared[0])
        v = attention.qkv(x)[..., -16:].unflatten(-1, (2, 8)).repeat_interleave(2, 2)
        for weights, output in zip(
            attention_weights(attention, q, k, span), (mine, theirs), strict=True
        ):
            torch.testing.assert_close(torch.einsum("bhij,bjhv->bihv", weights, v), output)


@pytest.mark.parametrize("cross_entropy", [0.0, 1.0])
def test_transfer_lowers_the_loss_of_every_layer(cross_entropy: float) -> None:
    student = linearize(
        teacher(torch.float32, init_std=0.2), LoLCATs(window=4, feature_map="hedgehog")
    )
    frozen = {name: p.clone() for name, p in student.named_parameters()}
    learning = freeze_for_transfer(student)
    optimizer = torch.optim.AdamW(learning, lr=0.01, weight_decay=0)
    text = tokens(4, 48)
    before = attention_transfer_loss(student, text, cross_entropy=cross_entropy)
    for _ in range(30):
        optimizer.zero_grad()
        for _, loss in layer_losses(student, text, cross_entropy=cross_entropy):
            loss.backward()
        optimizer.step()
    after = attention_transfer_loss(student, text, cross_entropy=cross_entropy)
    assert (after < before * (0.8 if cross_entropy == 0 else 0.999)).all(), (before, after)
    for name, parameter in student.named_parameters():
        learns = "_map." in name or ".factor." in name
        assert parameter.requires_grad == learns
        assert torch.equal(parameter, frozen[name]) != learns, name


def test_layer_losses_do_not_share_a_graph() -> None:
    """Backward layer by layer gives the gradients of the sum."""
    student = linearize(teacher(), LoLCATs(window=4))
    learning, text = freeze_for_transfer(student), tokens(2, 12)
    attention_transfer_loss(student, text).sum().backward()
    whole = [p.grad for p in learning]
    student.zero_grad()
    for _, loss in layer_losses(student, text):
        loss.backward()
    for actual, expected in zip(learning, whole, strict=True):
        torch.testing.assert_close(actual.grad, expected, rtol=1e-12, atol=1e-12)


def test_lora_starts_as_nothing_learns_and_merges() -> None:
    model = linearize(teacher(qkv_bias=True), LoLCATs(window=4, softmax_layers=(2,)))
    text = tokens(2, 12)
    before = model(text)
    learning = add_lora(model, rank=2, alpha=4.0)
    torch.testing.assert_close(model(text), before, rtol=0, atol=0)
    # q 32, k 16, v 16 and o 32 outputs of 32 inputs, rank 2, in three layers.
    assert sum(p.numel() for p in learning) == 3 * 2 * (4 * 32 + 32 + 16 + 16 + 32)
    assert count_trained(model).parameters == sum(p.numel() for p in learning)
    optimizer = torch.optim.Adam(learning, lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        loss = model.loss(text[:, :-1], text[:, 1:]).mean()
        loss.backward()
        optimizer.step()
    trained = model(text)
    assert (trained - before).abs().max() > 0.01
    with pytest.raises(ConfigError, match="merge first"):
        add_lora(model)
    merge_lora(model)
    torch.testing.assert_close(model(text), trained, rtol=1e-9, atol=1e-9)
    plain = build(model.config, dtype=torch.float64)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(text), trained, rtol=1e-9, atol=1e-9)


def test_trained_parameters_of_llama_3_8b() -> None:
    """Feature maps, factors and LoRA of Llama 3 8B, counted without its weights."""
    config = ModelConfig(
        arch="llama", vocab_size=128_256, dim=4096, layers=32, heads=32, glu_dim=14336,
        options=LlamaOptions(kv_heads=8), tie_embeddings=False,
    )  # fmt: skip
    student = linearize(build(config, device="meta"), LoLCATs())
    freeze_for_transfer(student)
    count = count_trained(student)
    # Two maps of 32 x 128 x 64 and 32 factors a layer.
    assert count.parameters == 32 * (2 * 32 * 128 * 64 + 32)
    assert count.total == 8_030_261_248 + count.parameters
    assert "(0.209 %" in str(count)
    learning = add_lora(student)
    # r = 8 on 4096 x 4096 (q, o) and 4096 x 1024 (k, v): 6.8 M, 0.085 %.
    assert sum(p.numel() for p in learning) == 32 * 8 * (4 * 4096 + 4 * 4096 - 2 * 3072)


def test_models_without_the_right_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"LoLCATs.*linearize"):
        attention_transfer_loss(teacher(), tokens(1, 4))
    with pytest.raises(ConfigError, match="cannot take LoRA"):
        add_lora(build(toy_config("tnl", 32, vocab_size=61)))
    with pytest.raises(ConfigError, match="rank=0"):
        add_lora(teacher(), rank=0)


@pytest.mark.parametrize("sinks", [0, 1])
@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
def test_far_error_is_that_of_the_keys_before_the_window(arrangement: str, sinks: int) -> None:
    """One query and one key at a time; gradients reach the feature maps."""
    options = LoLCATs(window=3, arrangement=arrangement, sink_tokens=sinks)  # pyright: ignore[reportArgumentType]
    model = linearize(teacher(), options)
    freeze_for_transfer(model)
    attention, length = mixer(model, 0), 13
    assert isinstance(attention, HybridAttention)
    x = torch.randn(2, length, 32, dtype=torch.float64)
    span = make_span(torch.zeros(2, length), None, None, False)
    shared = model.stem(x, span, None)[1][0]
    loss = far_error(attention, x, span, shared)
    q, k, v = attention._project(x, shared)
    k, v = k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
    q_map, k_map = attention.query_map(q), attention.key_map(k)
    errors = []
    for t in range(length):
        first = t - 2 if arrangement == "sliding" else (t // 3 - 1) * 3
        keys = range(min(sinks, max(first, 0)), max(first, 0))
        if not keys:
            continue
        for h in range(4):
            scores = (q[:, t, None, h] * k[:, keys, h]).sum(-1) / 8**0.5
            goal = (scores.softmax(-1)[..., None] * v[:, keys, h]).sum(1)
            weights = (q_map[:, t, None, h] * k_map[:, keys, h]).sum(-1)
            mine = (weights[..., None] * v[:, keys, h]).sum(1) / weights.sum(1, keepdim=True)
            errors.append((mine - goal).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean())
    assert attention.reads == "both"
    loss.backward()
    assert cast(Tensor, cast(nn.Module, attention.key_map).weight).grad is not None
