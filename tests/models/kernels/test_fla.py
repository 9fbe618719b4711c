"""Our kernels under flash-linear-attention's names: the oracles are its naive recurrences."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import toy_config
from models.kernels import fla, launch
from models.kernels.triton.common import interpreted
from models.language_model import build

T = 40
"""Longer than what runs token by token. The interpreter takes seconds a call."""


@pytest.fixture(scope="module")
def library() -> Callable[[str], Any]:
    """Import a module of the library; skips where it is not installed."""

    def load(name: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns that this machine has no GPU
            pytest.importorskip("fla.ops")
            return importlib.import_module(name)

    return load


@pytest.fixture(params=["chunked", "triton"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The PyTorch form, and the Triton kernels in the interpreter."""
    if request.param == "triton":
        if not interpreted():
            pytest.skip("needs TRITON_INTERPRET=1")
        request.getfixturevalue("poison")
        monkeypatch.setattr(launch, "backend", lambda device: "cuda")
    return request.param


def inputs(*decay_shape: int) -> dict[str, Tensor]:
    """q, k, v, log decays and a state for 2 rows of T tokens, 3 heads, 16 and 24 channels."""
    g = torch.Generator().manual_seed(3)
    q, k = (torch.randn(2, T, 3, 16, generator=g) for _ in range(2))
    v = torch.randn(2, T, 3, 24, generator=g)
    decay = F.logsigmoid(torch.randn(*decay_shape, generator=g))
    state = torch.randn(2, 3, 16, 24, generator=g)
    return {"q": q, "k": k, "v": v, "decay": decay, "state": state}


def with_gradients(
    function: Callable[..., tuple[Tensor, Tensor]], given: dict[str, Tensor]
) -> list[Tensor]:
    """o, the state and all gradients of a fixed scalar."""
    leaves = [x.clone().requires_grad_() for x in given.values()]
    o, state = function(*leaves)
    weights = torch.Generator().manual_seed(4)
    scalar = sum((x.float() * torch.randn(x.shape, generator=weights)).sum() for x in (o, state))
    return [o, state, *torch.autograd.grad(scalar, leaves)]  # type: ignore[call-overload]


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        error = (a - b).norm() / b.norm()
        assert error < 2e-5, error


def test_gla_with_all_gradients(library: Any, form: str) -> None:
    naive = library("fla.ops.gla.naive").naive_recurrent_gla
    given = inputs(2, T, 3, 16)
    expected = with_gradients(
        lambda q, k, v, g, s: naive(q, k, v, g, initial_state=s, output_final_state=True), given
    )
    with fla.patch():
        gla = library("fla.ops.gla")
        operators = (gla.chunk_gla, gla.fused_recurrent_gla)
        for operator in operators if form == "chunked" else operators[:1]:
            found = with_gradients(
                lambda q, k, v, g, s, run=operator: run(
                    q, k, v, g, initial_state=s, output_final_state=True
                ),
                given,
            )
            close(found, expected)


def test_simple_gla_with_all_gradients(library: Any, form: str) -> None:
    naive = library("fla.ops.simple_gla.naive").naive_recurrent_simple_gla
    given = inputs(2, T, 3)
    expected = with_gradients(
        lambda q, k, v, g, s: naive(q, k, v, g, scale=0.3, initial_state=s), given
    )
    with fla.patch():
        simple = library("fla.ops.simple_gla")
        names = ("chunk_simple_gla", "fused_recurrent_simple_gla", "fused_chunk_simple_gla")
        for name in names if form == "chunked" else names[:1]:
            run = getattr(simple, name)
            found = with_gradients(
                lambda q, k, v, g, s, run=run: run(
                    q, k, v, g, scale=0.3, initial_state=s, output_final_state=True
                ),
                given,
            )
            close(found, expected)
        o, scores = simple.parallel_simple_gla(*list(given.values())[:4])
    alone = naive(*list(given.values())[:4])[0]
    assert scores is None
    close([o], [alone])


def test_lightning_decays_by_head_and_layer(library: Any, form: str) -> None:
    """The slopes of its own signature: 8/H (1 - l/L) h nats a step."""
    naive = library("fla.ops.simple_gla.naive").naive_recurrent_simple_gla
    q, k, v, _, state = inputs(1).values()
    slopes = -8 / 3 * (1 - 1 / 4) * torch.arange(3.0)
    expected = naive(q, k, v, slopes.expand(2, T, 3), initial_state=state)
    with fla.patch():
        run = library("fla.ops.lightning_attn").chunk_lightning_attn
        found = run(q, k, v, 1, 4, initial_state=state, output_final_state=True)
    close(list(found), list(expected))


