"""A fifth architecture is one module and one name: the code of docs/tutorial_architecture.md."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from models import accounting, measured
from models.config import ARCH_NAMES, ConfigError, ModelConfig, toy_config
from models.kernels.api import linear_attention
from models.kernels.reference import recurrent_reference
from models.language_model import build
from tests.support.mixer_contract import MixerContract

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial_architecture.md"


def source() -> str:
    """The one Python block of the page."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return block


@pytest.fixture(autouse=True)
def architecture() -> Iterator[types.ModuleType]:
    """Install the module `models.gla` and its name for the time of a test."""
    module = types.ModuleType("models.gla")
    exec(compile(source(), str(PAGE), "exec"), module.__dict__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "models.gla", module)
        patch.setitem(ARCH_NAMES, "gla", "GLA")
        yield module


class TestGatedLinearAttention(MixerContract):
    @property
    def config(self) -> ModelConfig:  # pyright: ignore[reportIncompatibleVariableOverride]
        return toy_config("gla", 64, vocab_size=61, layers=2)


def test_stays_under_a_hundred_lines() -> None:
    assert len(source().splitlines()) < 100


def test_costs_by_hand() -> None:
    """Projections of d x (d/2, d/2, d, d, d), gate d x 16 and 16 x d/2 with bias, GLU, norms."""
    config = toy_config("gla", 48, vocab_size=61)
    d, g, depth, v = config.dim, config.glu_dim, config.layers, config.head_dim
    mixer = 4 * d * d + 16 * d + 16 * d // 2
    groups = accounting.parameters(config)
    assert groups["token_mixer"] == depth * (mixer + d // 2 + v)
    assert groups["channel_mixer"] == depth * 3 * d * g
    assert groups["norm"] == 2 * depth * d + d
    state = depth * config.heads * (v // 2) * v
    assert accounting.state_bytes(config, 3) == 4 * 3 * state
    total = 3 * (2 * depth * (mixer + 3 * d * g) + 4 * state + 2 * d * 61)
    assert accounting.train_flops_per_token(config, 256)["total"] == total
    # No row in the paper's table: the exact convention without the head.
    paper = accounting.train_flops_per_token(config, 256, "paper")
    assert paper["total"] == total - 6 * d * 61
    assert accounting.decode_flops_per_token(config, 10)["total"] == total / 3


def test_the_mixer_is_the_papers_recurrence(architecture: types.ModuleType) -> None:
    """The decay that reaches the primitive is sigma(.)^(1/16), against the plain recurrence."""
    torch.manual_seed(0)
    config = toy_config("gla", 48, vocab_size=61, layers=1)
    model = build(config.replace(init_std=0.5), dtype=torch.float64)
    mixer = model.blocks[0].mixer  # pyright: ignore[reportAttributeAccessIssue]
    x = torch.randn(2, 30, 48, dtype=torch.float64)
    q, k, v, _, decay = mixer._project(x)  # pyright: ignore[reportCallIssue]
    alpha = torch.sigmoid(mixer.gate_up(mixer.gate_down(x))) ** (1 / 16)  # pyright: ignore
    torch.testing.assert_close(decay.exp().flatten(-2), alpha)
    expected, _ = recurrent_reference(q, k, v, decay)
    torch.testing.assert_close(linear_attention(q, k, v, decay)[0], expected)


def test_an_empty_state_needs_closed_forms(architecture: types.ModuleType) -> None:
    measured.costs.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            architecture.GatedLinearAttention, "initial_state", lambda self, n, device, dtype: {}
        )
        with pytest.raises(ConfigError, match=r"model.arch='gla' starts with an empty state"):
            accounting.parameters(toy_config("gla", 48, vocab_size=61))
    measured.costs.cache_clear()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"arch='glaa': choose one of llama, .*gla\."):
        toy_config("glaa", 48, vocab_size=61)
