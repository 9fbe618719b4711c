"""Linearized LLaMAs for transformers, in plain PyTorch: SUPRA and LoLCATs.

    SUPRA    S_t = lambda S_{t-1} + R phi(k_t) v_t^T,   o_t = Norm(S_t^T R phi(q_t) / sqrt(K))
    LoLCATs  a_ts = sigmoid(g) exp(q_t.k_s / sqrt(K) - max)  in the window of t,
             a_ts = c phi(q_t).phi(k_s)  before it,   o_t = sum_s a_ts v_s / sum_s a_ts

(arXiv 2405.06640 and 2410.10254), R the rotary encoding, and softmax attention in the layers that
keep it. The cache of a linear layer does not grow: the state S, or the keys and values of two
windows and the sums over all keys before.

Rows may be padded on either side: a masked token changes no state and has no position.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_linscale import LinscaleConfig
from .modeling_linscale import LinscaleCache, LinscaleForCausalLM, Vector, run_block
from .modeling_linscale_parts import (
    ACTIVATIONS,
    FeatureMap,
    Norm,
    append,
    make_norm,
    never_empty,
    rotary_angles,
    rotate,
)
from .modeling_linscale_recurrence import head_slopes, linear_attention

PIECE = 64
"""Queries that LoLCATs' attention works on at a time, at least."""
PLAIN = {"full_layers": [], "score_cap": None, "qk_norm": "none"}
"""Later options of a transformer where its settings do not have them."""


class LinearizedConfig(LinscaleConfig):
    """A class of its own, because transformers keeps one model class for each configuration's.

    `rotary` holds, for each of its `uses`, the angles a position of the rotary encoding,
    `frequencies` (K / 2,), and the factors on their cosines and sines, `scales` (K / 2,); the use
    of each of the `layers`; and the factor on queries: `query_scale`, times
    1 + `query_growth` ln(1 + floor(position / `query_length`)).
    """


