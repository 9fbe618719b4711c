"""HGRN2: gated linear recurrence with a data-dependent decay per channel (2406.16690 eqs. 12-15).

    q = silu(Xb W_og),  f = lb + (1 - lb) * sigmoid(Xb W_fg),  v = Xb W_h,  Xb = Norm(X)
    S_t = diag(f_t) S_{t-1} + (1 - f_t) v_t^T,   o_t = S_t^T q_t
    X + Norm(Concat(O)) W_o

q plays the output gate: there is no other. Norms are parameter-free SRMSNorm, the channel mixer is
an SGLU without activation.

Lower bounds lb: with learned logits (L, d), a softmax over the layers and its running sum, less
the first layer's row, so that layer 0 can forget everything and bounds rise with depth. Eq. 12
does not print the subtraction; all public implementations have it (HGRN, arXiv 2311.04823, eq. 5
also starts at 0). Logits start equal: lb = i / L in layer i.
Activation of q: eq. 13 prints none; SiLU is that of the authors' language model and of the
library the paper trained with.

Data flow: 1. the stem turns the logits into the bounds of all layers; 2. one product gives q, the
gate logits and v; 3. `hgrn2_attention` forms f, 1 - f and log f in float32; 4. norm, output.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import ModelConfig
from models.kernels.api import hgrn2_attention, hgrn2_attention_step
from models.layers import (
    FullPrecision,
    LayerState,
    Shared,
    Span,
    SRMSNorm,
    Stem,
    TokenMixer,
    angle_dtype,
)


class LowerBounds(FullPrecision, Stem):
    """Shares the lower bounds of the forget gates of all layers, (L, H, K)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # One dimension, so that no weight decay reaches the logits.
        self.logits = nn.Parameter(torch.empty(config.layers * config.dim))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.logits)

    def bounds(self) -> Tensor:
        """cumsum(softmax(logits)) less its first row: (L, H, K) in [0, 1)."""
        config = self.config
        share = self.logits.view(config.layers, -1).softmax(dim=0)
        bounds = share.cumsum(dim=0) - share[:1]
        return bounds.view(config.layers, config.heads, config.head_dim)

    def forward(
        self, x: Tensor, span: Span, state: LayerState | None
    ) -> tuple[Tensor, list[Shared], LayerState]:
        return x, [(bound,) for bound in self.bounds()], {}

    def step(
        self, x: Tensor, positions: Tensor, state: LayerState
    ) -> tuple[Tensor, list[Shared], LayerState]:
        return x, [(bound,) for bound in self.bounds()], state


class GatedRecurrence(TokenMixer):
    """HGRN2's outer-product recurrence; state (N, H, K, V) float32."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qfv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.norm = SRMSNorm(config.dim, config.norm_eps)
        self.out = nn.Linear(config.dim, config.dim, bias=False)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, gate logits (..., H, K) and v (..., H, V) of x (..., d)."""
        q, gate, v = self.qfv(x).unflatten(-1, (3, self.heads, self.head_dim)).unbind(-3)
        return F.silu(q), gate, v

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        q, gate, v = self._project(x)
        initial = None if state is None else state["kv"]
        o, final = hgrn2_attention(q, gate, v, shared[0], initial, span.cu_seqlens)
        return self.out(self.norm(o.flatten(-2))), {"kv": final}

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        q, gate, v = self._project(x)
        o, kv = hgrn2_attention_step(q, gate, v, shared[0], state["kv"])
        return self.out(self.norm(o.flatten(-2))), {"kv": kv}

    def initial_state(
        self, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> LayerState:
        shape = (batch_size, self.heads, self.head_dim, self.head_dim)
        return {"kv": torch.zeros(shape, device=device, dtype=angle_dtype(dtype))}

    def take_attention(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        # Gate logits of minus k: what is written, 1 - f, rises with k.
        self.qfv.weight.copy_(torch.cat((q, -k, v)))
        self.out.weight.copy_(out)
