"""Feature maps, attentions and surgery: against independent formulas and the teacher."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import Tensor, nn

from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.config import ConfigError, toy_config
from models.contract import parallel, prefill, recur
from models.language_model import build
from models.layers import make_span
from models.linearize.feature_maps import feature_map
from models.linearize.lolcats import HybridAttention
from models.linearize.options import FeatureMapName, Linearized, linearized_config
from models.linearize.supra import SupraAttention
from models.linearize.surgery import linearize
from models.llama import SoftmaxAttention
from models.rope import rotate
from tests.support.linearize_oracles import dense_lolcats, mixer, teacher, teacher_config, tokens

MAPS: tuple[FeatureMapName, ...] = ("supra", "t2r", "hedgehog", "relu", "elu", "taylor")


# --- feature maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAPS)
def test_feature_maps_have_the_stated_features(name: FeatureMapName) -> None:
    options = Linearized(feature_map=name)
    module = feature_map(options, 3, 8).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    mapped = module(x)
    assert mapped.shape == (2, 5, 3, options.features(8))
    assert sum(p.numel() for p in module.parameters()) == options.map_parameters(3, 8)
    products = torch.einsum("bihf,bjhf->bhij", mapped, mapped)
    assert (products >= 0).all()


def test_taylor_products_are_the_expansion() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 7, 2, 6, dtype=torch.float64)
    module = feature_map(Linearized(feature_map="taylor"), 2, 6)
    s = (q * k).sum(-1) / 6**0.5
    torch.testing.assert_close((module(q) * module(k)).sum(-1), 1 + s + s**2 / 2)
    # On small scores it is the exponential, but for the cubic term.
    q = q * 0.2 / s.abs().amax()
    products = (module(q) * module(k)).sum(-1)
    s = (q * k).sum(-1) / 6**0.5
    torch.testing.assert_close(products, s.exp(), rtol=0, atol=0.2**3 / 6 * 1.1)


def test_hedgehog_is_two_distributions() -> None:
    module = feature_map(Linearized(feature_map="hedgehog", feature_size=5), 2, 6)
    nn.init.normal_(cast(Tensor, module.weight))
    x = torch.randn(3, 2, 6)
    halves = module(x).split(5, -1)
    for half in halves:
        torch.testing.assert_close(half.sum(-1), torch.ones(3, 2))
    torch.testing.assert_close(halves[1], module(-x).split(5, -1)[0])


# --- the formulas -----------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sinks", [0, 1, 6])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
@pytest.mark.parametrize(("window", "length"), [(4, 17), (5, 20), (1, 6), (9, 7)])
def test_lolcats_equals_the_dense_formula(
    window: int, length: int, arrangement: str, affine: bool, sinks: int, shared: bool
) -> None:
    options = LoLCATs(
        window=window,
        arrangement=arrangement,  # pyright: ignore[reportArgumentType]
        affine=affine,
        sink_tokens=sinks,
        shared_state=shared,
    )
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


@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("arrangement", ["terraced", "sliding"])
@pytest.mark.parametrize("reads", ["window", "past"])
def test_one_part_alone(reads: str, arrangement: str, sinks: int) -> None:
    options = LoLCATs(window=4, arrangement=arrangement, sink_tokens=sinks)  # pyright: ignore[reportArgumentType]
    model = linearize(teacher(), options)
    attention = mixer(model, 0)
    assert isinstance(attention, HybridAttention)
    x = torch.randn(2, 17, 32, dtype=torch.float64)
    span = make_span(torch.zeros(2, 17), None, None, False)
    shared = model.stem(x, span, None)[1][0]
    attention.reads = reads  # pyright: ignore[reportAttributeAccessIssue]
    actual, _ = attention(x, span, shared, None)
    torch.testing.assert_close(actual, dense_lolcats(attention, x, model.config, reads))
    # And token by token.
    text = tokens(2, 17)
    for layer in range(model.config.layers):
        cast(HybridAttention, mixer(model, layer)).reads = reads  # pyright: ignore[reportAttributeAccessIssue]
    state = model.initial_state(2)
    torch.testing.assert_close(recur(model, text, state)[0], model(text), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sinks", [0, 1])
def test_without_features_it_is_the_window_alone(sinks: int) -> None:
    """The window factor cancels: softmax over the window, as LLaMA's own sliding window."""
    original = teacher()
    options = LoLCATs(feature_map="none", window=5, arrangement="sliding", sink_tokens=sinks)
    student, text = linearize(original, options), tokens(2, 30)
    if not sinks:
        windowed = build(original.config.with_options(window=5), dtype=torch.float64)
        windowed.load_state_dict(original.state_dict())
        torch.testing.assert_close(student(text), windowed(text), rtol=1e-10, atol=1e-10)
    trained = linearize(original, LoLCATs(window=5, arrangement="sliding", sink_tokens=sinks))
    for layer in range(trained.config.layers):
        cast(HybridAttention, mixer(trained, layer)).reads = "window"
    torch.testing.assert_close(student(text), trained(text), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("slopes", ["alibi", "retnet", "none"])
def test_supra_equals_the_dense_formula(slopes: str) -> None:
    model = linearize(teacher(), Supra(decay_slopes=slopes))
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


# --- errors -----------------------------------------------------------------------------------


def test_only_softmax_models_are_linearized() -> None:
    with pytest.raises(ConfigError, match=r"hgrn2.*no softmax attention"):
        linearize(build(toy_config("hgrn2", 32, vocab_size=61)), Supra())
    with pytest.raises(ConfigError, match="linearized already"):
        linearize(linearize(teacher(), Supra()), LoLCATs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: Supra(feature_map="exp"), r"options.feature_map='exp'.*one of"),  # pyright: ignore[reportArgumentType]
        (lambda: LoLCATs(feature_map="identity"), r"options.feature_map='identity'.*negative"),
        (lambda: LoLCATs(window=0), r"options.window=0"),
        (lambda: LoLCATs(window_factor=1.0), r"options.window_factor=1.0"),
        (lambda: LoLCATs(arrangement="wide"), r"options.arrangement='wide'"),  # pyright: ignore[reportArgumentType]
        (lambda: Supra(feature_size=4), r"options.feature_size=4.*leave it out"),
        (lambda: Supra(softmax_layers=(1, 0)), r"options.softmax_layers=\(1, 0\).*increasing"),
        (
            lambda: linearized_config(teacher_config(), Supra(softmax_layers=(3,))),
            r"options.softmax_layers=\(3,\).*last layer is 2",
        ),
        (
            lambda: linearized_config(teacher_config(), Supra(feature_map="taylor")),
            r"options.feature_map='taylor'.*73 features",
        ),
        (lambda: teacher_config(options=Supra()), r"model.options=.*with model.arch='llama'"),
    ],
)
def test_options_that_cannot_work(options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options()
