"""Rotary positions of LLaMA and the ways to stretch them beyond the trained context.

Channel pair c = 0 .. K/2 - 1 turns by position * w_c with w_c = base^(-2c/K) (RoFormer, arXiv
2104.09864, section 3.2.2; LLaMA's layout: halves, not neighbours). With a `RopeScaling` of factor
s for an original context of n tokens:

    linear    w_c / s                                                        (arXiv 2306.15595)
    dynamic   w_c at base ((s L / n) - (s - 1))^(K/(K-2)), L = max(n, length)  (NTK-aware)
    yarn      between w_c / s and w_c by a ramp over the channels that turn beta_slow .. beta_fast
              times in n tokens; cos and sin times 0.1 ln(s) + 1             (arXiv 2309.00071)
    llama3    between w_c / s and w_c by wavelength, n / low_freq_factor .. n / high_freq_factor
              (Llama 3.1's model card)
    longrope  w_c / f_c with one set of f up to length n and another beyond; cos and sin times
              sqrt(1 + ln(s) / ln(n))                                        (arXiv 2402.13753)

`length` is the sequence's length at the end of the call. So with `dynamic` and `longrope`, beyond n
tokens, keys in a cache keep the angles of the call that wrote them: decoding then differs from one
parallel call over the same tokens, as it does in every implementation that caches rotated keys.

Where only a share of a head's channels rotates, K above is that share, and the other channels have
angle zero; so have all channels in layers without rotary positions. Pairs are always (c, c + K/2)
over the whole head: an import puts the channels of other layouts there.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.architectures.llama import RopeScaling, RopeUse, llama_options
from models.config import ModelConfig
from models.layers import Span, angle_dtype


def rotary_angles(
    config: ModelConfig,
    positions: Tensor,
    lengths: Tensor,
    dtype: torch.dtype,
    use: RopeUse = "global",
) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles.

    Args:
        config: model.
        positions: (B or 1, T) integers.
        lengths: tokens of each position's sequence at the end of the call, broadcastable to
            `positions`; read by `dynamic` and `longrope` scaling alone.
        dtype: of the model.
        use: which of the model's angles.

    Returns:
        Two tensors (B or 1, T, 1, head_dim / 2).
    """
    dtype = angle_dtype(dtype)
    options = llama_options(config)
    size, pairs = options.rotated(config.head_dim), config.head_dim // 2
    scaling, base = options.rope_scaling, options.rope_base
    if use == "local":
        assert options.local_rope_base is not None
        scaling, base = None, options.local_rope_base
    if use == "none":
        one = torch.ones(1, 1, 1, pairs, device=positions.device, dtype=dtype)
        return one, torch.zeros_like(one)
    exponent = -torch.arange(0, size, 2, device=positions.device, dtype=dtype) / size  # (K/2,)
    if scaling is not None and scaling.kind == "dynamic":
        assert scaling.original_length is not None
        stretch = lengths.clamp(min=scaling.original_length).to(dtype) / scaling.original_length
        stretch = scaling.factor * stretch - (scaling.factor - 1)
        frequencies = (base * stretch ** (size / (size - 2)))[..., None, None] ** exponent
    elif scaling is not None and scaling.kind == "longrope":
        assert scaling.original_length is not None
        short, long = (
            base**exponent / torch.tensor(factors, device=positions.device, dtype=dtype)
            for factors in (scaling.short_factors, scaling.long_factors)
        )
        beyond = (lengths > scaling.original_length)[..., None, None]
        frequencies = torch.where(beyond, long, short)
    else:
        frequencies = _scaled(base**exponent, base, scaling)
    angles = positions.to(dtype)[..., None, None] * frequencies  # (B or 1, T, 1, size / 2)
    cos, sin = angles.cos(), angles.sin()
    if scaling is not None and (factor := _factor(scaling)) != 1:
        cos, sin = cos * factor, sin * factor
    if 2 * pairs > size:  # the rest does not turn
        cos = F.pad(cos, (0, pairs - size // 2), value=1)
        sin = F.pad(sin, (0, pairs - size // 2))
    return cos, sin


def query_factor(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Factor on the queries at positions (B or 1, T), (B or 1, T, 1, 1); None where it is one.

    It takes in `score_scale`, and what `rope_scaling.query_growth` says.
    """
    options = llama_options(config)
    constant, scaling = options.queries_factor(config.head_dim), options.rope_scaling
    if scaling is None or not scaling.query_growth:
        if constant == 1:
            return None
        return torch.full((1, 1, 1, 1), constant, device=positions.device, dtype=dtype)
    assert scaling.original_length is not None
    stretches = (positions // scaling.original_length).to(angle_dtype(dtype))
    return (constant * (1 + scaling.query_growth * stretches.log1p()))[..., None, None].to(dtype)


def _factor(scaling: RopeScaling) -> float:
    """What cos and sin are multiplied by."""
    if scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1
    assert scaling.original_length is not None
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_length))


def sequence_lengths(span: Span) -> Tensor:
    """Length of each token's sequence at the end of a call, broadcastable to `span.positions`."""
    if span.cu_seqlens is None:
        return span.positions[:, -1:] + 1
    ends = span.positions[0, span.cu_seqlens[1:].to(torch.int64) - 1] + 1  # (N,)
    return ends[span.sequence][None]  # (1, T)


def _scaled(frequencies: Tensor, base: float, scaling: RopeScaling | None) -> Tensor:
    """Frequencies (K/2,) under a scaling that does not depend on the length."""
    if scaling is None:
        return frequencies
    interpolated = frequencies / scaling.factor
    if scaling.kind == "linear":
        return interpolated
    assert scaling.original_length is not None
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        turns = scaling.original_length * frequencies / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
    else:
        keep = 1 - _yarn_ramp(frequencies, base, scaling)
    return interpolated + (frequencies - interpolated) * keep


def _yarn_ramp(frequencies: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """0 for channels that keep their angle, 1 for those interpolated in full, linear between."""
    assert scaling.original_length is not None
    pairs = frequencies.shape[0]

    def channel(turns: float) -> float:
        """The channel pair that turns that often within the original context."""
        assert scaling.original_length is not None
        return pairs * math.log(scaling.original_length / (turns * 2 * math.pi)) / math.log(base)

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    high = high + 0.001 if low == high else high
    index = torch.arange(pairs, device=frequencies.device, dtype=frequencies.dtype)
    return ((index - low) / (high - low)).clamp(0, 1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (c, c + K/2) of x (B, T, H, K) by the angles of `rotary_angles`."""
    first, second = x.chunk(2, dim=-1)  # (B, T, H, K/2)
    turned = (
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(second * cos, first, sin),
    )
    return torch.cat(turned, dim=-1).to(x.dtype)
