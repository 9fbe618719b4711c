"""The contract of `mixer_contract` for linearized models and their options."""

from __future__ import annotations

from models.architectures.llama import RopeScaling
from models.config import toy_config
from tests.support.mixer_contract import MixerContract
from tests.support.model_variants import vary


class TestSupra(MixerContract):
    config = toy_config("supra", 64, vocab_size=61, layers=2)
    # Its norm of each head's output has an eps of its own, 1e-5, and amplifies the rounding of
    # single tokens: over 12 draws of tokens 0.9947 to 0.9994 (grouped 0.9953 to 0.9994), the same
    # for the kernels in PyTorch and the compiled ones.
    bfloat16_cosine = 0.994


class TestSupraGrouped(MixerContract):
    """Grouped-query heads, biases, RetNet's decay, one softmax layer kept."""

    bfloat16_cosine = 0.994
    config = vary(
        toy_config("supra", 64, vocab_size=61, layers=3),
        kv_heads=2,
        qkv_bias=True,
        decay_slopes="retnet",
        softmax_layers=(1,),
    )


class TestSupraWithoutDecayAndNorm(MixerContract):
    config = toy_config("supra", 48, vocab_size=61, layers=2, head_dim=12).with_options(
        decay_slopes="none", feature_map="elu", norm=False
    )


class TestLoLCATs(MixerContract):
    """Terraced, with a window (24) that divides neither the lengths nor the cuts."""

    config = toy_config("lolcats", 64, vocab_size=61, layers=2).with_options(window=24)


class TestLoLCATsSliding(MixerContract):
    config = vary(
        toy_config("lolcats", 48, vocab_size=61, layers=3, head_dim=12),
        kv_heads=2,
        head_size=14,
        tie_embeddings=False,
        rope_scaling=RopeScaling(kind="linear", factor=2.0),
        window=16,
        arrangement="sliding",
        feature_map="t2r",
        affine=True,
        softmax_layers=(2,),
    )


class TestLoLCATsWithSinks(MixerContract):
    """More sinks than the window is long, and packed sequences shorter than either."""

    config = vary(
        toy_config("lolcats", 64, vocab_size=61, layers=2), kv_heads=2, window=3, sink_tokens=5
    )


class TestLoLCATsSharedState(MixerContract):
    config = vary(
        toy_config("lolcats", 64, vocab_size=61, layers=2),
        kv_heads=2,
        window=5,
        arrangement="sliding",
        sink_tokens=1,
        shared_state=True,
    )


class TestWindowAlone(MixerContract):
    config = toy_config("lolcats", 64, vocab_size=61, layers=2).with_options(
        feature_map="none", window=6, arrangement="sliding", sink_tokens=1
    )
