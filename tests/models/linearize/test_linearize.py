"""Surgery, fidelity to the teacher, attention transfer, LoRA: against independent formulas."""

from __future__ import annotations

import copy
from typing import cast

import pytest
import torch
from mixer_contract import parallel, prefill, recur
from torch import Tensor, nn

from models.config import ConfigError, LoLCATs, ModelConfig, Supra, toy_config
from models.language_model import LanguageModel, build
from models.layers import make_span
from models.linearize.feature_maps import feature_map
from models.linearize.lolcats import HybridAttention
from models.linearize.lora import add_lora, merge_lora
from models.linearize.options import FeatureMapName, Linearized
from models.linearize.supra import SupraAttention
from models.linearize.surgery import linearize
from models.linearize.transfer import (
    attention_transfer_loss,
    attention_weights,
    count_trained,
    freeze_for_transfer,
    layer_losses,
)
from models.llama import SoftmaxAttention
from models.rope import rotary_angles, rotate

MAPS: tuple[FeatureMapName, ...] = ("supra", "t2r", "hedgehog", "relu", "elu", "taylor")


def teacher_config(**changes: object) -> ModelConfig:
    config = toy_config("llama", 32, vocab_size=61, layers=3, head_dim=8)
    return config.replace(**{"kv_heads": 2, "init_std": 0.3, **changes})


def teacher(dtype: torch.dtype = torch.float64, **changes: object) -> LanguageModel:
    torch.manual_seed(0)
    return build(teacher_config(**changes), dtype=dtype)


