"""A short causal convolution over time, channel by channel, and its state in decoding.

    y_t = sum_{j < k} w_j * x_{t - k + 1 + j} (+ b),  x before the sequence's start 0

as before the recurrences of Mamba-2 (arXiv 2405.21060), Gated DeltaNet (2412.06464) and Kimi Delta
Attention (2510.26692), with k = 4. The state is the last k - 1 inputs of each sequence. It is
element-wise work: `models.accounting` counts its weights and its state, but no FLOPs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.layers import LayerState, Span, angle_dtype


class ShortConvolution(nn.Module):
    """State (N, k - 1, C) under the name `conv`, in float32 or wider."""

    def __init__(self, channels: int, size: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, size))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def reset_parameters(self) -> None:
        # PyTorch's rule for a convolution with one input channel, which all of the papers start by.
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, span: Span, state: LayerState | None) -> tuple[Tensor, LayerState]:
        """x (B, T, C) to y (B, T, C), and the inputs that the next tokens need.

        y has the weights' dtype where that is the wider one, so that the sum is rounded by whoever
        takes it.
        """
        past = self.weight.shape[1] - 1
        if span.cu_seqlens is None:
            before = x.new_zeros(len(x), past, x.shape[-1])
            if state is not None:
                before = state["conv"].to(x.dtype)
            padded = torch.cat((before, x), 1)  # (B, past + T, C)
            y, after = self._weigh(padded), padded[:, padded.shape[1] - past :]
        else:
            y, after = self._packed(x, span.cu_seqlens, state)
        return y, {"conv": after.to(angle_dtype(x.dtype))}

    def _packed(
        self, x: Tensor, cu_seqlens: Tensor, state: LayerState | None
    ) -> tuple[Tensor, Tensor]:
        """Every sequence gets its own `past` rows before its tokens, all in one row."""
        past, count = self.weight.shape[1] - 1, len(cu_seqlens) - 1
        bounds = cu_seqlens.to(torch.int64)
        shift = past * torch.arange(1, count + 1, device=x.device)  # (N,)
        tokens = torch.arange(x.shape[1], device=x.device)
        places = tokens + shift[torch.searchsorted(bounds[1:], tokens, right=True)]  # (T,)
        back = torch.arange(-past, 0, device=x.device)
        padded = x.new_zeros(1, x.shape[1] + past * count, x.shape[-1])
        padded = padded.index_copy(1, places, x)
        if state is not None:
            rows = ((bounds[:-1] + shift)[:, None] + back).flatten()  # (N * past,)
            padded = padded.index_copy(1, rows, state["conv"].to(x.dtype).flatten(0, 1)[None])
        after = padded[0, (bounds[1:] + shift)[:, None] + back]  # (N, past, C)
        return self._weigh(padded)[:, places - past], after

    def step(self, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
        """One token of every sequence, x (B, C)."""
        window = torch.cat((state["conv"].to(x.dtype), x[:, None]), 1)  # (B, k, C)
        return self._weigh(window)[:, 0], {"conv": window[:, 1:].to(state["conv"].dtype)}

    def _weigh(self, padded: Tensor) -> Tensor:
        """Sums over k consecutive rows: (B, past + T, C) to (B, T, C)."""
        size = self.weight.shape[1]
        length = padded.shape[1] - size + 1
        weight = self.weight
        y = padded[:, :length] * weight[:, 0]
        for j in range(1, size):
            y = torch.addcmul(y, padded[:, j : j + length], weight[:, j])
        return y if self.bias is None else y + self.bias

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        channels, size = self.weight.shape
        shape = (batch_size, size - 1, channels)
        return {"conv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}
