"""What the two mixers with the delta rule share: Gated DeltaNet and Kimi Delta Attention.

    [q, k, v] = silu(conv(X [W_q, W_k, W_v]))        q, k of length 1 a head, q over sqrt(K)
    beta = sigmoid(X W_b), times 2 with negative eigenvalues        decay: see `DecayGate`
    O = Norm(delta_attention(q, k, v, beta, decay)) * gate(X)        Y = O W_o

The norm is over the channels of a head, with one weight a channel for all heads. Data flow:
1. one product gives q, k, v, which a short convolution mixes over time; 2. a subclass gives the log
decays and the output gate; 3. `delta_attention`; 4. norm, gate, output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.architectures.delta import DeltaOptions
from models.config import ModelConfig
from models.decay_gate import DecayGate
from models.kernels.delta.api import delta_attention, delta_attention_step
from models.layers import LayerState, RMSNorm, Shared, Span, TokenMixer, angle_dtype, normalize
from models.short_convolution import ShortConvolution

_LENGTH_EPS = 1e-6
"""Added to the squared length of queries and keys."""


class DeltaMixer(TokenMixer, ABC):
    """States: `kv` (N, H, K, V) and `conv` (N, k - 1, channels of q, k and v), float32."""

    decay: DecayGate

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        options = config.options_as(DeltaOptions)
        self.heads = config.heads
        self.keys, self.values = options.sizes(config)
        self.largest_beta = 2.0 if options.negative_eigenvalues else 1.0
        self.widths = (self.heads * self.keys, self.heads * self.keys, self.heads * self.values)
        self.qkv = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.conv = ShortConvolution(sum(self.widths), options.convolution)
        self.beta = nn.Linear(config.dim, self.heads, bias=False)
        self.norm = RMSNorm(self.values, config.norm_eps)
        self.out = nn.Linear(self.heads * self.values, config.dim, bias=False)

    @abstractmethod
    def decays(self, x: Tensor) -> Tensor:
        """Log decays, (..., H) or (..., H, K), of x (..., d)."""

    @abstractmethod
    def output_gate(self, x: Tensor) -> Tensor:
        """What multiplies the normed output, (..., H V), of x (..., d)."""

    def _split(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (..., H, K) and v (..., H, V) of convolved channels."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in F.silu(mixed).split(self.widths, -1))
        # The mean square is the squared length over K.
        q, k = normalize(q, _LENGTH_EPS / self.keys), normalize(k, _LENGTH_EPS / self.keys)
        return q / self.keys, k * self.keys**-0.5, v

    def _shares(self, x: Tensor) -> Tensor:
        """beta, (..., H)."""
        logits = self.beta(x)
        return self.largest_beta * torch.sigmoid(logits.to(angle_dtype(logits.dtype)))

    def _finish(self, o: Tensor, x: Tensor) -> Tensor:
        return self.out(self.norm(o).flatten(-2) * self.output_gate(x))

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        mixed, convolved = self.conv(self.qkv(x), span, state)
        initial = None if state is None else state["kv"]
        o, final = delta_attention(
            *self._split(mixed),
            self._shares(x),
            self.decays(x),
            initial,
            span.cu_seqlens,
        )
        return self._finish(o, x), {"kv": final, **convolved}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        mixed, convolved = self.conv.step(self.qkv(x), state)
        o, kv = delta_attention_step(
            *self._split(mixed), self._shares(x), state["kv"], self.decays(x)
        )
        return self._finish(o, x), {"kv": kv, **convolved}

    def take_attention(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        self.qkv.weight.copy_(torch.cat((q, k, v)))
        self.out.weight.copy_(out)
        # Each token its own alone, until the convolution learns otherwise.
        self.conv.weight.zero_()
        self.conv.weight[:, -1] = 1

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, self.keys, self.values)
        kv = torch.zeros(shape, device=device, dtype=angle_dtype(dtype))
        return {"kv": kv, **self.conv.initial_state(batch_size, device, dtype)}