def tokens(batch: int, length: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(0, 61, (batch, length))


def mixer(model: LanguageModel, layer: int) -> nn.Module:
    return cast(nn.Module, model.blocks[layer].mixer)


# --- feature maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_feature_maps_have_the_stated_features(name: FeatureMapName) -> None:
    options = Linearized(feature_map=name)
    module = feature_map(options, 3, 8).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    mapped = module(x)
    assert mapped.shape == (2, 5, 3, options.features(8))
    assert sum(p.numel() for p in module.parameters()) == options.map_parameters(3, 8)
    products = torch.einsum("bihf,bjhf->bhij", mapped, mapped)
    assert (products >= 0).all()


def test_taylor_products_are_the_expansion() -> None:
    q, k = torch.randn(2, 7, 2, 6, dtype=torch.float64)
    s = (q * k).sum(-1) / 6**0.5
    module = feature_map(Linearized(feature_map="taylor"), 2, 6)
    torch.testing.assert_close((module(q) * module(k)).sum(-1), 1 + s + s**2 / 2)
    small = 0.1
    torch.testing.assert_close(
        (module(small * q) * module(k)).sum(-1), (small * s).exp(), rtol=0.01, atol=0
    )


def test_hedgehog_is_two_distributions() -> None:
    module = feature_map(Linearized(feature_map="hedgehog", feature_size=5), 2, 6)
    nn.init.normal_(cast(Tensor, module.weight))
    x = torch.randn(3, 2, 6)
    halves = module(x).split(5, -1)
    for half in halves:
        torch.testing.assert_close(half.sum(-1), torch.ones(3, 2))
    torch.testing.assert_close(halves[1], module(-x).split(5, -1)[0])


# --- the formulas -----------------------------------------------------------------------------


def dense_lolcats(attention: HybridAttention, x: Tensor, config: ModelConfig) -> Tensor:
    """The paper's formula, one query and one key at a time."""
    options, size = attention.options, config.head_dim
    assert options is not None
    positions = torch.arange(x.shape[1])[None]
    cos, sin = rotary_angles(config, positions, positions[:, -1:] + 1, x.dtype)
    width = config.heads * size, config.key_value_heads * size, config.key_value_heads * size
    q, k, v = (p.unflatten(-1, (-1, size)) for p in attention.qkv(x).split(width, -1))
    group = config.heads // config.key_value_heads
    q, k = rotate(q, cos, sin), rotate(k, cos, sin).repeat_interleave(group, 2)
    v = v.repeat_interleave(group, 2)
    q_map, k_map, factor = attention.query_map(q), attention.key_map(k), attention.factor()
    out = torch.zeros_like(q)
    for h in range(config.heads):
        for t in range(x.shape[1]):
            if options.arrangement == "terraced":
                first = max(0, (t // options.window - 1) * options.window)
            else:
                first = max(0, t - options.window + 1)
            scores = (q[:, t, None, h] * k[:, first : t + 1, h]).sum(-1) / size**0.5
            near = factor[h] * (scores - scores.max(-1, keepdim=True).values).exp()
            far = (q_map[:, t, None, h] * k_map[:, :first, h]).sum(-1)
            far = far * (1 - factor[h] if options.affine else 1)
            weights = torch.cat((far, near), 1)
            sums = (weights[..., None] * v[:, : t + 1, h]).sum(1)
            out[:, t, h] = sums / weights.sum(1, keepdim=True)
    return attention.out(out.flatten(-2))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
@pytest.mark.parametrize(("window", "length"), [(4, 17), (5, 20), (1, 6), (9, 7)])
def test_lolcats_equals_the_dense_formula(
    window: int, length: int, arrangement: str, affine: bool
) -> None:
    options = LoLCATs(window=window, arrangement=arrangement, affine=affine)  # pyright: ignore[reportArgumentType]
    model = linearize(teacher(), options)
    attention = mixer(model, 0)
    assert isinstance(attention, HybridAttention)
    with torch.no_grad():
        attention.factor.logit.copy_(torch.linspace(-2, 2, attention.heads))
    x = torch.randn(2, length, 32, dtype=torch.float64)
    span = make_span(torch.zeros(2, length), None, None, False)
    _, shared, _ = model.stem(x, span, None)
    actual, _ = attention(x, span, shared[0], None)
    torch.testing.assert_close(
        actual, dense_lolcats(attention, x, model.config), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("slopes", ["alibi", "retnet", "none"])
def test_supra_equals_the_dense_formula(slopes: str) -> None:
    model = linearize(teacher(decay_slopes=slopes), Supra())
    attention, size, length = mixer(model, 1), 8, 12
    assert isinstance(attention, SupraAttention)
    x = torch.randn(2, length, 32, dtype=torch.float64)
    span = make_span(torch.zeros(2, length), None, None, False)
    _, shared, _ = model.stem(x, span, None)
    actual, _ = attention(x, span, shared[1], None)

    q, k, v = attention.qkv(x).split((32, 16, 16), -1)
    project = cast(nn.Linear, attention.feature_map.project)
    key_project = cast(nn.Module, attention.key_feature_map).project
    q = torch.relu(project(q)).unflatten(-1, (4, size))
    k = torch.relu(cast(nn.Linear, key_project)(k)).unflatten(-1, (2, size))
    q, k = rotate(q, *shared[1]), rotate(k, *shared[1])
    k, v = k.repeat_interleave(2, 2), v.unflatten(-1, (2, size)).repeat_interleave(2, 2)
    # Slopes of 4 heads, 2^-2 .. 2^-8, times 1 - 1/2 + 1e-5 in the middle of three layers.
    decay = {
        "alibi": torch.tensor([2.0**-p for p in (2, 4, 6, 8)], dtype=torch.float64) * 0.50001,
        "retnet": -torch.tensor([1 - 2.0**-p for p in (5, 6, 7, 8)], dtype=torch.float64).log(),
        "none": torch.zeros(4, dtype=torch.float64),
    }[slopes]
    age = (torch.arange(length)[:, None] - torch.arange(length)).clamp(min=0)
    weights = torch.einsum("bihk,bjhk->bhij", q, k) * (-decay[:, None, None] * age).exp()
    o = torch.einsum("bhij,bjhv->bihv", weights.tril() / size**0.5, v)
    o = nn.functional.group_norm(o.flatten(0, 1).flatten(1), 4).unflatten(0, (2, length))
    torch.testing.assert_close(actual, attention.out(o), rtol=1e-10, atol=1e-10)


# --- surgery and fidelity ---------------------------------------------------------------------


@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
def test_a_window_over_the_sequence_is_the_teacher(arrangement: str) -> None:
    model = teacher()
    student = linearize(model, LoLCATs(window=32, arrangement=arrangement))  # pyright: ignore[reportArgumentType]
    text = tokens(2, 32)
    torch.testing.assert_close(student(text), model(text), rtol=1e-9, atol=1e-9)
    steps, _ = recur(student, text, student.initial_state(2))
    torch.testing.assert_close(steps, parallel(model, text), rtol=1e-9, atol=1e-9)


def test_all_layers_kept_is_the_teacher() -> None:
    model, text = teacher(), tokens(2, 40)
    for options in (Supra(softmax_layers=(0, 1, 2)), LoLCATs(softmax_layers=(0, 1, 2))):
        torch.testing.assert_close(linearize(model, options)(text), model(text), rtol=0, atol=0)


@pytest.mark.parametrize("name", MAPS)
def test_recurrent_equals_parallel_for_every_map(name: FeatureMapName) -> None:
    model, text = teacher(), tokens(2, 21)
    methods: list[Supra | LoLCATs] = [LoLCATs(window=4, feature_map=name)]
    if Linearized(feature_map=name).features(8) == 8:
        methods.append(Supra(feature_map=name, softmax_layers=(1,)))
    for options in methods:
        student = linearize(model, options)
        logits, _ = prefill(student, text)
        steps, _ = recur(student, text, student.initial_state(2))
        torch.testing.assert_close(steps, logits, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [Supra(softmax_layers=(2,)), LoLCATs(softmax_layers=(0, 2))])
def test_surgery_keeps_every_other_weight(options: Supra | LoLCATs) -> None:
    model = teacher(torch.bfloat16, qkv_bias=True, tie_embeddings=False).eval()
    student = linearize(model, options)
    assert not student.training
    theirs = student.state_dict()
    for name, weight in model.state_dict().items():
        assert theirs[name].data_ptr() == weight.data_ptr(), name
    new = theirs.keys() - model.state_dict().keys()
    assert new
    assert all("_map." in name or ".factor." in name for name in new)
    for parameter in [*student.parameters(), *student.buffers()]:
        assert not parameter.is_meta
        assert parameter.isfinite().all()
    softmax = [type(mixer(student, layer)) is SoftmaxAttention for layer in range(3)]
    assert softmax == [layer in options.softmax_layers for layer in range(3)]
    # The result is what its configuration builds.
    again = build(student.config, dtype=torch.bfloat16)
    again.load_state_dict(theirs)
    text = tokens(1, 70)
    torch.testing.assert_close(again(text), student(text), rtol=0, atol=0)
    # A frozen student leaves its teacher's parameters free.
    student.requires_grad_(False)
    assert all(p.requires_grad for p in model.parameters())


def test_meta_models_are_linearized_without_memory() -> None:
    student = linearize(build(teacher_config(), device="meta"), Supra())
    assert all(p.is_meta for p in student.parameters())


# --- attention transfer and LoRA --------------------------------------------------------------


def test_transfer_loss_is_the_error_of_the_heads_outputs() -> None:
    model = teacher()
    student = linearize(model, LoLCATs(window=4, softmax_layers=(1,)))
    text = tokens(2, 15)
    losses = attention_transfer_loss(student, text)
    # The teacher's residual stream, from hooks on the softmax model itself.
    inputs: dict[int, Tensor] = {}
    heads: dict[int, Tensor] = {}
    for layer in (0, 2):
        attention = mixer(model, layer)
        attention.register_forward_pre_hook(
            lambda _, args, layer=layer: inputs.update({layer: args[0]})
        )
        cast(nn.Module, attention.out).register_forward_pre_hook(
            lambda _, args, layer=layer: heads.update({layer: args[0]})
        )
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


@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
def test_attention_weights_reproduce_the_outputs(arrangement: str) -> None:
    student = linearize(teacher(), LoLCATs(window=4, arrangement=arrangement))  # pyright: ignore[reportArgumentType]
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
    factors = {"mse": 1000.0, "cross_entropy": cross_entropy}
    before = attention_transfer_loss(student, text, **factors)
    for _ in range(30):
        optimizer.zero_grad()
        for _, loss in layer_losses(student, text, **factors):
            loss.backward()
        optimizer.step()
    after = attention_transfer_loss(student, text, **factors)
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
        kv_heads=8, tie_embeddings=False,
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


# --- errors -----------------------------------------------------------------------------------


def test_only_softmax_models_are_linearized() -> None:
    with pytest.raises(ConfigError, match=r"hgrn2.*no softmax attention"):
        linearize(build(toy_config("hgrn2", 32, vocab_size=61)), Supra())
    with pytest.raises(ConfigError, match="linearized already"):
        linearize(linearize(teacher(), Supra()), LoLCATs())
    with pytest.raises(ConfigError, match=r"LoLCATs.*linearize"):
        attention_transfer_loss(teacher(), tokens(1, 4))
    with pytest.raises(ConfigError, match="cannot take LoRA"):
        add_lora(build(toy_config("tnl", 32, vocab_size=61)))
    with pytest.raises(ConfigError, match="rank=0"):
        add_lora(teacher(), rank=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: Supra(feature_map="exp"), r"supra.feature_map='exp'.*choose one of"),  # pyright: ignore[reportArgumentType]
        (lambda: LoLCATs(feature_map="identity"), r"lolcats.feature_map='identity'.*negative"),
        (lambda: LoLCATs(window=0), r"lolcats.window=0"),
        (lambda: LoLCATs(window_factor=1.0), r"lolcats.window_factor=1.0"),
        (lambda: LoLCATs(arrangement="wide"), r"lolcats.arrangement='wide'"),  # pyright: ignore[reportArgumentType]
        (lambda: Supra(feature_size=4), r"supra.feature_size=4.*leave it out"),
        (lambda: Supra(softmax_layers=(1, 0)), r"supra.softmax_layers=\(1, 0\).*increasing"),
        (
            lambda: teacher_config().replace(arch="supra", supra=Supra(softmax_layers=(3,))),
            r"supra.softmax_layers=\(3,\).*last layer is 2",
        ),
        (
            lambda: teacher_config().replace(arch="supra", supra=Supra(feature_map="taylor")),
            r"supra.feature_map='taylor'.*73 features",
        ),
        (lambda: teacher_config(supra=Supra()), r"model.supra with model.arch='llama'"),
    ],
)
def test_options_that_cannot_work(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options()
