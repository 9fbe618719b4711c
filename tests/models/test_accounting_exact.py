"""The closed forms against the built models: parameters, FlopCounterMode, state bytes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from models import accounting, cosformer2, delta_mixer, gla, hgrn2, mamba2, position_layers, tnl
from models.architectures.lolcats import LoLCATs
from models.architectures.supra import Supra
from models.config import ARCHS, ASPECT_SHAPES, PAPER_SIZES, Arch, paper_config, toy_config
from models.kernels.delta.reference import recurrent_delta
from models.kernels.lrpe import lrpe
from models.kernels.native import library
from models.kernels.reference import recurrent_reference
from models.language_model import LanguageModel, build
from models.layers import LayerState, Span
from models.linearize import lolcats, supra
from models.linearize.feature_maps import repeat_heads
from tests.support.model_variants import vary

# Name fragments of each parameter group, first match wins.
GROUPS = {
    "embedding": "embedding.",
    "head": "head.",
    "gate": ".mixer.gate.",
    "channel_mixer": ".channel.",
    "norm": "norm.",
    "feature_map": ("_map.", ".factor."),
    "position": ("theta", "tpe."),
    "decay": ("slopes", ".logits", ".decay."),
    "token_mixer": ".mixer.",
}


def count_groups(model: LanguageModel) -> dict[str, int]:
    counts = dict.fromkeys(GROUPS, 0)
    for name, parameter in model.named_parameters():
        for group, fragments in GROUPS.items():
            fragments = (fragments,) if isinstance(fragments, str) else fragments
            if any(fragment in name for fragment in fragments):
                counts[group] += parameter.numel()
                break
        else:
            raise AssertionError(f"{name} belongs to no group")
    return counts


VARIANTS: list[tuple[Arch, dict[str, object]]] = [
    *((arch, {}) for arch in ARCHS),
    *((arch, {"tie_embeddings": False}) for arch in ARCHS),
    ("tnl", {"learn_decay": True, "lrpe": "first", "gate_rank": 5}),
    ("tnl", {"lrpe": "all", "decay_slopes": "linear"}),
    ("tnl", {"lrpe": "all", "lrpe_learned": False}),
    ("cosformer2", {"lrpe_learned": False}),
    ("cosformer2", {"tpe": False, "gate_rank": 3}),
    ("hgrn2", {"glu_activation": "silu"}),
    ("llama", {"kv_heads": 2, "qkv_bias": True, "window": 5}),
    ("llama", {"kv_heads": 1, "head_size": 6, "out_bias": True, "glu_bias": True}),
    ("gla", {}),
    ("gla", {"key_ratio": 0.75, "rank": 3}),
    ("mamba2", {}),
    ("mamba2", {"groups": 2, "state_size": 5, "expansion": 1, "convolution": 2}),
    ("gated_deltanet", {}),
    ("gated_deltanet", {"key_size": 5, "value_expansion": 3.0, "convolution": 3}),
    ("kda", {}),
    ("kda", {"key_size": 6, "value_expansion": 0.5, "tie_embeddings": False}),
    ("supra", {}),
    ("supra", {"kv_heads": 2, "learn_decay": True, "options": Supra(softmax_layers=(0,))}),
    ("supra", {"head_size": 6, "options": Supra(feature_map="t2r", norm=False)}),
    ("supra", {"decay_slopes": "none", "options": Supra(feature_map="elu")}),
    ("lolcats", {}),
    ("lolcats", {"kv_heads": 1, "options": LoLCATs(window=4, softmax_layers=(0,))}),
    ("lolcats", {"options": LoLCATs(window=3, arrangement="sliding", feature_map="t2r")}),
    ("lolcats", {"options": LoLCATs(window=5, feature_map="taylor")}),
    ("lolcats", {"kv_heads": 1, "options": LoLCATs(window=4, shared_state=True)}),
]


@pytest.mark.parametrize("size", [*PAPER_SIZES, *ASPECT_SHAPES])
@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_of_the_paper_sizes(arch: Arch, size: str) -> None:
    config = paper_config(arch, size)
    assert count_groups(build(config, device="meta")) == accounting.parameters(config)


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize(("arch", "changes"), VARIANTS)
def test_parameters_of_toys_and_options(arch: Arch, changes: dict[str, object], dim: int) -> None:
    config = vary(toy_config(arch, dim, vocab_size=256), **changes)
    assert count_groups(build(config, device="meta")) == accounting.parameters(config)


def causal_softmax(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Softmax attention, one query at a time over the keys it sees; (B, H, T, K)."""
    assert is_causal == (attn_mask is None)
    outputs = []
    for t in range(q.shape[2]):
        seen = slice(t + 1) if attn_mask is None else attn_mask[t].nonzero()[:, 0]
        scores = q[:, :, t : t + 1] @ k[:, :, seen].transpose(-1, -2) / q.shape[-1] ** 0.5
        outputs.append(scores.softmax(-1) @ v[:, :, seen])
    return torch.cat(outputs, 2)