class LinearizedMixer(nn.Module):
    """Attention of one layer, by the layer's method: `supra`, `lolcats` or `softmax`."""

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.settings, self.layer = settings, layer
        dim, self.heads = settings["dim"], settings["heads"]
        self.groups = settings["kv_heads"] or self.heads
        self.size = settings["head_size"] or dim // self.heads
        self.options: dict[str, Any] = settings.get(settings["arch"]) or {"softmax_layers": [layer]}
        width = (self.heads + 2 * self.groups) * self.size
        self.qkv = nn.Linear(dim, width, bias=settings["qkv_bias"])
        self.out = nn.Linear(self.heads * self.size, dim, bias=settings["out_bias"])
        more: dict[str, Any] = self.options.get("llama", PLAIN)
        self.window = None if layer in more["full_layers"] else settings["window"]
        self.cap, self.qk_norm = more["score_cap"], more["qk_norm"]
        if self.qk_norm != "none":
            counts = (1, 1) if self.qk_norm == "head" else (self.heads, self.groups)
            self.query_norm, self.key_norm = (
                make_norm(settings, count * self.size) for count in counts
            )
        kept = layer in self.options["softmax_layers"]
        self.method = "softmax" if kept else settings["arch"]  # of a llama's layer: softmax
        if self.method == "supra":
            self.feature_map = FeatureMap(self.options, self.heads, self.size)
            if self.groups < self.heads:
                self.key_feature_map = FeatureMap(self.options, self.groups, self.size)
            self.decay = Vector("slopes", self.heads) if settings["learn_decay"] else None
        elif self.method == "lolcats":
            self.query_map = FeatureMap(self.options, self.heads, self.size)
            self.state_heads = self.groups if self.options["shared_state"] else self.heads
            self.key_map = FeatureMap(self.options, self.state_heads, self.size)
            self.factor = Vector("logit", self.heads)

    def forward(
        self, x: Tensor, positions: Tensor, angles: tuple[Tensor, ...], state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mix x (B, T, d), normed.

        Args:
            x: (B, T, d).
            positions: (B, T), -1 at padding.
            angles: cosines and sines of the rotary angles, and the factor on queries.
            state: of this layer; empty before the first token.
        """
        sizes = self.heads, self.groups, self.groups
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.size)).split(sizes, dim=2)  # (B, T, ., K)
        if self.qk_norm == "head":
            q, k = self.query_norm(q), self.key_norm(k)
        elif self.qk_norm == "all":
            q, k = (
                norm(y.flatten(2)).view(y.shape)
                for norm, y in ((self.query_norm, q), (self.key_norm, k))
            )
        if self.method == "supra":
            out, state = self._supra(q, k, v, positions, angles[:2], state)
            return self.out(out.flatten(-2).to(x.dtype)), state
        cos, sin, scale = angles
        q, k = rotate(q, cos, sin) * scale.to(q.dtype), rotate(k, cos, sin)
        if self.method == "lolcats":
            out, state = self._lolcats(q, k, v, positions, state)
        else:
            out, state = self._softmax(q, k, v, positions, state)
        return self.out(out.flatten(-2).to(x.dtype)), state

    def _repeat(self, x: Tensor) -> Tensor:
        """Each key-value head serves heads / groups query heads in a row."""
        return x.repeat_interleave(self.heads // self.groups, dim=2)

    def _share(self, x: Tensor, dim: int) -> Tensor:
        """Each head of the state serves so many query heads in a row."""
        return x.repeat_interleave(self.heads // self.state_heads, dim=dim)

    def _supra(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        angles: tuple[Tensor, ...],
        state: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        present = (positions >= 0)[..., None, None]  # (B, T, 1, 1)
        q = rotate(self.feature_map(q) * self.size**-0.5, *angles)
        own = self.feature_map if self.groups == self.heads else self.key_feature_map
        k = self._repeat(rotate(own(k), *angles)) * present.to(k.dtype)
        wide = torch.promote_types(q.dtype, torch.float32)
        if self.decay is None:
            fixed = head_slopes(self.settings, self.layer)
            slopes = torch.tensor(fixed, dtype=wide, device=q.device)
        else:
            slopes = self.decay.get_parameter("slopes").to(wide).clamp(min=0)
        decay = -slopes[:, None] * present
        out, kv = linear_attention(q, k, self._repeat(v), decay, state.get("kv"))
        if self.options["norm"]:
            out = F.layer_norm(out, out.shape[-1:], eps=1e-5)
        return out, {"kv": kv}

    def _softmax(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        state = append(state, k, v, positions)
        where = state["position"][:, None]  # (B, 1, S)
        seen = (where >= 0) & (where <= positions[..., None])  # (B, T, S)
        if self.window is not None:
            seen = seen & (where > positions[..., None] - self.window)
        seen = never_empty(seen)[:, None]
        q = q.transpose(1, 2)
        k, v = (self._repeat(state[name]).transpose(1, 2) for name in ("k", "v"))
        if self.cap is None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        else:
            scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * self.size**-0.5
            scores = self._capped(scores).masked_fill(~seen, -torch.inf)
            out = scores.softmax(-1).to(v.dtype) @ v
        return out.transpose(1, 2), state

    def _capped(self, scores: Tensor) -> Tensor:
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)

    def _lolcats(
        self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        window, sinks = self.options["window"], self.options["sink_tokens"]
        wide = torch.promote_types(q.dtype, torch.float32)
        factor = torch.sigmoid(self.factor.get_parameter("logit").to(wide))[:, None, None]
        weight = 1 - factor if self.options["affine"] else torch.ones_like(factor)
        outputs = []
        for at in range(0, q.shape[1], max(window, PIECE)):
            part = slice(at, at + max(window, PIECE))
            now = positions[:, part]
            sums = state.get("kv")
            cache = append(state, k[:, part], v[:, part], now)
            where, keys = cache["position"], self._repeat(cache["k"])  # (B, S), (B, S, H, K)
            shared = self.state_heads < self.heads
            own_k, own_v = (cache[n] if shared else self._repeat(cache[n]) for n in ("k", "v"))
            own_v = F.pad(own_v.to(wide), (0, 1), value=1)  # [v, 1]
            own_map = self.key_map(own_k).to(wide)
            q_map, k_map = self.query_map(q[:, part]).to(wide), self._share(own_map, 2)
            seen = (where >= 0)[:, None] & (where[:, None] <= now[..., None])  # (B, C, S)
            near = where[:, None] >= self._oldest(now)[..., None]
            near = seen & (near | (where < sinks)[:, None])
            far = (seen & ~near)[:, None]
            near = never_empty(near)[:, None]
            scores = torch.einsum("bchk,bshk->bhcs", q[:, part], keys).to(wide) * self.size**-0.5
            scores = self._capped(scores).masked_fill(~near, -torch.inf)
            weights = factor * (scores - scores.amax(-1, keepdim=True)).exp()
            weights = weights + weight * far * torch.einsum("bchf,bshf->bhcs", q_map, k_map)
            total = torch.einsum("bhcs,bshv->bchv", weights, self._share(own_v, 2))
            if sums is not None:
                read = torch.einsum("bchf,bhfv->bchv", q_map, self._share(sums, 1))
                total = total + weight.transpose(0, 1) * read
            outputs.append(total[..., :-1] / total[..., -1:])
            # Keys that no later window holds join the sums; two windows' worth stay.
            oldest = self._oldest(where.amax(1, keepdim=True) + 1)
            gone = (where >= sinks) & (where < oldest)
            joined = torch.einsum("bshf,bs,bshv->bhfv", own_map, gone.to(wide), own_v)
            order = where.masked_fill(gone, -1).sort(dim=1, stable=True)
            kept = order.indices[:, -2 * window - sinks :]
            rows = torch.arange(q.shape[0], device=q.device)[:, None]
            state = {name: cache[name][rows, kept] for name in ("k", "v")}
            state["position"] = order.values[:, -2 * window - sinks :]
            state["kv"] = joined if sums is None else sums + joined
        return torch.cat(outputs, 1), state

    def _oldest(self, positions: Tensor) -> Tensor:
        """First position in the window of each position."""
        window = self.options["window"]
        if self.options["arrangement"] == "terraced":
            return (positions // window - 1) * window
        return positions - window + 1


class LinearizedBlock(nn.Module):
    """x + s PostNorm(TokenMixer(Norm(x))), then x + s PostNorm(ChannelMixer(Norm(x))).

    Norms stand where the settings' `norms` puts them, and s is its `residual_scale`.
    """

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__()
        dim, width, bias = settings["dim"], settings["glu_dim"], settings["glu_bias"]

        def placed(here: bool) -> nn.Module:
            return make_norm(settings, dim) if here else nn.Identity()

        self.scale = settings["residual_scale"]
        self.activation = ACTIVATIONS[settings["glu_activation"] or "silu"]
        self.mixer_norm = placed(settings["norms"] != "post")
        self.mixer = LinearizedMixer(settings, layer)
        self.mixer_post_norm = placed(settings["norms"] != "pre")
        self.channel_norm = placed(settings["norms"] != "post")
        self.channel_post_norm = placed(settings["norms"] != "pre")
        self.channel = nn.ModuleDict(
            {
                "up": nn.Linear(dim, width, bias=bias),
                "gate": nn.Linear(dim, width, bias=bias),
                "down": nn.Linear(width, dim, bias=bias),
            }
        )

    def forward(
        self, x: Tensor, positions: Tensor, angles: tuple[Tensor, ...], state: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Arguments as in `LinearizedMixer.forward`, x not normed."""
        mixed, after = self.mixer(self.mixer_norm(x), positions, angles, state)
        x = x + self.scale * self.mixer_post_norm(mixed)
        inner = self.channel_norm(x)
        gated = self.channel["up"](inner) * self.activation(self.channel["gate"](inner))
        return x + self.scale * self.channel_post_norm(self.channel["down"](gated)), after


class LinearizedModel(nn.Module):
    """Embedding, blocks and final norm, under the parameter names of Linscale's checkpoints."""

    def __init__(self, settings: dict[str, Any], rotary: dict[str, Any]) -> None:
        super().__init__()
        self.rotary, self.settings = rotary, settings
        self.gradient_checkpointing = False
        dim = settings["dim"]
        self.embedding = nn.Embedding(settings["vocab_size"], dim)
        self.blocks = nn.ModuleList(
            LinearizedBlock(settings, layer) for layer in range(settings["layers"])
        )
        self.norm = make_norm(settings, dim)
        tied = settings["tie_embeddings"]
        self.head = None if tied else nn.Linear(dim, settings["vocab_size"], bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, cache: LinscaleCache
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `LinscaleModel.forward`."""
        scale = self.settings[self.settings["arch"]]["llama"]["embedding_scale"]
        x = x * torch.full((), scale, dtype=x.dtype, device=x.device)
        states, present = cache.states, mask.to(torch.bool)
        count = present.to(torch.int64).cumsum(1)
        if "count" in states:
            count = count + states["count"]
        states["count"] = count[:, -1:]
        positions = (count - 1).masked_fill(~present, -1)
        wide = torch.promote_types(x.dtype, torch.float32)
        angles = rotary_angles(self.rotary, positions, wide)
        seen: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            seen.append(x)
            prefix, use = f"block {layer} ", self.rotary["layers"][layer]
            before = {n[len(prefix) :]: s for n, s in states.items() if n.startswith(prefix)}
            x, after = run_block(self, block, x, positions, angles[use], before)
            states.update({prefix + name: state for name, state in after.items()})
        cache.seen += x.shape[1]
        x = self.norm(x)
        return x, (*seen, x)


class LinearizedForCausalLM(LinscaleForCausalLM):
    """A linearized LLaMA with its recurrent state and window as its cache."""

    config_class = LinearizedConfig
    _no_split_modules = ["LinearizedBlock"]  # noqa: RUF012 (transformers' protocol)
    wide_modules = ("factor", "decay")

    @staticmethod
    def make_model(config: LinscaleConfig) -> Any:
        """The model without its head's product and loss."""
        return LinearizedModel(config.linscale, config.rotary)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        settings = self.config.linscale
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if isinstance(module, nn.Linear | nn.Embedding) and name == "weight":
                parameter.normal_(std=self.config.initializer_range)
            elif isinstance(module, FeatureMap) and name == "weight":
                nn.init.kaiming_uniform_(parameter)
            elif isinstance(module, Norm):
                parameter.fill_(0 if module.offset else 1)
            elif name == "logit":
                share = torch.tensor(settings["lolcats"]["window_factor"], dtype=torch.float64)
                parameter.fill_(float(torch.logit(share)))
            elif name != "slopes":
                parameter.zero_()
        decay = getattr(module, "decay", None)
        if isinstance(module, LinearizedMixer) and decay is not None:
            slopes = decay.get_parameter("slopes")
            if not getattr(slopes, "_is_hf_initialized", False):
                slopes.copy_(torch.tensor(head_slopes(settings, module.layer)))
