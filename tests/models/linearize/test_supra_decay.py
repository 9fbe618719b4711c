"""SUPRA's decays: ALiBi's slopes, the same in every layer, from a table computed by hand.

ALiBi (arXiv 2108.12409): with H heads, a power of two, head h (from 0) has slope 2^(-8 (h+1) / H);
otherwise the slopes of the power of two P below H come first, then every other one of 2 P, from its
first on. SUPRA's code takes them as they are in each layer.
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from models.architectures.supra import Supra
from models.config import toy_config
from models.language_model import build
from models.linearize.surgery import linearize
from models.tnl import decay_slopes
from tests.support.linearize_oracles import mixer, teacher

TABLE = {
    2: [0.0625, 0.00390625],  # 2^-4, 2^-8
    4: [0.25, 0.0625, 0.015625, 0.00390625],  # 2^-2, 2^-4, 2^-6, 2^-8
    # Four as above, then the first and third of eight: 2^-1 and 2^-3.
    6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
    8: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625],
    # Eight as above, then the first, third, fifth and seventh of sixteen: 2^-0.5, 2^-1.5, ...
    12: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625,
         0.7071067811865476, 0.3535533905932738, 0.1767766952966369, 0.08838834764831845],
}  # fmt: skip


@pytest.mark.parametrize("heads", TABLE)
def test_the_default_is_the_table_in_every_layer(heads: int) -> None:
    config = toy_config("supra", 8 * heads, vocab_size=16, layers=4, head_dim=8)
    for layer in range(config.layers):
        assert decay_slopes(config, layer) == pytest.approx(TABLE[heads], rel=1e-15)


def test_the_model_decays_by_it() -> None:
    student = linearize(teacher(kv_heads=None), Supra())
    for layer in range(student.config.layers):
        decay = cast(Any, mixer(student, layer)).decay()  # log of the factor a step
        assert decay.tolist() == pytest.approx([-slope for slope in TABLE[4]])


def test_the_layer_factor_keeps_its_name() -> None:
    """A record that says `alibi` is the model that it was: slopes times 1 - i/(l-1) + 1e-5."""
    config = toy_config("supra", 32, vocab_size=16, layers=4, head_dim=8)
    config = config.with_options(decay_slopes="alibi")
    for layer, factor in enumerate((1 + 1e-5, 2 / 3 + 1e-5, 1 / 3 + 1e-5, 1e-5)):
        expected = [slope * factor for slope in TABLE[4]]
        assert decay_slopes(config, layer) == pytest.approx(expected)
    tnl = toy_config("tnl", 32, vocab_size=16, layers=4, head_dim=8)
    assert decay_slopes(tnl, 3) == pytest.approx([slope * 1e-5 for slope in TABLE[4]])


def test_another_architecture_has_its_own_default() -> None:
    tnl = toy_config("tnl", 32, vocab_size=16)
    assert tnl.replace(arch="supra").options == Supra()
    assert build(tnl.replace(arch="supra")).config.options_as(Supra).decay_slopes == "alibi-flat"
    linear = tnl.with_options(decay_slopes="linear")
    assert linear.replace(arch="supra").options_as(Supra).decay_slopes == "linear"