def gated_reference(
    q: Tensor,
    gate_logits: Tensor,
    v: Tensor,
    lower_bound: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    forget = lower_bound + (1 - lower_bound) * gate_logits.sigmoid()
    return recurrent_reference(q, 1 - forget, v, forget.log(), initial_state, cu_seqlens)


def cosine_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    theta: Tensor,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    position_offset: int | Tensor = 0,
) -> tuple[Tensor, Tensor]:
    positions = torch.arange(q.shape[1]) + position_offset
    q, k = lrpe(q, theta, positions), lrpe(k, theta, positions)
    return recurrent_reference(q, k, v, None, initial_state, cu_seqlens)


def one_pole_filter(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, initial_state: Tensor | None, cu_seqlens: None
) -> tuple[Tensor, Tensor]:
    """TPE's use of linear attention: unit queries and keys of dimension 1, element-wise."""
    assert q.shape[-1] == k.shape[-1] == 1
    assert initial_state is None
    state, outputs = torch.zeros_like(v[:, 0]), []
    for t in range(v.shape[1]):
        state = decay.exp()[:, None] * state + k[:, t] * v[:, t]
        outputs.append(q[:, t] * state)
    return torch.stack(outputs, 1), state[:, :, None]


def token_by_token(
    mixer: lolcats.HybridAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Span,
    state: LayerState | None = None,
) -> tuple[Tensor, LayerState]:
    """LoLCATs' attention with one product for each key that a token sees in its window, and one
    update and one read of the state a token. The FLOPs are right; the result is not needed."""
    own_k, own_v = (repeat_heads(x, mixer.state_heads) for x in (k, v))
    q_map, k_map = mixer.query_map(q), mixer.key_map(own_k)
    k, v = repeat_heads(k, mixer.heads), repeat_heads(v, mixer.heads)
    outputs = []
    for t in range(q.shape[1]):
        seen = slice(t + 1 - mixer.options.seen(t + 1), t + 1)
        scores = q[:, t, :, None] @ k[:, seen].permute(0, 2, 3, 1)  # (B, H, 1, S)
        outputs.append((scores @ v[:, seen].transpose(1, 2))[:, :, 0])
    values = torch.cat((own_v, torch.ones_like(own_v[..., :1])), -1)
    if mixer.state_heads == mixer.heads:
        far, _ = recurrent_reference(q_map, k_map, values)
    else:  # one update a key-value head, one read a query head
        kv, reads = torch.zeros_like(k_map[:, 0, ..., None] * values[:, 0, :, None]), []
        for t in range(q.shape[1]):
            kv = kv + k_map[:, t, ..., None] @ values[:, t, :, None]
            states = kv.repeat_interleave(mixer.heads // mixer.state_heads, 1)
            reads.append((q_map[:, t, :, None] @ states)[:, :, 0])
        far = torch.stack(reads, 1)
    return torch.stack(outputs, 1) * mixer.factor()[:, None] + far[..., :-1] / far[..., -1:], {}


@pytest.fixture
def reference_implementations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the definitions in the place of the kernels."""
    monkeypatch.setenv(library.VARIABLE, "torch")
    monkeypatch.setattr(position_layers, "linear_attention", one_pole_filter)
    monkeypatch.setattr(lolcats.HybridAttention, "attend", token_by_token)
    for module in (tnl, supra, gla, mamba2):
        monkeypatch.setattr(module, "linear_attention", recurrent_reference)
    monkeypatch.setattr(delta_mixer, "delta_attention", recurrent_delta)
    monkeypatch.setattr(cosformer2, "cosine_attention", cosine_reference)
    monkeypatch.setattr(hgrn2, "hgrn2_attention", gated_reference)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", causal_softmax)


SHAPES = [(1, 7, 32, 1), (2, 16, 96, 3), (3, 33, 64, 4)]  # batch, length, dim, layers


@pytest.mark.usefixtures("reference_implementations")
@pytest.mark.parametrize(("batch", "length", "dim", "depth"), SHAPES)
@pytest.mark.parametrize(("arch", "changes"), [v for v in VARIANTS if "lrpe_learned" not in v[1]])
def test_flops_equal_the_counter(
    arch: Arch, changes: dict[str, object], batch: int, length: int, dim: int, depth: int
) -> None:
    config = vary(toy_config(arch, dim, vocab_size=61, layers=depth), **changes)
    model = build(config)
    tokens = torch.randint(0, 61, (batch, length))
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    forward = accounting.forward_flops_per_token(config, accounting.mean_keys(length))
    total = batch * length * sum(forward.values())
    # Means over a window are fractions that float64 rounds.
    exact = getattr(config.options, "window", None) is None
    assert counter.get_total_flops() == pytest.approx(total, rel=0 if exact else 1e-14)
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).mean().backward()
    training = accounting.train_flops_per_token(config, length)["total"]
    total = batch * length * training
    assert counter.get_total_flops() == pytest.approx(total, rel=0 if exact else 1e-14)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("arch", "changes"), VARIANTS)
def test_state_bytes(arch: Arch, changes: dict[str, object], batch: int) -> None:
    config = vary(toy_config(arch, 64, vocab_size=32), **changes)
    model = build(config, dtype=torch.bfloat16)
    tokens = torch.zeros(batch, 9, dtype=torch.int64)
    _, state = model(tokens, return_state=True)
    size = sum(t.nbytes for t in tree_leaves((state.stem, state.blocks)))
    expected = accounting.state_bytes(config, batch) + accounting.kv_cache_bytes(config, 9, batch)
    assert size == expected
