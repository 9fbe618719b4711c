"""Options of blocks as imported families have them, all at once."""

from __future__ import annotations

from typing import Any

from models.architectures.llama import RopeScaling

LIKE_GEMMA: dict[str, Any] = {
    "norms": "both", "norm_offset": True, "glu_activation": "gelu_tanh", "logit_cap": 3.0,
    "window": 30, "full_layers": (1,), "local_rope_base": 5e3, "qk_norm": "head",
    "score_scale": 0.4, "score_cap": 1.5, "embedding_scale": 3.0,
}  # fmt: skip
LIKE_OLMO: dict[str, Any] = {
    "norms": "post", "residual_scale": 0.7, "logit_scale": 0.5, "qk_norm": "all",
    "rope_free_layers": (0,), "rope_share": 0.5,
    "rope_scaling": RopeScaling(kind="yarn", factor=2.0, original_length=100, query_growth=0.3),
}  # fmt: skip
BLOCKS = {"gemma": LIKE_GEMMA, "olmo": LIKE_OLMO}
