"""TNL, HGRN2 and cosFormer2 for transformers, in plain PyTorch.

    S_t = diag(exp(decay_t)) S_{t-1} + k_t v_t^T,   o_t = S_t^T q_t        per head

with a fixed decay per head (TNL), a data-dependent one per channel with k = 1 - exp(decay)
(HGRN2), or none but rotated q and k (cosFormer2); arXiv 2406.16690, appendix A.1. The cache is the
state S of every layer, whose size does not depend on the tokens seen.

Rows may be padded on either side: a masked token leaves the state as it is and has no position.

Copied with `modeling_linscale_recurrence` beside every exported model, whose reader opens it to see
what the weights mean.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_linscale import LinscaleConfig
from .modeling_linscale_recurrence import head_slopes, linear_attention, normalize


class LinscaleCache:
    """States of all layers after the tokens seen so far; first dimension: the sequence."""

    is_compileable = False

    def __init__(self) -> None:
        self.states: dict[str, Tensor] = {}
        self.seen = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of a row so far, padding included."""
        return self.seen

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose rows, for beam search."""
        self.states = {
            name: state.index_select(0, beam_idx.to(state.device))
            for name, state in self.states.items()
        }


class Kind(NamedTuple):
    """What the mixers differ in."""

    gated: bool = True
    """Has a low-rank output gate."""
    decays: bool = False
    """Forgets at a fixed rate a head."""
    forgets: bool = False
    """Has forget gates with lower bounds, in the place of keys."""
    rotates: bool = False
    """Rotates q and k in every layer."""


KINDS = {
    "tnl": Kind(decays=True),
    "hgrn2": Kind(gated=False, forgets=True),
    "cosformer2": Kind(rotates=True),
}


class Vector(nn.Module):
    """Holds one learned vector under the name it has in checkpoints."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.empty(*shape)))


