"""Staged distillation, starts from attention weights, and the choice of softmax layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.config import ConfigError, toy_config
from models.language_model import Block, LanguageModel, build
from models.layers import make_span
from models.linearize.distill import (
    distillation_loss,
    hidden_losses,
    matrix_losses,
    mixing_matrix,
)
from models.linearize.initialise import STARTED, fit_outputs, from_attention
from models.linearize.layer_costs import (
    divergence,
    keep_costliest,
    keep_spread,
    layer_costs,
    with_softmax_layers,
)
from models.linearize.surgery import linearize
from tests.support.linearize_oracles import teacher, tokens

SUPRA = Supra(feature_map="elu")


class Ones(nn.Module):
    """A gate that is open."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def students() -> dict[str, LanguageModel]:
    """One of each kind, with other weights than the teacher's."""
    made: dict[str, LanguageModel] = {
        "supra": linearize(teacher(), SUPRA),
        "lolcats": linearize(teacher(), LoLCATs(window=4)),
    }
    for arch in STARTED:
        made[arch] = from_attention(teacher(), arch)
    return made


# --- stages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "supra", "lolcats", *STARTED])
def test_the_mixing_matrix_is_what_mixes_the_values(kind: str) -> None:
    """Of all heads, at the end of the kernel: M v, before norm and gate."""
    model = teacher() if kind == "llama" else students()[kind]
    text = tokens(2, 11)
    span = make_span(text, None, None, False)
    x, shared, _ = model.stem(model.embedding(text), span, None)
    block = cast(Block, model.blocks[1])
    mixer, x = cast(Any, block.mixer), block.mixer_norm(x)
    matrix = mixing_matrix(mixer, x, span, shared[1])
    assert matrix.shape == (2, 4, 11, 11)
    assert torch.equal(matrix, matrix.tril())
    if kind in ("llama", "lolcats"):
        torch.testing.assert_close(matrix.sum(-1), torch.ones_like(matrix[..., 0]))
    # What comes out of the mixer when its norm and gate are taken away.
    v = (mixer.qfv if kind == "hgrn2" else mixer.qkv)(x)[..., -(32 if kind in STARTED else 16) :]
    v = v.unflatten(-1, (-1, 8))
    if kind in ("gated_deltanet", "kda"):  # the convolution passes each token on alone
        v = F.silu(v)
    mixed = torch.einsum("bhts,bshv->bthv", matrix, v.repeat_interleave(4 // v.shape[2], 2))
    seen: list[Tensor] = []
    mixer.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    if kind in STARTED:
        mixer.norm = nn.Identity()
        if kind in ("gated_deltanet", "kda"):
            object.__setattr__(mixer, "output_gate", lambda x: 1.0)
        elif kind == "gla":  # through SiLU
            mixer.gate = Ones(1.278464542761074)
        elif kind != "hgrn2":
            mixer.gate = Ones()
    if kind == "supra":
        mixer.norm = False
    mixer(x, span, shared[1], None)
    torch.testing.assert_close(seen[0].unflatten(-1, (4, 8)), mixed, rtol=1e-9, atol=1e-9)


def test_losses_are_those_of_their_formulas() -> None:
    model, text = teacher(), tokens(2, 9)
    student = linearize(copy.deepcopy(model), LoLCATs(window=4, softmax_layers=(1,)))
    states: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _, args: states.update([(layer, args[0])])

    hooks = [b.register_forward_pre_hook(keep(i)) for i, b in enumerate(model.blocks)]
    logits = model(text)
    for hook in hooks:
        hook.remove()
    span = make_span(text, None, None, False)
    _, shared, _ = model.stem(states[0], span, None)
    hidden, matrices = dict(hidden_losses(student, model, text)), {}
    for layer, x in states.items():
        ours, theirs = cast(Block, student.blocks[layer]), cast(Block, model.blocks[layer])
        difference = ours(x, span, shared[0], None)[0] - theirs(x, span, shared[0], None)[0]
        torch.testing.assert_close(hidden[layer], difference.square().mean())
        mine, other = (
            mixing_matrix(b.mixer, b.mixer_norm(x), span, shared[0]) for b in (ours, theirs)
        )
        matrices[layer] = torch.linalg.matrix_norm(mine - other).square().sum() / (2 * 4 * 9)
    assert hidden[1] == 0  # softmax on both sides
    del matrices[1]
    torch.testing.assert_close(dict(matrix_losses(student, model, text)), matrices)
    # Logits: sum_v p log(p / q) at temperature 2, without the tokens that are left out.
    targets = torch.where(torch.rand(2, 9) < 0.3, -100, tokens(2, 9))
    p, q = ((z / 2).softmax(-1)[targets != -100] for z in (logits, student(text)))
    soft = 4 * (p * (p / q).log()).sum(-1).mean()
    hard = -student(text).log_softmax(-1)[targets != -100].gather(1, targets[targets != -100, None])
    actual = distillation_loss(student, model, text, targets, temperature=2.0, hard=0.5)
    torch.testing.assert_close(actual, soft + 0.5 * hard.mean())


@pytest.mark.parametrize("losses", [matrix_losses, hidden_losses])
@pytest.mark.parametrize("kind", ["supra", "lolcats", "tnl", "hgrn2", "cosformer2"])
def test_stages_lower_the_loss_of_every_layer(
    kind: str, losses: Callable[..., Iterator[tuple[int, Tensor]]]
) -> None:
    """And reach the student alone; gradients layer by layer are those of the sum."""
    student, model, text = students()[kind], teacher(), tokens(4, 24)
    sum((loss for _, loss in losses(student, model, text)), torch.zeros(())).backward()
    whole = [p.grad for p in student.parameters()]
    optimizer = torch.optim.Adam(student.parameters(), lr=0.003)
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for step in range(25):
        optimizer.zero_grad()
        for layer, loss in losses(student, model, text):
            loss.backward()
            last[layer] = float(loss.detach())
        if step == 0:
            first = dict(last)
            for parameter, expected in zip(student.parameters(), whole, strict=True):
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)
        optimizer.step()
    assert all(last[layer] < 0.9 * first[layer] for layer in range(3)), (first, last)
    assert all(p.grad is None for p in model.parameters())


def test_logits_of_a_student_approach_the_teachers() -> None:
    student, model, text = students()["tnl"], teacher(), tokens(4, 24)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.003)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = distillation_loss(student, model, text[:, :-1], text[:, 1:], temperature=2.0)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert distillation_loss(model, model, text[:, :-1], text[:, 1:]).abs() < 1e-12


