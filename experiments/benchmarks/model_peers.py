"""The models whose training steps `kernels_gpu --part train` times: ours, and peers of their shape.

| ours       | peer                                                                            |
|------------|---------------------------------------------------------------------------------|
| llama      | `LlamaForCausalLM` of transformers, with scaled_dot_product_attention           |
| tnl        | `RetNetForCausalLM` of flash-linear-attention: a fixed decay a head, and a gate |
| hgrn2      | `HGRN2ForCausalLM` of flash-linear-attention                                    |
| cosformer2 | `LinearAttentionForCausalLM` of flash-linear-attention: no decay, no phase      |

Peers have the same width, depth, heads, channel mixer, vocabulary and tied embeddings, and hold as
many parameters within a tenth. Only the first and the third are functions of ours' form; the other
two are the library's nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.language_model import build

Loss = Callable[[Tensor], Tensor]
"""Mean loss of tokens, (B, T + 1), a scalar."""
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "tnl": ("RetNet", {"expand_v": 1.0}),
    "hgrn2": ("HGRN2", {"expand_ratio": None}),
    "cosformer2": ("LinearAttention", {"expand_k": 1, "expand_v": 1, "feature_map": "relu"}),
}
"""Models of flash-linear-attention, and what makes them as wide as ours."""


@dataclass(frozen=True, kw_only=True)
class Trainee:
    """A model to be trained for a few steps."""

    name: str
    make: Callable[[], tuple[nn.Module, Loss]]
    """Builds it with its loss; only then does it take memory."""


def trainees(config: ModelConfig, device: str) -> Iterator[Trainee]:
    """Ours and, where its library is installed, the peer; weights in bfloat16."""
    yield Trainee(name="linscale", make=lambda: _ours(config, device))
    try:
        name, peer = _transformers(config) if config.arch == "llama" else _fla(config)
    except ImportError:
        return
    yield Trainee(name=name, make=lambda: _theirs(peer(), device))


def _ours(config: ModelConfig, device: str) -> tuple[nn.Module, Loss]:
    model = build(config, device=device, dtype=torch.bfloat16)
    return model, lambda tokens: model.loss(tokens[:, :-1], tokens[:, 1:]).mean()


def _theirs(model: nn.Module, device: str) -> tuple[nn.Module, Loss]:
    """Both libraries shift the labels themselves, so that one token less is predicted."""
    model = model.to(device, torch.bfloat16).train()
    return model, lambda tokens: model(tokens[:, :-1], labels=tokens[:, :-1]).loss


def llama_of_transformers(config: ModelConfig) -> Any:
    """The library's model of our configuration."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.glu_dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            use_cache=False,
        )
    )
    model.set_attn_implementation("sdpa")
    return model.train()


def _transformers(config: ModelConfig) -> tuple[str, Callable[[], nn.Module]]:
    return "transformers Llama", lambda: llama_of_transformers(config)


def _fla(config: ModelConfig) -> tuple[str, Callable[[], nn.Module]]:
    import fla.ops.gla  # noqa: F401  its models are of no use without its kernels
    from fla import models

    family, options = FAMILIES[config.arch]
    shape = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.layers,
        "num_heads": config.heads,
        "intermediate_size": config.glu_dim,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "use_cache": False,
        "fuse_cross_entropy": False,
        "fuse_linear_cross_entropy": True,  # as ours: the logits are never whole
    }

    def make() -> nn.Module:
        settings = getattr(models, f"{family}Config")(**shape, **options)
        return getattr(models, f"{family}ForCausalLM")(settings)

    return f"fla {family}", make