class LinscaleMixer(nn.Module):
    """Token mixer of one layer."""

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.settings, self.layer = settings, layer
        dim = settings["dim"]
        self.kind, self.heads = KINDS[settings["arch"]], settings["heads"]
        lrpe = settings["tnl_lrpe"]
        self.rotated = self.kind.rotates or lrpe == "all" or (lrpe == "first" and layer == 0)
        if self.kind.forgets:
            self.qfv = nn.Linear(dim, 3 * dim, bias=False)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        if self.kind.gated:
            rank = settings["gate_rank"] or dim // self.heads
            self.gate = nn.ModuleDict(
                {"down": nn.Linear(dim, rank, bias=False), "up": nn.Linear(rank, dim, bias=False)}
            )
        self.out = nn.Linear(dim, dim, bias=False)
        self.angles = Vector("theta", dim) if self.rotated and settings["lrpe_learned"] else None
        learned = self.kind.decays and settings["learn_decay"]
        self.decay = Vector("slopes", self.heads) if learned else None

    def forward(
        self, x: Tensor, mask: Tensor, positions: Tensor, bound: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Mix x (B, T, d), normed; mask (B, T) is 0 at padding; bound (H, K) is HGRN2's."""
        project = self.qfv if self.kind.forgets else self.qkv
        q, k, v = project(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # (B, T, H, K)
        q = F.silu(q)
        present = mask[..., None, None]  # (B, T, 1, 1)
        decay = None
        if bound is not None:
            wide = k.to(torch.promote_types(k.dtype, torch.float32))
            forget = bound + (1 - bound) * torch.sigmoid(wide)
            # Below the smallest normal number a gate forgets everything either way.
            decay = forget.clamp(min=torch.finfo(wide.dtype).tiny).log()
            k = (1 - bound) * torch.sigmoid(-wide)
        else:
            k = F.silu(k)
        if self.kind.decays:
            decay = -self._slopes(x)[:, None] * torch.ones_like(present)
        if self.rotated:
            angles = positions[..., None, None] * self._theta(x)  # (B, T, H, K)
            turn = torch.cat((angles.cos(), angles.sin()), dim=-1).to(x.dtype)
            q, k = torch.cat((q, q), dim=-1) * turn, torch.cat((k, k), dim=-1) * turn
        decay = None if decay is None else decay * present
        o, state = linear_attention(q, k * present.to(k.dtype), v, decay, state)
        o = normalize(o.flatten(-2), self.settings["norm_eps"])
        if self.kind.gated:
            o = o * torch.sigmoid(self.gate["up"](self.gate["down"](x)))
        return self.out(o), state

    def _slopes(self, x: Tensor) -> Tensor:
        if self.decay is not None:
            return self.decay.get_parameter("slopes").clamp(min=0)
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.tensor(head_slopes(self.settings, self.layer), dtype=wide, device=x.device)

    def _theta(self, x: Tensor) -> Tensor:
        if self.angles is not None:
            theta = self.angles.get_parameter("theta")
        else:
            theta = fresh_angles(self.settings).to(
                device=x.device, dtype=torch.promote_types(x.dtype, torch.float32)
            )
        return theta.view(self.heads, -1)


def fresh_angles(settings: dict[str, Any]) -> Tensor:
    """Rotation angles of all channels of a layer before training, (d,) float64."""
    channel = torch.arange(settings["dim"], dtype=torch.float64)
    return settings["rope_base"] ** (-2 * channel / settings["dim"])


class LinscaleBlock(nn.Module):
    """x + TokenMixer(Norm(x)), then x + ChannelMixer(Norm(x))."""

    def __init__(self, settings: dict[str, Any], layer: int) -> None:
        super().__init__()
        dim, width = settings["dim"], settings["glu_dim"]
        self.eps = settings["norm_eps"]
        self.activation = F.silu if settings["glu_activation"] == "silu" else nn.Identity()
        self.mixer = LinscaleMixer(settings, layer)
        self.channel = nn.ModuleDict(
            {
                "up": nn.Linear(dim, width, bias=settings["glu_bias"]),
                "gate": nn.Linear(dim, width, bias=settings["glu_bias"]),
                "down": nn.Linear(width, dim, bias=settings["glu_bias"]),
            }
        )

    def forward(
        self, x: Tensor, mask: Tensor, positions: Tensor, bound: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Arguments as in `LinscaleMixer.forward`, x not normed."""
        mixed, after = self.mixer(normalize(x, self.eps), mask, positions, bound, state)
        x = x + mixed
        inner = normalize(x, self.eps)
        gated = self.channel["up"](inner) * self.activation(self.channel["gate"](inner))
        return x + self.channel["down"](gated), after


def run_block(model: Any, block: nn.Module, *arguments: Any) -> Any:
    """A block's outputs; while training with gradient checkpointing, computed again for the
    backward pass, by the function that transformers gives the model."""
    if model.gradient_checkpointing and model.training:
        return model._gradient_checkpointing_func(block.__call__, *arguments)
    return block(*arguments)


class LinscaleStem(nn.Module):
    """What runs once before the blocks: cosFormer2's Toeplitz encoding, HGRN2's lower bounds.

    With `acts=False` it only prepares what layers need.
    """

    def __init__(self, settings: dict[str, Any], acts: bool = True) -> None:
        super().__init__()
        self.settings = settings
        dim, heads, kind = settings["dim"], settings["heads"], KINDS.get(settings["arch"])
        self.logits = self.tpe = None
        if kind is not None and kind.forgets:
            self.logits = nn.Parameter(torch.empty(settings["layers"] * dim))
        elif acts and kind is not None and kind.rotates and settings["tpe"]:
            self.tpe = Vector("pole", heads)
            weight = nn.Parameter(torch.empty(heads, dim // heads, dim // heads))
            self.tpe.register_parameter("weight", weight)

    def encode(self, x: Tensor, mask: Tensor, states: dict[str, Tensor]) -> Tensor:
        """cosFormer2's Toeplitz encoding: a one-pole filter and a matrix per head."""
        if self.tpe is None:
            return x
        pole = F.logsigmoid(self.tpe.get_parameter("pole").to(mask.dtype))
        present = mask[..., None, None]  # (B, T, 1, 1)
        ones = present.expand(*x.shape[:2], self.settings["heads"], 1)
        values = x.unflatten(-1, (self.settings["heads"], -1)) * present.to(x.dtype)
        out, states["stem"] = linear_attention(
            ones, ones, values, pole[:, None] * present, states.get("stem")
        )
        weight = self.tpe.get_parameter("weight").to(x.dtype)
        return torch.einsum("bthk,hvk->bthv", out, weight).flatten(-2)

    def bounds(self) -> list[Tensor | None]:
        """HGRN2's lower bounds of the forget gates, (H, K) a layer."""
        layers = self.settings["layers"]
        if self.logits is None:
            return [None] * layers
        share = self.logits.view(layers, -1).softmax(0)
        bounds = share.cumsum(0) - share[:1]
        return list(bounds.view(layers, self.settings["heads"], -1))


class LinscaleModel(nn.Module):
    """Embedding, blocks and final norm, under the parameter names of Linscale's checkpoints."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        self.gradient_checkpointing = False
        dim, layers = settings["dim"], settings["layers"]
        self.embedding = nn.Embedding(settings["vocab_size"], dim)
        self.stem = LinscaleStem(settings)
        self.blocks = nn.ModuleList(LinscaleBlock(settings, layer) for layer in range(layers))
        tied = settings["tie_embeddings"]
        self.head = None if tied else nn.Linear(dim, settings["vocab_size"], bias=False)

    def forward(
        self, x: Tensor, mask: Tensor, cache: LinscaleCache
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normed hidden states of embedded tokens (B, T, d), and all of them: what each block read,
        and the normed ones. The cache moves past the tokens."""
        wide = torch.promote_types(x.dtype, torch.float32)
        states = cache.states
        mask = mask.to(wide)
        count = mask.cumsum(1)
        if "count" in states:
            count = count + states["count"]
        positions = (count - 1).clamp(min=0)
        states["count"] = count[:, -1:]
        x = self.stem.encode(x, mask, states)
        seen: list[Tensor] = []
        for layer, (block, bound) in enumerate(zip(self.blocks, self.stem.bounds(), strict=True)):
            seen.append(x)
            name = f"block {layer}"
            x, states[name] = run_block(self, block, x, mask, positions, bound, states.get(name))
        cache.seen += x.shape[1]
        x = normalize(x, self.settings["norm_eps"])
        return x, (*seen, x)


class LinscaleForCausalLM(PreTrainedModel, GenerationMixin):
    """A linear language model with a recurrent state as its cache."""

    config_class = LinscaleConfig
    base_model_prefix = "model"
    _is_stateful = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["LinscaleBlock"]  # noqa: RUF012 (transformers' protocol)
    wide_modules = ("stem", "angles", "decay")
    """Modules whose tensors stay in float32 where the model has them."""

    def __init__(self, config: LinscaleConfig) -> None:
        super().__init__(config)
        self.model: LinscaleModel = self.make_model(config)
        # transformers takes the names of modules that are there, and refuses others.
        there = {part for name, _ in self.named_parameters() for part in name.split(".")}
        self._keep_in_fp32_modules_strict = {n for n in self.wide_modules if n in there}
        self.post_init()

    @staticmethod
    def make_model(config: LinscaleConfig) -> Any:
        """The model without its head's product and loss."""
        return LinscaleModel(config.linscale)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        settings = self.config.linscale
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "_is_hf_initialized", False):
                continue
            if isinstance(module, nn.Linear | nn.Embedding):
                parameter.normal_(std=self.config.initializer_range)
            elif name == "theta":
                parameter.copy_(fresh_angles(settings))
            elif name == "weight":
                parameter.copy_(torch.eye(parameter.shape[-1]))
            elif name != "slopes":
                parameter.zero_()
        if isinstance(module, LinscaleMixer) and module.decay is not None:
            slopes = module.decay.get_parameter("slopes")
            if not getattr(slopes, "_is_hf_initialized", False):
                slopes.copy_(torch.tensor(head_slopes(settings, module.layer)))

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embedding."""
        self.model.embedding = value  # pyright: ignore[reportAttributeAccessIssue]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: LinscaleCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Logits of the next tokens.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) or (B, seen + T), 0 at padding; None: no padding.
            past_key_values: where to continue from; it is moved on in place.
            inputs_embeds: (B, T, d) instead of input_ids.
            labels: (B, T), -100 where there is none; shifted here.
            use_cache: return the state. None: as configured.
            logits_to_keep: compute only so many last logits, or those at these indices; 0: all.
            output_hidden_states: also return what each block read, (B, T, d), and the normed
                hidden states. None: as configured.
            return_dict: a `CausalLMOutputWithPast`, or a tuple of what is in it. None: as
                configured.
            kwargs: for the loss function.
        """
        x: Tensor = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        batch, length = x.shape[:2]
        mask = x.new_ones(batch, length) if attention_mask is None else attention_mask[:, -length:]
        cache = LinscaleCache() if past_key_values is None else past_key_values
        hidden, every = self.model(x, mask, cache)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        head = self.model.embedding if self.model.head is None else self.model.head
        settings = self.config.linscale
        logits = F.linear(hidden[:, keep] * settings.get("logit_scale", 1.0), head.weight)
        if (cap := settings.get("logit_cap")) is not None:
            logits = cap * torch.tanh(logits / cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        if use_cache is None:
            use_cache = not self.training and getattr(self.config, "use_cache", True)
        kept: Any = cache if use_cache else None
        if output_hidden_states is None:
            output_hidden_states = bool(getattr(self.config, "output_hidden_states", False))
        if return_dict is None:
            return_dict = bool(getattr(self.config, "return_dict", True))
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=kept,
            hidden_states=every if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()
