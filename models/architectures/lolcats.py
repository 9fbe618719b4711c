"""LoLCATs: options and costs (the mixer: `models.linearize.lolcats`; arXiv 2410.10254)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from models.architecture import Architecture, Kept, LayerCosts, Softmax
from models.architectures import llama
from models.config import ModelConfig
from models.fields import LATER
from models.linearize.options import POSITIVE, FeatureMapName, Linearized

Arrangement = Literal["terraced", "sliding"]


@dataclass(frozen=True, kw_only=True)
class LoLCATs(Linearized):
    """LoLCATs' attention (`models.linearize.lolcats`); defaults as published."""

    feature_map: FeatureMapName = "hedgehog"
    window: int = 64
    """Softmax window w in tokens."""
    arrangement: Arrangement = "terraced"
    """`terraced`: a token sees its own block of w tokens and the block before. `sliding`: a token
    sees the last w tokens, itself included."""
    affine: bool = False
    """Weigh the linear part by one minus the window factor, instead of one."""
    window_factor: float = 0.1
    """Start of the learned factor of each head on the softmax part, above 0 and below 1."""
    sink_tokens: int = field(default=0, metadata=LATER)
    """First tokens of a sequence that softmax attention sees from everywhere, beside the window:
    attention sinks (arXiv 2309.17453). They are no part of the linear attention."""
    shared_state: bool = field(default=False, metadata=LATER)
    """Query heads that share a key-value head share its linear state too: keys have a map a
    key-value head. False, as published: a map of keys and a state for every query head."""

    def _validate(self) -> None:
        super()._validate()
        if self.feature_map not in POSITIVE:
            rule = f"one of {', '.join(POSITIVE)}, whose products are never negative"
            self._require("feature_map", False, f"{rule}: they make a denominator")
        self._require("window", self.window >= 1, "a positive whole number of tokens")
        self._require("sink_tokens", self.sink_tokens >= 0, "at least 0")
        self._require("window_factor", 0 < self.window_factor < 1, "above 0 and below 1")

    def oldest(self, position: int) -> int:
        """First position in the window of the token at `position`, both counted from 0."""
        w = self.window
        first = position - w + 1 if self.arrangement == "sliding" else (position // w - 1) * w
        return max(first, 0)

    def seen(self, position: int) -> int:
        """Keys that softmax attention of the token at `position` (counted from 1) sees."""
        oldest = self.oldest(position - 1)
        return position - oldest + min(oldest, self.sink_tokens)

    def mean_seen(self, length: int) -> float:
        """Keys that softmax attention sees on average over a sequence of `length` tokens."""
        w, (blocks, rest) = self.window, divmod(length, self.window)
        if self.arrangement == "sliding":
            short = min(length, w)
            total = short * (short + 1) / 2 + (length - short) * w
        else:
            total = blocks * w * (w + 1) // 2 + rest * (rest + 1) // 2 + w * max(length - w, 0)
        # A token sees the sinks that have left its window; from some position on that is all.
        most = self.sink_tokens
        filled = min(length, most + 3 * w) if most else 0
        sinks = sum(min(self.oldest(p), most) for p in range(filled)) + (length - filled) * most
        return (total + sinks) / length


def costs(model: ModelConfig, layer: int) -> LayerCosts:
    """One layer: linear attention with a state that has one more value channel, the denominator's,
    and is kept twice; softmax attention to a window, whose cache has two of them. A state that
    query heads share is updated once and read by each."""
    options, d, size = model.options_as(LoLCATs), model.dim, model.head_dim
    key_heads = llama.key_value_heads(model) if options.shared_state else model.heads
    maps = model.heads + sum(options.map_parameters(n, size) for n in (model.heads, key_heads))
    map_flops = sum(options.map_flops(n, size) for n in (model.heads, key_heads))
    features = options.features(size)
    state = key_heads * features * (size + 1)
    reads = (model.heads - key_heads) * features * (size + 1)  # beyond one a number of the state

    def paper(_: int) -> Mapping[str, float]:
        linear = 36.0 * d * d * features / size / model.heads
        return {"attention": linear + 24.0 * d * options.window, "vector": 20.0 * d,
                "feature_map": 3.0 * map_flops}  # fmt: skip

    scores = model.heads * options.window
    kept = Kept(
        wide=20.5 * d + 6 * scores,
        narrow=13.5 * d + 5 * scores,
        states=state / options.window,
        products=7 * d + 2 * scores,
    )
    shape = (options.feature_map, options.arrangement, options.sink_tokens, options.shared_state)
    published = shape == ("hedgehog", "terraced", 0, False)
    return LayerCosts(
        parameters={**llama.kept_parameters(model), "feature_map": maps},
        flops={
            "projections": 2.0 * llama.projections(model),
            "feature_map": float(map_flops),
            "attention": 2.0 * reads,
        },
        state=state,
        spare=state,
        kept=llama.counted(model, kept) if published else None,
        softmax=Softmax(
            query_width=model.heads * size,
            key_width=llama.key_value_heads(model) * size,
            seen=options.seen,
            mean=options.mean_seen,
            held=lambda _: 2 * options.window + options.sink_tokens,
        ),
        paper_parameters=llama.projections(model) - 4 * d * d + 4 * d + maps,
        paper_flops=paper,
    )


ARCHITECTURE = Architecture(
    label="LoLCATs",
    mixer="models.linearize.lolcats:HybridAttention",
    stem="models.llama:RotaryStem",
    shares=llama.angles,
    activation="silu",
    options=LoLCATs,
    costs=costs,
    starts_from="surgery",
)
