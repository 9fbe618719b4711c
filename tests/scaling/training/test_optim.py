"""AdamW against the equations of the paper, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.config import ARCHS, Arch, toy_config
from models.language_model import build
from scaling.config.run import OptimConfig
from scaling.training.optim import adamw, parameter_groups


@pytest.mark.parametrize("arch", ARCHS)
def test_every_trainable_parameter_is_in_one_group(arch: Arch) -> None:
    model = build(toy_config(arch, 32, vocab_size=257))
    decayed, free = (group["params"] for group in parameter_groups(model, 0.1))
    assert isinstance(decayed, list)
    assert isinstance(free, list)
    seen = [id(p) for p in [*decayed, *free]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert all(p.ndim < 2 for p in free)
    assert any(p is model.embedding.weight for p in decayed)


def test_update_follows_the_equations() -> None:
    config = OptimConfig(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    model = nn.Linear(3, 2).double()
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = adamw(model, config)
    moments = {name: (0.0, 0.0) for name in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        expected = {}
        for name, value, decay in (("weight", weight, 0.5), ("bias", bias, 0.0)):
            g = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            getattr(model, name).grad = g.clone()
            m = 0.8 * moments[name][0] + 0.2 * g
            v = 0.9 * moments[name][1] + 0.1 * g * g
            moments[name] = (m, v)
            m_hat, v_hat = m / (1 - 0.8**step), v / (1 - 0.9**step)
            expected[name] = value - 0.1 * (m_hat / (v_hat.sqrt() + 1e-3) + decay * value)
        optimizer.step()
        weight, bias = expected["weight"], expected["bias"]
        torch.testing.assert_close(model.weight.detach(), weight, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.bias.detach(), bias, rtol=1e-12, atol=1e-12)
