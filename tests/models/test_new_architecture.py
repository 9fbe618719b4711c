"""A fifth architecture is one module with an `ARCHITECTURE`, and its name in the configuration.

Here: retention (arXiv 2307.08621) without its rotation, on the linear-attention primitive.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from mixer_contract import MixerContract
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from models import config as model_config
from models.config import Arch, ModelConfig, toy_config
from models.kernels.api import linear_attention, linear_attention_step
from models.language_model import build
from models.layers import Architecture, LayerState, RMSNorm, Shared, Span, TokenMixer, angle_dtype


class Retention(TokenMixer):
    """Decay 1 - 2^(-5-h) in head h, a scale, and a SiLU gate of full rank."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkvg = nn.Linear(config.dim, 4 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v, g = self.qkvg(x).unflatten(-1, (4, self.heads, self.head_dim)).unbind(-3)
        return q, k * self.head_dim**-0.5, v, F.silu(g)

    def _decay(self, x: Tensor) -> Tensor:
        heads = torch.arange(self.heads, device=x.device, dtype=angle_dtype(x.dtype))
        return torch.log1p(-(2 ** (-5 - heads)))

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        q, k, v, g = self._project(x)
        initial = None if state is None else state["kv"]
        o, final = linear_attention(q, k, v, self._decay(x), initial, span.cu_seqlens)
        return self.out((o * g).flatten(-2)), {"kv": final}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, k, v, g = self._project(x)
        o, kv = linear_attention_step(q, k, v, state["kv"], self._decay(x))
        return self.out((o * g).flatten(-2)), {"kv": kv}

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, self.head_dim, self.head_dim)
        return {"kv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}


@pytest.fixture(autouse=True)
def architecture() -> Iterator[None]:
    """Install the module `models.retention` and its name for the time of a test."""
    module = types.ModuleType("models.retention")
    module.ARCHITECTURE = Architecture(  # pyright: ignore[reportAttributeAccessIssue]
        mixer=Retention, norm=RMSNorm, activation=F.silu
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "models.retention", module)
        patch.setattr(model_config, "ARCHS", (*model_config.ARCHS, "retention"))
        yield


class TestRetention(MixerContract):
    @property
    def config(self) -> ModelConfig:  # pyright: ignore[reportIncompatibleVariableOverride]
        name: Arch = "retention"  # pyright: ignore[reportAssignmentType]
        return toy_config(name, 48, vocab_size=61, layers=2)

    def test_accounting(self) -> None:
        """By hand: `models.accounting` knows the four architectures of the paper only."""
        c = self.config
        d, depth = c.dim, c.layers
        parameters = sum(p.numel() for p in build(c, device="meta").parameters())
        blocks = depth * (5 * d * d + 3 * d * c.glu_dim + 2 * d)
        assert parameters == blocks + d + c.vocab_size * d
        state = build(c).initial_state(3)
        assert sum(t.nbytes for t in tree_leaves(state.blocks)) == 4 * 3 * depth * d * c.head_dim
