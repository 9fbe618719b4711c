"""Configuration of an exported linear-attention language model."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class LinscaleConfig(PretrainedConfig):
    """A linear model as exported by Linscale."""

    model_type = "linscale"

    def __init__(
        self,
        vocab_size: int = 256,
        hidden_size: int = 64,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        intermediate_size: int = 176,
        max_position_embeddings: int = 2048,
        initializer_range: float = 0.02,
        linscale: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            vocab_size: rows of the embedding.
            hidden_size: width of the residual stream.
            num_hidden_layers: blocks.
            num_attention_heads: heads.
            intermediate_size: width of the channel mixer.
            max_position_embeddings: tokens of the training sequences; no limit for these models.
            initializer_range: standard deviation of fresh weight matrices.
            linscale: every field of the model's configuration, of which the above are copies
                under the names that transformers knows.
            kwargs: fields of `PretrainedConfig`.
        """
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.linscale = dict(linscale or {})
        super().__init__(**kwargs)
