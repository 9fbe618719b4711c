"""The contract of `mixer_contract` for the architectures and their options."""

from __future__ import annotations

from models.architectures.llama import RopeScaling
from models.config import toy_config
from tests.support.mixer_contract import MixerContract
from tests.support.model_variants import vary


class TestLlama(MixerContract):
    config = toy_config("llama", 64, vocab_size=61, layers=2)


class TestGroupedWindowedLlama(MixerContract):
    config = vary(
        toy_config("llama", 64, vocab_size=61, layers=2),
        kv_heads=2,
        head_size=24,
        window=70,
        qkv_bias=True,
        out_bias=True,
        glu_bias=True,
        rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_length=80),
    )


class TestTNL(MixerContract):
    config = toy_config("tnl", 64, vocab_size=61, layers=2)


class TestTNLWithLRPEAndLearnedDecay(MixerContract):
    config = vary(
        toy_config("tnl", 48, vocab_size=61, layers=2, head_dim=16),
        lrpe="first",
        learn_decay=True,
        decay_slopes="linear",
        tie_embeddings=False,
    )


class TestHGRN2(MixerContract):
    config = toy_config("hgrn2", 64, vocab_size=61, layers=2)


class TestCosFormer2(MixerContract):
    config = toy_config("cosformer2", 64, vocab_size=61, layers=2)


class TestCosFormer2WithoutTPE(MixerContract):
    config = toy_config("cosformer2", 48, vocab_size=61, layers=2, head_dim=16).with_options(
        tpe=False, lrpe_learned=False, gate_rank=5
    )


class TestGLA(MixerContract):
    config = toy_config("gla", 64, vocab_size=61, layers=2)


class TestMamba2(MixerContract):
    config = toy_config("mamba2", 64, vocab_size=61, layers=2)


class TestMamba2WithGroupsAndLargeStates(MixerContract):
    config = toy_config("mamba2", 48, vocab_size=61, layers=2, head_dim=12).with_options(
        groups=2, state_size=20, expansion=1, convolution=1
    )


class TestGatedDeltaNet(MixerContract):
    config = toy_config("gated_deltanet", 64, vocab_size=61, layers=2)
    bfloat16_eps = 1e-3


class TestGatedDeltaNetWithNegativeEigenvalues(MixerContract):
    config = toy_config("gated_deltanet", 48, vocab_size=61, layers=2).with_options(
        key_size=10, value_expansion=1.5, convolution=2, negative_eigenvalues=True
    )
    # With beta near 2 a state's rounding is reflected again and again, and not forgotten.
    bfloat16_cosine = 0.997
    bfloat16_eps = 1e-3


class TestKDA(MixerContract):
    config = toy_config("kda", 64, vocab_size=61, layers=2)
    bfloat16_eps = 1e-3