# --- starts from attention weights ------------------------------------------------------------


@pytest.mark.parametrize("arch", STARTED)
def test_weights_of_the_teacher_are_taken_over(arch: str) -> None:
    """Norm weights folded, key-value heads repeated: q, k, v, GLU and head compute the same."""
    model = teacher(norm_eps=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.rand_like(parameter))
    student = from_attention(model, arch)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    for ours, theirs in zip(student.blocks, model.blocks, strict=True):
        ours, theirs = cast(Block, ours), cast(Block, theirs)
        mixer, attention = cast(Any, ours.mixer), cast(Any, theirs.mixer)
        qk, v = attention._heads(theirs.mixer_norm(x))
        q, k = qk.split((4, 2), 2)
        k, v = k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
        projected = (mixer.qfv if arch == "hgrn2" else mixer.qkv)(ours.mixer_norm(x))
        expected = torch.cat((q, -k if arch == "hgrn2" else k, v), 2).flatten(2)
        torch.testing.assert_close(projected, expected)
        torch.testing.assert_close(mixer.out.weight, attention.out.weight)
        torch.testing.assert_close(
            ours.channel(ours.channel_norm(x)), theirs.channel(theirs.channel_norm(x))
        )
    torch.testing.assert_close(
        student.norm(x) @ student.head_weight.mT, model.norm(x) @ model.head_weight.mT
    )
    assert not {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }


@pytest.mark.parametrize("kind", ["supra", "lolcats", *STARTED])
def test_fitted_outputs_are_the_least_squares_solution(kind: str) -> None:
    """The stated error is that of the layers, and no small change of a weight lowers it."""
    student, model, text = students()[kind], teacher(), tokens(8, 40)
    before = {layer: float(loss.detach()) for layer, loss in _mixer_errors(student, model, text)}
    stated = fit_outputs(student, model, text, ridge=1e-9)
    after = {layer: float(loss.detach()) for layer, loss in _mixer_errors(student, model, text)}
    assert after == pytest.approx(stated, rel=1e-6)
    assert all(0 < after[layer] < min(1, before[layer]) for layer in range(3)), (before, after)
    sum((loss for _, loss in _mixer_errors(student, model, text)), torch.zeros(())).backward()
    for block in student.blocks:
        gradient = cast(Tensor, cast(Any, block).mixer.out.weight.grad)
        assert gradient.abs().max() < 1e-6


def _mixer_errors(
    student: LanguageModel, model: LanguageModel, text: Tensor
) -> Iterator[tuple[int, Tensor]]:
    span = make_span(text, None, None, False)
    with torch.no_grad():
        x, shared, _ = model.stem(model.embedding(text), span, None)
    for layer, (mine, theirs) in enumerate(zip(student.blocks, model.blocks, strict=True)):
        mine, theirs = cast(Block, mine), cast(Block, theirs)
        own = student.stem(x, span, None)[1][layer]
        with torch.no_grad():
            y = theirs.mixer(theirs.mixer_norm(x), span, shared[layer], None)[0]
        out = mine.mixer(mine.mixer_norm(x), span, own, None)[0]
        yield layer, (out - y).square().sum() / y.square().sum()
        with torch.no_grad():
            x, _ = theirs(x, span, shared[layer], None)