def test_a_step_packed_sequences_and_states_with_values_first(library: Any) -> None:
    naive = library("fla.ops.gla.naive").naive_recurrent_gla
    q, k, v, g, state = inputs(2, T, 3, 16).values()
    with fla.patch():
        run = library("fla.ops.gla").chunk_gla
        o, final = run(
            q, k, v, g, None, state.mT.contiguous(), output_final_state=True, state_v_first=True
        )
        close(
            [o, final.mT],
            list(naive(q, k, v, g, initial_state=state, output_final_state=True)),
        )
        packed = (x.reshape(1, 2 * T, *x.shape[2:]) for x in (q, k, v, g))
        o, final = run(
            *packed,
            initial_state=state,
            output_final_state=True,
            cu_seqlens=torch.tensor([0, T, 2 * T]),
            cu_seqlens_cpu=torch.tensor([0, T, 2 * T]),
        )
        close(
            [o.reshape(2, T, 3, 24), final],
            list(naive(q, k, v, g, initial_state=state, output_final_state=True)),
        )
        one = [x[:, :1] for x in (q, k, v, g)]
        with torch.no_grad():
            step = library("fla.ops.gla").fused_recurrent_gla
            found = step(*one, initial_state=state, output_final_state=True)
        close(list(found), list(naive(*one, initial_state=state, output_final_state=True)))
        # A state in 16 bits is read and left as it is; the one after the token is float32.
        half = state.bfloat16()
        with torch.no_grad():
            found = step(*one, initial_state=half, output_final_state=True)
        assert found[1].dtype == torch.float32
        wide = half.to(state.dtype)
        close(list(found), list(naive(*one, initial_state=wide, output_final_state=True)))
        assert torch.equal(half, state.bfloat16())


def test_modules_hold_ours_until_it_is_undone(library: Any) -> None:
    layer = library("fla.layers.hgrn2")
    own = layer.chunk_gla
    with fla.patch():
        assert layer.chunk_gla is not own
        assert layer.chunk_gla.linscale_serves == "chunk_gla"
        held = layer.chunk_gla
        with fla.patch():  # changes nothing, and undoes nothing
            assert layer.chunk_gla is held
        assert layer.chunk_gla is held
    held = [
        f"{name}.{key}"
        for name, module in list(sys.modules.items())
        if name.startswith("fla")
        for key, value in list(vars(module).items())
        if hasattr(value, "linscale_serves")
    ]
    assert held == []
    assert layer.chunk_gla is own


def test_options_that_ours_lack_go_to_the_library(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gla = library("fla.ops.gla")
    asked = []

    def own(q, k, v, gk=None, gv=None, reverse=False, **kwargs):  # type: ignore[no-untyped-def]
        asked.append("gv" if gv is not None else "reverse")
        return v, None

    monkeypatch.setattr(gla, "fused_recurrent_gla", own)
    q, k, v, g, _ = inputs(2, T, 3, 16).values()
    with fla.patch():
        run = gla.fused_recurrent_gla
        with pytest.warns(UserWarning, match=r"fused_recurrent_gla\(gv=...\)"):
            run(q, k, v, g, gv=v)
        with pytest.warns(UserWarning, match=r"fused_recurrent_gla\(reverse=...\)"):
            run(q, k, v, g, reverse=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(q, k, v, g, reverse=True)  # said once
            run(q, k, v, g, None, False)  # asks for nothing
    assert asked == ["gv", "reverse", "reverse"]


@pytest.mark.parametrize("arch", ["tnl", "hgrn2", "gla", "mamba2", "cosformer2"])
def test_our_models_on_its_operators(
    library: Any, monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    """Its naive recurrences in the place of kernels that need a GPU."""
    gla, simple = library("fla.ops.gla"), library("fla.ops.simple_gla")
    by_channel = library("fla.ops.gla.naive").naive_recurrent_gla
    by_head = library("fla.ops.simple_gla.naive").naive_recurrent_simple_gla
    asked = []

    def chunk_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens):  # type: ignore[no-untyped-def]
        asked.append("gla")
        assert scale == 1.0
        q = q * q.shape[-1] ** 0.5  # the naive form has only its own scale
        return by_channel(q, k, v, g, initial_state, output_final_state)

    def chunk_simple_gla(  # type: ignore[no-untyped-def]
        q, k, v, g=None, g_gamma=None, scale=None, cu_seqlens=None, **rest
    ):
        asked.append("simple")
        g = g_gamma.expand(q.shape[:3]) if g is None and g_gamma is not None else g
        g = torch.zeros(q.shape[:3]) if g is None else g
        return by_head(q, k, v, g, scale=scale, **rest)

    monkeypatch.setattr(gla, "chunk_gla", chunk_gla)
    monkeypatch.setattr(simple, "chunk_simple_gla", chunk_simple_gla)
    torch.manual_seed(0)
    model = build(toy_config(arch, 32, vocab_size=61, layers=2))
    tokens = torch.randint(0, 61, (2, 40))
    expected = model(tokens)
    with fla.served_by_fla():
        found = model(tokens)
    assert set(asked) == {"gla" if arch in ("hgrn2", "gla") else "simple"}
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    # With its operators served by ours at the same time, neither calls the other for ever.
    for outer, inner in [(fla.patch, fla.served_by_fla), (fla.served_by_fla, fla.patch)]:
        with outer(), inner():
            torch.testing.assert_close(model(tokens), expected, atol=2e-5, rtol=1e-4)
    before = len(asked)
    model(tokens)
    assert len(asked) == before
