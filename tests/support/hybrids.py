"""Hybrids for parametrised tests."""

from __future__ import annotations

from models.config import ModelConfig, toy_config

PATTERNS: tuple[tuple[str, str], ...] = (
    ("hgrn2", "hgrn2*3+llama"),
    ("llama", "tnl+llama(window=7, kv_heads=2)"),
    ("cosformer2", "cosformer2+hgrn2+tnl(lrpe=all)+llama(rope_share=0)"),
    ("tnl", "llama+hgrn2"),
    ("supra", "supra*2+llama(qkv_bias=true)+cosformer2"),
)
"""Base architecture and mixers: every kind that is built in, with options of single layers, and
bases that no layer is of."""


def hybrid(arch: str, pattern: str, dim: int = 32, layers: int = 4) -> ModelConfig:
    """A toy with those mixers."""
    return toy_config(arch, dim, vocab_size=61, layers=layers).replace(mixers=pattern)
