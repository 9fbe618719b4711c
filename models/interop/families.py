"""What the families of Hugging Face's decoders have: the one place that knows them by name.

All are one architecture to us (`models.llama`): blocks of softmax attention and a gated channel
mixer. A `Family` says where its norms stand and what they are called, whether queries and keys are
normed, which of its tensors are fused, how its rotary channels lie, what its config.json leaves
unsaid, and which fields hold the rest. `models.interop.llama` reads configurations by it,
`models.interop.parameter_names` tensors.

| family                  | what it has beside LLaMA's                                            |
|-------------------------|-----------------------------------------------------------------------|
| mistral, ministral      | a sliding window                                                      |
| ministral3              | queries that grow with the position                                   |
| qwen2, qwen3            | biases on q, k and v; norms of q and k by head; windows by layer      |
| smollm3                 | layers without rotary positions                                       |
| olmo2, olmo3            | norms behind the mixers; norms of q and k over all heads; windows     |
| gemma, gemma2           | GELU, scaled embedding, norms of 1 + w; four norms, caps, windows     |
| gemma3_text             | the same without caps; norms of q and k, two rotary bases             |
| phi3                    | fused projections, a share of rotary channels, longrope               |
| granite                 | factors on embedding, residuals, scores and logits                    |
| helium, glm, glm4       | rotary pairs of neighbours; a share of them; four norms               |
| exaone4                 | norms behind the mixers, full layers without rotary positions         |
| seed_oss                | biases on q, k and v                                                  |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.architectures.llama import QueryKeyNorm
from models.config import NormPlaces

PRE = {"mixer_norm": "input_layernorm", "channel_norm": "post_attention_layernorm"}
POST = {
    "mixer_post_norm": "post_attention_layernorm",
    "channel_post_norm": "post_feedforward_layernorm",
}
BOTH = {
    "mixer_norm": "input_layernorm",
    "mixer_post_norm": "post_attention_layernorm",
    "channel_norm": "pre_feedforward_layernorm",
    "channel_post_norm": "post_feedforward_layernorm",
}
GLM4 = {
    "mixer_norm": "input_layernorm",
    "mixer_post_norm": "post_self_attn_layernorm",
    "channel_norm": "post_attention_layernorm",
    "channel_post_norm": "post_mlp_layernorm",
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`. Biases and windows: the field of config.json that says so, or what is."""

    norm_names: Mapping[str, str] = field(default_factory=PRE.copy)
    """Our norms of a block -> theirs."""
    norm_offset: bool = False
    """Norms multiply by one plus their weights."""
    qk_norm: QueryKeyNorm = "none"
    """Norms of queries and keys (`q_norm`, `k_norm`)."""
    qkv_bias: str | bool = False
    out_bias: str | bool = False
    glu_bias: str | bool = False
    windows: Literal["none", "all", "layers", "switched"] = "none"
    """Which layers have `sliding_window`: none, all, those that `layer_types` says (the pattern
    below where it is silent), or those only where `use_sliding_window` is on."""
    pattern: int | None = None
    """Every so many layers sees all keys, unless `sliding_window_pattern` says otherwise."""
    rope: Literal["all", "marked", "windowed"] = "all"
    """Layers with rotary positions: all, those that `no_rope_layers` marks with 1, or those with a
    window, where there is one."""
    neighbours: bool = False
    """Rotary pairs are neighbouring channels, not channels half a head apart."""
    fused: tuple[str, ...] = ()
    """Of `qkv_proj` and `gate_up_proj`, those that are one tensor."""
    activation: str = "hidden_act"
    """Field of the channel mixer's activation."""
    activations: Mapping[str, str] = field(default_factory=dict[str, str])
    """Names of activations that mean another one in this family."""
    two_ropes: bool = False
    """Layers with a window have rotary positions of their own."""
    partial: bool = False
    """A share of a head's channels may rotate alone."""
    grows: bool = False
    """Queries grow with the position (`llama_4_scaling_beta`)."""
    whole_heads: bool = False
    """transformers wants the width to be a multiple of the heads."""
    square: bool = False
    """transformers wants heads times head dimension to be the width."""
    class_name: str = ""
    """Class in transformers; empty: as the name of the family."""
    scales: Mapping[str, str] = field(default_factory=dict[str, str])
    """Our factors and caps -> the field that holds them."""
    root_scaled: bool = False
    """The embedding is multiplied by the root of the width."""
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What transformers takes where config.json is silent."""

    @property
    def norms(self) -> NormPlaces:
        """Where the norms of a block stand."""
        before, behind = "mixer_norm" in self.norm_names, "mixer_post_norm" in self.norm_names
        return "both" if before and behind else "pre" if before else "post"


_GEMMA: dict[str, Any] = {
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
}
_CAPS = {"score_cap": "attn_logit_softcapping", "logit_cap": "final_logit_softcapping"}
_GLM: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "rms_norm_eps": 1.5625e-07,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
}
_MINISTRAL3_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_ATTENTION: dict[str, Any] = {"qkv_bias": "attention_bias", "out_bias": "attention_bias"}

FAMILIES: dict[str, Family] = {
    "llama": Family(**_ATTENTION, glu_bias="mlp_bias", whole_heads=True),
    "mistral": Family(windows="all", defaults={"num_key_value_heads": 8, "sliding_window": 4096}),
    "ministral": Family(
        windows="layers", defaults={"num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "ministral3": Family(
        windows="all",
        grows=True,
        defaults={
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rms_norm_eps": 1e-5,
            "rope_parameters": _MINISTRAL3_ROPE,
        },
    ),
    "qwen2": Family(qkv_bias=True, windows="switched", defaults={"num_key_value_heads": 32}),
    "qwen3": Family(
        **_ATTENTION,
        qk_norm="head",
        windows="switched",
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    "smollm3": Family(
        class_name="SmolLM3ForCausalLM",
        **_ATTENTION,
        glu_bias="mlp_bias",
        windows="switched",
        rope="marked",
        defaults={"num_key_value_heads": 4, "rope_theta": 2e6, "tie_word_embeddings": True},
    ),
    "olmo2": Family(**_ATTENTION, norm_names=POST, qk_norm="all", defaults={"rms_norm_eps": 1e-5}),
    "olmo3": Family(
        **_ATTENTION,
        norm_names=POST,
        qk_norm="all",
        windows="layers",
        pattern=4,
        two_ropes=True,
        defaults={"rms_norm_eps": 1e-5, "rope_theta": 5e5, "sliding_window": 4096},
    ),
    "gemma": Family(
        **_ATTENTION,
        norm_offset=True,
        root_scaled=True,
        # Its first releases say "gelu" and mean the tanh formula.
        activations={"gelu": "gelu_tanh"},
        defaults=_GEMMA | {"num_key_value_heads": 16},
    ),
    "gemma2": Family(
        **_ATTENTION,
        norm_names=BOTH,
        norm_offset=True,
        root_scaled=True,
        activation="hidden_activation",
        windows="layers",
        pattern=2,
        whole_heads=True,
        scales=_CAPS,
        defaults=_GEMMA
        | {
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3_text": Family(
        **_ATTENTION,
        norm_names=BOTH,
        norm_offset=True,
        qk_norm="head",
        root_scaled=True,
        activation="hidden_activation",
        windows="layers",
        pattern=6,
        two_ropes=True,
        whole_heads=True,
        class_name="Gemma3ForCausalLM",
        # transformers reads attn_logit_softcapping and does not use it in this family.
        scales={"logit_cap": "final_logit_softcapping"},
        defaults=_GEMMA
        | {
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
    "phi3": Family(
        windows="all",
        fused=("qkv_proj", "gate_up_proj"),
        partial=True,
        defaults={"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    ),
    "granite": Family(
        **_ATTENTION,
        glu_bias="mlp_bias",
        scales={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "score_scale": "attention_multiplier",
        },
        defaults={"attention_multiplier": 1.0},
    ),
    "helium": Family(
        qkv_bias="attention_bias",
        glu_bias="mlp_bias",
        neighbours=True,
        square=True,
        defaults={
            "num_key_value_heads": 20,
            "head_dim": 128,
            "rms_norm_eps": 1e-8,
            "rope_theta": 1e5,
        },
    ),
    "glm": Family(
        qkv_bias="attention_bias",
        neighbours=True,
        partial=True,
        fused=("gate_up_proj",),
        defaults=_GLM,
    ),
    "glm4": Family(
        qkv_bias="attention_bias",
        norm_names=GLM4,
        neighbours=True,
        partial=True,
        fused=("gate_up_proj",),
        defaults=_GLM,
    ),
    "exaone4": Family(
        norm_names=POST,
        qk_norm="head",
        windows="layers",
        pattern=4,
        rope="windowed",
        defaults={"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096},
    ),
    "seed_oss": Family(
        qkv_bias="attention_bias",
        out_bias="attention_out_bias",
        glu_bias="mlp_bias",
        class_name="SeedOssForCausalLM",
        defaults={"num_key_value_heads": 8, "head_dim": 128, "attention_bias": True},
    ),
}
"""Families that can be imported: `model_type` -> what it has."""

HYBRIDS = (
    "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "kimi_linear", "granitemoehybrid",
    "jamba", "bamba", "zamba", "zamba2", "falcon_h1", "falcon_mamba", "lfm2", "nemotron_h",
    "recurrent_gemma", "minimax", "olmo_hybrid", "mamba", "mamba2", "rwkv",
)  # fmt: skip
"""Families whose layers are recurrent, all or in part."""
WITH_IMAGES = {
    "gemma3": "Gemma3ForCausalLM",
    "mistral3": "Ministral3ForCausalLM",
}
"""Families of text and images -> the class of transformers that holds the text's part."""
