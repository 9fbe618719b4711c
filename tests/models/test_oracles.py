"""The four models against definitions that share no code with them.

LLaMA: transformers' LlamaForCausalLM with the same weights. The linear models: loops over tokens
written from the equations of arXiv 2406.16690, appendix A.1, on the bare weights; and the
recurrences of flash-linear-attention's naive references.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig, toy_config
from models.language_model import LanguageModel, build
from models.tnl import alibi_slopes, decay_slopes

Weights = dict[str, Tensor]


def random_model(config: ModelConfig, dtype: torch.dtype = torch.float64) -> LanguageModel:
    torch.manual_seed(1)
    model = build(config.replace(init_std=0.12), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.2 * torch.rand_like(parameter))
    return model


def norm(x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def by_name(model: LanguageModel, prefix: str) -> Weights:
    state = model.state_dict()
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def sglu(x: Tensor, w: Weights) -> Tensor:
    up, gate = x @ w["channel.up.weight"].T, x @ w["channel.gate.weight"].T
    return (up * gate) @ w["channel.down.weight"].T


def low_rank_gate(x: Tensor, w: Weights) -> Tensor:
    return sigmoid(x @ w["mixer.gate.down.weight"].T @ w["mixer.gate.up.weight"].T)


def test_llama_equals_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = toy_config("llama", 96, vocab_size=101, layers=3).replace(tie_embeddings=False)
    ours = random_model(config, torch.float32)
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.glu_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=False,
            max_position_embeddings=512,
        )
    ).eval()
    weights = {
        "model.embed_tokens.weight": ours.embedding.weight,
        "model.norm.weight": ours.norm.weight,
        "lm_head.weight": ours.head_weight,
    }
    for layer in range(config.layers):
        w = by_name(ours, f"blocks.{layer}.")
        target = f"model.layers.{layer}."
        weights |= {
            f"{target}self_attn.{name}_proj.weight": part
            for name, part in zip("qkv", w["mixer.qkv.weight"].chunk(3), strict=True)
        }
        weights |= {
            target + "self_attn.o_proj.weight": w["mixer.out.weight"],
            target + "mlp.up_proj.weight": w["channel.up.weight"],
            target + "mlp.gate_proj.weight": w["channel.gate.weight"],
            target + "mlp.down_proj.weight": w["channel.down.weight"],
            target + "input_layernorm.weight": w["mixer_norm.weight"],
            target + "post_attention_layernorm.weight": w["channel_norm.weight"],
        }
    theirs.load_state_dict(weights)
    tokens = torch.randint(0, 101, (2, 150))
    with torch.no_grad():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)
        # The key-value cache too: a prefill, then steps.
        logits, state = ours(tokens[:, :120], return_state=True)
        torch.testing.assert_close(logits, expected[:, :120], rtol=1e-5, atol=1e-5)
        for t in range(120, 150):
            logits, state = ours.step(tokens[:, t], state)
            torch.testing.assert_close(logits, expected[:, t], rtol=1e-5, atol=1e-5)


def run_linear(
    model: LanguageModel,
    tokens: Tensor,
    mix,
    embed=lambda x: x,
) -> Tensor:
    """The pre-norm stack of one sequence (T,) around mix(normed x (T, d), weights, layer)."""
    config = model.config
    x = embed(model.embedding.weight[tokens])
    for layer in range(config.layers):
        w = by_name(model, f"blocks.{layer}.")
        x = x + mix(norm(x, config.norm_eps), w, layer)
        x = x + sglu(norm(x, config.norm_eps), w)
    return norm(x, config.norm_eps) @ model.head_weight.T


@pytest.mark.parametrize("lrpe", ["none", "first"])
@pytest.mark.parametrize("slopes", ["alibi", "linear"])
def test_tnl_equals_its_equations(lrpe: str, slopes: str) -> None:
    config = toy_config("tnl", 48, vocab_size=31, layers=3, head_dim=8).with_options(
        lrpe=lrpe, decay_slopes=slopes
    )
    model = random_model(config)
    heads, size, length = config.heads, config.head_dim, 40

    def mix(x: Tensor, w: Weights, layer: int) -> Tensor:
        wq, wk, wv = w["mixer.qkv.weight"].chunk(3)
        q, k, v = silu(x @ wq.T), silu(x @ wk.T), x @ wv.T
        rotated = lrpe == "first" and layer == 0
        rows = []
        for t in range(length):
            row = torch.zeros(config.dim, dtype=x.dtype)
            for h in range(heads):
                c = slice(h * size, (h + 1) * size)
                if slopes == "linear":
                    slope = 8 * h / heads * (1 - layer / config.layers)
                else:
                    # ALiBi for six heads: those of four, then every other one of eight.
                    slope = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125][h]
                    slope *= 1 - layer / (config.layers - 1) + 1e-5
                decay = math.exp(-slope)
                for s in range(t + 1):
                    weights = torch.ones(size, dtype=x.dtype)
                    if rotated:
                        weights = torch.cos(w["mixer.angles.theta"][c] * (t - s))
                    score = (q[t, c] * k[s, c] * weights).sum() * decay ** (t - s)
                    row[c] += score * v[s, c]
            rows.append(row)
        o = norm(torch.stack(rows), config.norm_eps)
        return (o * low_rank_gate(x, w)) @ w["mixer.out.weight"].T

    tokens = torch.randint(0, 31, (length,))
    expected = run_linear(model, tokens, mix)
    torch.testing.assert_close(model(tokens[None])[0], expected, rtol=0, atol=1e-9)


def test_hgrn2_equals_its_equations() -> None:
    config = toy_config("hgrn2", 32, vocab_size=31, layers=3, head_dim=8)
    model = random_model(config)
    size, length = config.head_dim, 50
    logits = model.state_dict()["stem.logits"].view(config.layers, config.dim)
    share = logits.exp() / logits.exp().sum(0)

    def mix(x: Tensor, w: Weights, layer: int) -> Tensor:
        wq, wf, wv = w["mixer.qfv.weight"].chunk(3)
        bound = share[1 : layer + 1].sum(0)  # the running sum without its first row
        q, v = silu(x @ wq.T), x @ wv.T
        f = bound + (1 - bound) * sigmoid(x @ wf.T)
        out = torch.zeros(length, config.dim, dtype=x.dtype)
        for h in range(config.heads):
            c = slice(h * size, (h + 1) * size)
            state = torch.zeros(size, size, dtype=x.dtype)
            for t in range(length):
                state = torch.diag(f[t, c]) @ state + torch.outer(1 - f[t, c], v[t, c])
                out[t, c] = state.T @ q[t, c]
        return norm(out, config.norm_eps) @ w["mixer.out.weight"].T

    tokens = torch.randint(0, 31, (length,))
    expected = run_linear(model, tokens, mix)
    torch.testing.assert_close(model(tokens[None])[0], expected, rtol=0, atol=1e-9)


def test_cosformer2_equals_its_equations() -> None:
    config = toy_config("cosformer2", 32, vocab_size=31, layers=2, head_dim=8)
    model = random_model(config)
    size, length = config.head_dim, 40
    state = model.state_dict()

    def embed(x: Tensor) -> Tensor:
        """TPE as a Toeplitz sum over the past."""
        poles = sigmoid(state["stem.tpe.pole"])
        out = torch.zeros_like(x)
        for h in range(config.heads):
            c = slice(h * size, (h + 1) * size)
            for t in range(length):
                for s in range(t + 1):
                    out[t, c] += poles[h] ** (t - s) * (state["stem.tpe.weight"][h] @ x[s, c])
        return out

    def mix(x: Tensor, w: Weights, layer: int) -> Tensor:
        wq, wk, wv = w["mixer.qkv.weight"].chunk(3)
        q, k, v = silu(x @ wq.T), silu(x @ wk.T), x @ wv.T
        out = torch.zeros(length, config.dim, dtype=x.dtype)
        for h in range(config.heads):
            c = slice(h * size, (h + 1) * size)
            for t in range(length):
                for s in range(t + 1):
                    weights = torch.cos(w["mixer.angles.theta"][c] * (t - s))
                    out[t, c] += (q[t, c] * k[s, c] * weights).sum() * v[s, c]
        o = norm(out, config.norm_eps) * low_rank_gate(x, w)
        return o @ w["mixer.out.weight"].T

    tokens = torch.randint(0, 31, (length,))
    expected = run_linear(model, tokens, mix, embed)
    torch.testing.assert_close(model(tokens[None])[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("arch", ["tnl", "hgrn2"])
def test_recurrences_equal_flash_linear_attention(arch: str) -> None:
    """One mixer with the recurrence done by the library's naive reference (float32, scaled q)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library warns that this machine has no GPU
        naive = pytest.importorskip("fla.ops.gla.naive")
        simple = pytest.importorskip("fla.ops.simple_gla.naive")
    config = toy_config(arch, 64, vocab_size=31, layers=3, head_dim=16)  # pyright: ignore
    model = random_model(config, torch.float32)
    scale = config.head_dim**0.5

    def mix(x: Tensor, w: Weights, layer: int) -> Tensor:
        if arch == "tnl":
            q, k, v = (x @ w["mixer.qkv.weight"].T).view(1, 200, 3, 4, 16).unbind(2)
            slopes = torch.tensor(decay_slopes(config, layer)).expand(1, 200, 4)
            o, _ = simple.naive_recurrent_simple_gla(silu(q) * scale, silu(k), v, -slopes)
            o = norm(o.reshape(200, 64), config.norm_eps) * low_rank_gate(x, w)
        else:
            q, f, v = (x @ w["mixer.qfv.weight"].T).view(1, 200, 3, 4, 16).unbind(2)
            logits = model.state_dict()["stem.logits"].view(3, 4, 16).softmax(0)
            bound = logits.cumsum(0)[layer] - logits[0]
            f = bound + (1 - bound) * sigmoid(f)
            o, _ = naive.naive_recurrent_gla(silu(q) * scale, 1 - f, v, f.log())
            o = norm(o.reshape(200, 64), config.norm_eps)
        return o @ w["mixer.out.weight"].T

    tokens = torch.randint(0, 31, (200,))
    with torch.no_grad():
        expected = run_linear(model, tokens, mix)
        # float32 twice over three layers with sums of 200 terms; logits are of order 1.
        torch.testing.assert_close(model(tokens[None])[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (1, [2**-8]),
        (4, [0.25, 0.0625, 0.015625, 0.00390625]),
        (6, [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]),
        (8, [2.0**-i for i in range(1, 9)]),
        (12, [2.0**-i for i in range(1, 9)] + [2 ** -(i + 0.5) for i in range(4)]),
    ],
)
def test_alibi_slopes(heads: int, expected: list[float]) -> None:
    assert alibi_slopes(heads) == pytest.approx(expected)


def test_last_layer_hardly_decays() -> None:
    config = toy_config("tnl", 128, vocab_size=16, layers=4, head_dim=32)
    assert decay_slopes(config, 0)[0] == pytest.approx(0.25 * (1 + 1e-5))
    assert decay_slopes(config, 3)[0] == pytest.approx(0.25e-5)
    linear = config.with_options(decay_slopes="linear")
    assert decay_slopes(linear, 0) == [0, 2, 4, 6]
    assert decay_slopes(linear, 3) == [0, 0.5, 1, 1.5]
    assert decay_slopes(config.with_options(decay_slopes="none"), 0) == [0, 0, 0, 0]
