"""Positions of the linear mixers: LRPE's angles and the Toeplitz encoding of embedded tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.tnl import GatedOptions
from models.config import ModelConfig
from models.kernels.api import linear_attention, linear_attention_step
from models.layers import FullPrecision, LayerState, Span, angle_dtype


class LRPEAngles(FullPrecision):
    """Angles theta of the linearised relative position encoding, one per head and channel.

    q and k become [q cos(theta t), q sin(theta t)], so that their product gains the factor
    cos(theta (t - s)) per channel: cosFormer2's re-weighting (arXiv 2406.16690 eq. 17) and TNL's
    LRPE. The paper does not print the initial angles; theta_c = base^(-2c / d), c = 0 .. d - 1
    over the channels of all heads, is that of the authors' TransNormer code, which also trains
    them (`lrpe_learned`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, options = config, config.options_as(GatedOptions)
        self.base = options.rope_base
        # One dimension, so that no weight decay reaches the angles.
        self.theta: Tensor
        if options.lrpe_learned:
            self.theta = nn.Parameter(torch.empty(config.dim))
        else:
            self.register_buffer("theta", torch.empty(config.dim), persistent=False)

    def reset_parameters(self) -> None:
        channel = torch.arange(self.config.dim, device=self.theta.device, dtype=torch.float64)
        with torch.no_grad():
            self.theta.copy_(self.base ** (-2 * channel / self.config.dim))

    def forward(self) -> Tensor:
        return self.theta.view(self.config.heads, self.config.head_dim)  # (H, K)


class ToeplitzEncoding(nn.Module):
    """TPE: a causal Toeplitz mixing of the embedded tokens, one pole per head.

        s_t = lambda s_{t-1} + x_t,   y_t = W s_t,   i.e.   y_t = sum_{s <= t} lambda^(t-s) W x_s

    for each head's channels, with lambda = sigmoid(pole) learned and W a (d/h, d/h) matrix.
    arXiv 2406.16690 gives TPE's place (once, after the embedding, eq. 16) and its cost (d * d/h
    parameters, a 2 n d (d/h) projection and a recurrence) but not its equation. This is the
    one-pole recurrence of the first author's later code, whose position-independent queries and
    keys collapse to a scalar, with W (d * d/h parameters in all heads together) in the place of
    its dense output projection. lambda starts at 1/2 (as there) and W at the identity, so that a
    fresh model still reads its tokens.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.pole = nn.Parameter(torch.empty(config.heads))
        self.weight = nn.Parameter(torch.empty(config.heads, config.head_dim, config.head_dim))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.pole)
        with torch.no_grad():
            self.weight.copy_(torch.eye(self.head_dim, device=self.weight.device))

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, 1, self.head_dim)
        return {"tpe": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}

    def _decay(self) -> Tensor:
        return F.logsigmoid(self.pole.to(angle_dtype(self.pole.dtype)))  # (H,)

    def forward(self, x: Tensor, span: Span, state: LayerState | None) -> tuple[Tensor, LayerState]:
        values = x.unflatten(-1, (self.heads, self.head_dim))  # (B, T, H, V)
        initial = None if state is None else state["tpe"]  # (N, H, 1, V)
        # All rows have the same filter, so that they can be more channels of one sequence. On the
        # CPU that is two to three times as fast; CUDA kernels want many sequences instead.
        fold = x.device.type == "cpu" and span.cu_seqlens is None
        if fold:
            values = values.movedim(0, 2).flatten(2)[None]  # (1, T, H, B V)
            initial = None if initial is None else initial.movedim(0, 2).flatten(2)[None]
        ones = values.new_ones(1).expand(*values.shape[:-1], 1)  # (B, T, H, 1)
        out, final = linear_attention(ones, ones, values, self._decay(), initial, span.cu_seqlens)
        if fold:
            rows = (x.shape[0], self.head_dim)
            out = out[0].unflatten(-1, rows).movedim(2, 0)  # (B, T, H, V)
            final = final[0].unflatten(-1, rows).movedim(2, 0)  # (B, H, 1, V)
        return self._project(out), {"tpe": final}

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        values = x.unflatten(-1, (self.heads, self.head_dim))  # (B, H, V)
        ones = values.new_ones(1).expand(*values.shape[:-1], 1)  # (B, H, 1)
        out, final = linear_attention_step(ones, ones, values, state["tpe"], self._decay())
        return self._project(out), {"tpe": final}

    def _project(self, s: Tensor) -> Tensor:
        return torch.einsum("...hk,hvk->...hv", s, self.weight).flatten(-2)  # (..., d)
