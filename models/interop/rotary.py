"""Rotary positions in config.json: bases, scaling and shares, both ways.

Current files have `rope_parameters`, flat or one table each for `full_attention` and
`sliding_attention` layers; older ones `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from models.architectures.llama import LlamaOptions, RopeScaling
from models.interop.families import Family
from models.interop.tensors import InteropError

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_KINDS = {"su": "longrope"}  # the older name


def rope_options(family: Family, values: dict[str, Any], windowed: bool) -> dict[str, Any]:
    """Options of `LlamaOptions` that say how queries and keys rotate.

    Args:
        family: of the checkpoint.
        values: config.json with the family's defaults.
        windowed: some layers have a window.

    Raises:
        InteropError: there is no such rotation here.
        KeyError: a value that the scaling needs is missing.
    """
    tables: dict[str, Any] = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    local: dict[str, Any] | None = tables.get(_LOCAL)
    if local is None and family.two_ropes:
        theta = values.get("rope_local_base_freq") or values.get("rope_theta")
        local = {"rope_theta": theta or 10_000.0}
    rope: dict[str, Any] = tables[_GLOBAL] if isinstance(tables.get(_GLOBAL), dict) else tables
    rope = {k: v for k, v in rope.items() if k not in (_GLOBAL, _LOCAL)}
    base = float(rope.get("rope_theta") or values.get("rope_theta") or 10_000.0)
    share = rope.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0
    if share != 1 and not family.partial:
        raise InteropError(
            f"partial_rotary_factor={share}: in this family all channels of a head must rotate."
        )
    scaling = _scaling(family, rope, values)
    found: dict[str, Any] = {"rope_base": base, "rope_scaling": scaling, "rope_share": float(share)}
    if local is None or not windowed:
        return found
    local_base = float(local.get("rope_theta") or base)
    kind = local.get("rope_type") or "default"
    if kind != "default":
        raise InteropError(
            f"rope_parameters.{_LOCAL}.rope_type={kind!r}: only layers that see all keys may have "
            "stretched rotary positions."
        )
    if (local_base, scaling) == (base, None):
        return found
    return found | {"local_rope_base": local_base}


def _scaling(family: Family, rope: dict[str, Any], values: dict[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = _KINDS.get(kind, kind)
    if kind == "default":
        return None
    context = values.get("max_position_embeddings", 2048)
    original = values.get("original_max_position_embeddings") if family.partial else None
    original = original or rope.get("original_max_position_embeddings")
    scaling = RopeScaling(
        kind=kind,  # pyright: ignore[reportArgumentType]
        factor=float(rope.get("factor") or context / _needed(rope, original)),
        # Dynamic scaling starts at the configured context, whatever else is stated.
        original_length={"linear": None, "dynamic": context}.get(kind, original or context),
        query_growth=float(rope.get("llama_4_scaling_beta") or 0.0) if family.grows else 0.0,
    )
    if kind == "llama3":
        scaling = replace(
            scaling,
            low_freq_factor=float(rope["low_freq_factor"]),
            high_freq_factor=float(rope["high_freq_factor"]),
        )
    if kind == "yarn":
        scaling = replace(
            scaling,
            attention_factor=_yarn_attention(rope, scaling.factor),
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            truncate=bool(rope.get("truncate", True)),
        )
    if kind == "longrope":
        scaling = replace(
            scaling,
            attention_factor=rope.get("attention_factor"),
            short_factors=tuple(map(float, rope["short_factor"])),
            long_factors=tuple(map(float, rope["long_factor"])),
        )
    return scaling


def _needed(rope: dict[str, Any], original: int | None) -> int:
    if original is None:
        raise KeyError("factor" if "factor" not in rope else "original_max_position_embeddings")
    return original


def _yarn_attention(rope: dict[str, Any], factor: float) -> float | None:
    """Temperature of yarn where it is not the default."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    mscale, of_all = rope.get("mscale"), rope.get("mscale_all_dim")
    if not (mscale and of_all) or factor <= 1:
        return None
    return (0.1 * mscale * math.log(factor) + 1) / (0.1 * of_all * math.log(factor) + 1)


def rope_values(family: Family, options: LlamaOptions) -> dict[str, Any]:
    """What config.json says of the rotation: the other way of `rope_options`."""
    rope: dict[str, Any] = {"rope_theta": options.rope_base, "rope_type": "default"}
    if (scaling := options.rope_scaling) is not None:
        names: dict[str, str] = {"factor": "factor"}
        if scaling.original_length is not None:
            names["original_max_position_embeddings"] = "original_length"
        own = {
            "llama3": ("low_freq_factor", "high_freq_factor"),
            "yarn": ("attention_factor", "beta_fast", "beta_slow", "truncate"),
            "longrope": ("attention_factor",),
        }.get(scaling.kind, ())
        names |= {name: name for name in own}
        found = {theirs: getattr(scaling, ours) for theirs, ours in names.items()}
        rope |= {name: value for name, value in found.items() if value is not None}
        rope["rope_type"] = scaling.kind
        if scaling.kind == "longrope":
            rope["short_factor"] = list(scaling.short_factors)
            rope["long_factor"] = list(scaling.long_factors)
        if scaling.query_growth and family.grows:
            rope["llama_4_scaling_beta"] = scaling.query_growth
    if family.partial:
        rope["partial_rotary_factor"] = options.rope_share
    if not family.two_ropes:
        return {"rope_parameters": rope}
    base = options.rope_base if options.local_rope_base is None else options.local_rope_base
    local = {"rope_theta": base, "rope_type": "default"}
    return {"rope_parameters": {_GLOBAL: rope, _LOCAL: local}}
