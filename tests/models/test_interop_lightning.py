"""Lightning attention of the two public libraries that have it, against TNL's mixer.

transformers has it in MiniMax, with weights: they are put into TNL's mixer, whose SiLU the test
extends to the values, and outputs and states are compared. flash-linear-attention has the operator
alone; its kernel needs a GPU and is replaced by the library's own naive reference.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.architectures.tnl import TNLOptions
from models.config import ModelConfig
from models.kernels.api import linear_attention
from models.layers import make_span
from models.tnl import DecayAttention, HeadDecay

HEADS, SIZE, LAYERS, LENGTH = 4, 8, 3, 23
DIM = HEADS * SIZE


def config(slopes: Any = "alibi") -> ModelConfig:
    return ModelConfig(
        arch="tnl", vocab_size=8, dim=DIM, layers=LAYERS, heads=HEADS, glu_dim=16,
        options=TNLOptions(gate_rank=DIM, decay_slopes=slopes),
    )  # fmt: skip


class ActivatedValues(DecayAttention):
    """TNL's mixer but that values pass through SiLU as well, as in MiniMax."""

    def _project(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super()._project(x, positions)
        return q, k, F.silu(v)


def minimax(layer: int) -> Any:
    module = pytest.importorskip("transformers.models.minimax.modeling_minimax")
    from transformers import MiniMaxConfig

    torch.manual_seed(layer)
    theirs = module.MiniMaxLightningAttention(
        MiniMaxConfig(
            hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=LAYERS, block_size=5,
            layer_types=["linear_attention"] * LAYERS,
        ),
        layer,
    )  # fmt: skip
    torch.nn.init.normal_(theirs.norm.weight)
    return theirs.double().eval(), module.MiniMaxCache


def converted(theirs: Any, layer: int) -> DecayAttention:
    """Their weights in our mixer: rows reordered, the full gate as one of full rank, the norm's
    weight folded into the output."""
    mixer = ActivatedValues(config(), layer).double().eval()
    mixer.decay.reset_parameters()
    rows = theirs.qkv_proj.weight.unflatten(0, (HEADS, 3, SIZE))  # theirs go head by head
    with torch.no_grad():
        mixer.qkv.weight.copy_(rows.transpose(0, 1).flatten(0, 2))
        mixer.gate.down.weight.copy_(theirs.output_gate.weight)
        mixer.gate.up.weight.copy_(torch.eye(DIM))
        mixer.out.weight.copy_(theirs.out_proj.weight * theirs.norm.weight)
    return mixer


@pytest.mark.parametrize("layer", range(LAYERS))
def test_minimax_weights_in_our_mixer(layer: int) -> None:
    """float64. Their slopes have 1e-5 in one more place than the authors' of TNL, so that they are
    compared to that and then taken over."""
    theirs, cache_class = minimax(layer)
    ours = converted(theirs, layer)
    slopes = theirs.slope_rate.flatten()
    torch.testing.assert_close(-ours.decay(), slopes, rtol=0, atol=1e-5)
    with torch.no_grad():
        ours.decay.slopes.copy_(slopes)
        x = torch.randn(2, LENGTH, DIM, dtype=torch.float64)
        cache = cache_class()
        expected, state = theirs(x, (None, None), None, cache)
        span = make_span(torch.zeros(2, LENGTH), None, None, keep_state=True)
        found, kept = ours(x, span, (), None)
        # Their norm works in float32 whatever the weights are.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(kept["kv"], state, rtol=1e-5, atol=1e-6)
        positions = torch.full((2,), LENGTH)
        for _ in range(4):
            x = torch.randn(2, DIM, dtype=torch.float64)
            expected, state = theirs(x[:, None], (None, None), None, cache)
            found, kept = ours.step(x, positions, (), kept)
            torch.testing.assert_close(found, expected[:, 0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(kept["kv"], state, rtol=1e-5, atol=1e-6)


def test_the_operator_of_flash_linear_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decays of every layer are ours with decay_slopes=linear; their reference is in float32."""
    operator = pytest.importorskip("fla.ops.lightning_attn.chunk")
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    def reference(q: Tensor, k: Tensor, v: Tensor, g_gamma: Tensor, **options: Any) -> Any:
        gates = g_gamma.expand(q.shape[:3])
        kept = ("scale", "initial_state", "output_final_state")
        return naive_recurrent_simple_gla(q, k, v, gates, **{name: options[name] for name in kept})

    monkeypatch.setattr(operator, "chunk_simple_gla", reference)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, LENGTH, HEADS, SIZE)
    before = torch.randn(2, HEADS, SIZE, SIZE)
    for layer in range(LAYERS):
        decay = HeadDecay(config("linear"), layer)
        decay.reset_parameters()
        expected, state = operator.chunk_lightning_attn(
            q, k, v, layer, LAYERS, scale=1.0, initial_state=before, output_final_state=True
        )
        found, kept = linear_attention(q, k, v, decay(), before)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(kept, state, rtol=1e-4, atol=1e-4)