# --- softmax layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [SUPRA, LoLCATs(window=4)])
def test_costs_are_measured_with_one_layer_linear(options: Supra | LoLCATs) -> None:
    model, text = teacher(), tokens(3, 30)
    torch.manual_seed(5)
    student = linearize(model, options)

    def loss_of(net: LanguageModel) -> float:
        return float(net.loss(text[:, :-1], text[:, 1:]).mean())

    costs = layer_costs(student, loss_of)
    base = model.loss(text[:, :-1], text[:, 1:]).mean()
    for layer in range(3):
        mixed = copy.deepcopy(model)
        block = cast(Any, mixed.blocks[layer])
        block.mixer = cast(Any, student.blocks[layer]).mixer
        loss = mixed.loss(text[:, :-1], text[:, 1:]).mean()
        assert costs[layer] == pytest.approx((loss - base).item(), rel=1e-9)
    # A student that keeps a layer judges the others.
    kept = with_softmax_layers(student, (1,))
    assert layer_costs(kept, loss_of) == pytest.approx({0: costs[0], 2: costs[2]}, rel=1e-9)


def test_the_costliest_layers_are_kept() -> None:
    costs = {0: 0.1, 1: 0.7, 2: -0.2, 5: 0.7, 6: 0.9}
    assert keep_costliest(costs, 0) == ()
    assert keep_costliest(costs, 2) == (1, 6)
    assert keep_costliest(costs, 5) == (0, 1, 2, 5, 6)
    assert linearize(teacher(layers=7), LoLCATs(softmax_layers=keep_costliest(costs, 3)))


# --- errors -----------------------------------------------------------------------------------


def test_models_that_do_not_match() -> None:
    model, text = teacher(), tokens(1, 5)
    shallow = build(toy_config("tnl", 32, vocab_size=61, layers=2, head_dim=8), dtype=torch.float64)
    for losses in (matrix_losses, hidden_losses):
        with pytest.raises(ConfigError, match=r"model.layers=2 of the student and 3"):
            list(losses(shallow, model, text))
    wide = build(toy_config("tnl", 32, vocab_size=61, layers=3, head_dim=16), dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"model.heads=2 .* 4"):
        list(matrix_losses(wide, model, text))
    assert len(list(hidden_losses(wide, model, text))) == 3
    other = build(toy_config("tnl", 32, vocab_size=60, layers=3), dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"vocab_size=60"):
        distillation_loss(other, model, text, text)
    with pytest.raises(ConfigError, match=r"temperature=0"):
        distillation_loss(model, model, text, text, temperature=0)
    with pytest.raises(ConfigError, match=r"'supra': cannot start.*tnl, hgrn2, cosformer2"):
        from_attention(model, "supra")
    with pytest.raises(ConfigError, match=r"model.options.qkv_bias=True of the teacher"):
        from_attention(teacher(qkv_bias=True), "tnl")
    with pytest.raises(ConfigError, match=r"model.options.head_size=6 of the teacher"):
        from_attention(teacher(head_size=6), "tnl")
    with pytest.raises(ConfigError, match=r"is not linearized"):
        layer_costs(model, lambda _: 0.0)
    with pytest.raises(ConfigError, match=r"layer 1 of the student has no linear"):
        with_softmax_layers(linearize(model, LoLCATs(softmax_layers=(1,))), (0,))
    with pytest.raises(ConfigError, match=r"keep=4: must be between 0 and 3"):
        keep_costliest({0: 0.0, 1: 0.0, 2: 0.0}, 4)


def test_layers_kept_by_position() -> None:
    assert keep_spread(32, 8) == (3, 7, 11, 15, 19, 23, 27, 31)
    assert keep_spread(7, 2) == (2, 6)
    assert keep_spread(4, 0) == ()
    assert keep_spread(3, 3) == (0, 1, 2)
    with pytest.raises(ConfigError, match="between 0 and 3"):
        keep_spread(3, 4)


def test_divergence_is_torchs() -> None:
    original, text = teacher(torch.float32), tokens(3, 20)
    student = linearize(copy.deepcopy(original), LoLCATs(window=2))
    with torch.no_grad():
        found = divergence(student, original, text)
        mine, theirs = (m(text).log_softmax(-1) for m in (student, original))
        expected = torch.nn.functional.kl_div(mine, theirs, reduction="none", log_target=True)
    torch.testing.assert_close(found, expected.sum(-1).mean(-1))
    assert (found > 0).all()
    assert divergence(original, original, text).abs().max() < 1e-6
