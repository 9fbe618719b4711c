"""The contract of `mixer_contract` for linearized models and their options."""

from __future__ import annotations

from models.config import LoLCATs, RopeScaling, Supra, toy_config
from tests.support.mixer_contract import MixerContract


class TestSupra(MixerContract):
    config = toy_config("supra", 64, vocab_size=61, layers=2)


class TestSupraGrouped(MixerContract):
    """Grouped-query heads, biases, RetNet's decay, one softmax layer kept."""

    config = toy_config("supra", 64, vocab_size=61, layers=3).replace(
        kv_heads=2,
        qkv_bias=True,
        decay_slopes="retnet",
        supra=Supra(softmax_layers=(1,)),
    )


class TestSupraWithoutDecayAndNorm(MixerContract):
    config = toy_config("supra", 48, vocab_size=61, layers=2, head_dim=12).replace(
        decay_slopes="none", supra=Supra(feature_map="elu", norm=False)
    )


class TestLoLCATs(MixerContract):
    """Terraced, with a window (24) that divides neither the lengths nor the cuts."""

    config = toy_config("lolcats", 64, vocab_size=61, layers=2).replace(lolcats=LoLCATs(window=24))


class TestLoLCATsSliding(MixerContract):
    config = toy_config("lolcats", 48, vocab_size=61, layers=3, head_dim=12).replace(
        kv_heads=2,
        head_size=14,
        tie_embeddings=False,
        rope_scaling=RopeScaling(kind="linear", factor=2.0),
        lolcats=LoLCATs(
            window=16, arrangement="sliding", feature_map="t2r", affine=True, softmax_layers=(2,)
        ),
    )
