"""Published shapes: as many parameters as flash-linear-attention's models of them have."""

from __future__ import annotations

import pytest
import torch

from models import accounting
from models.config import ConfigError
from models.published import PUBLISHED, published_config

theirs = pytest.importorskip("fla.models")

CONFIGS = {
    "gla-340M": (theirs.GLAConfig, {"hidden_size": 1024}),
    "gla-1.3B": (theirs.GLAConfig, {}),
    "gated_deltanet-1.3B": (theirs.GatedDeltaNetConfig, {}),
}
CLASSES = {"gla": theirs.GLAForCausalLM, "gated_deltanet": theirs.GatedDeltaNetForCausalLM}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters(name: str) -> None:
    kind, changes = CONFIGS[name]
    with torch.device("meta"):
        model = CLASSES[PUBLISHED[name].arch](kind(fuse_cross_entropy=False, **changes))
    expected = sum(p.numel() for p in model.parameters())
    groups = accounting.parameters(published_config(name))
    assert sum(groups.values()) == expected
    size = float(name.rpartition("-")[2][:-1]) * (1e6 if name.endswith("M") else 1e9)
    assert expected == pytest.approx(size, rel=0.12)


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"name='kda': choose one of gla-340M, gla-1\.3B, gated"):
        published_config("kda")
