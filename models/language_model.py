"""A language model: embedding, stem, blocks, final norm and (tied) head.

    x = Stem(embedding[tokens]);   x += TokenMixer(Norm(x));   x += ChannelMixer(Norm(x));   ...
    logits = Norm(x) W_head^T

Imported models differ in details that `ModelConfig` names: norms behind the mixers too or instead
(`norms`), factors on residuals and logits, capped logits.

`build(config)` takes the parts from the configuration's `Architecture` (`models.architecture`), so
that a new architecture is one file, anywhere, that defines one. In a hybrid (`ModelConfig.mixers`)
each layer's token mixer is that of the architecture that its pattern names.

Three ways through one set of weights, which agree:

1. `forward` / `loss`: all tokens of a call in parallel, from an empty or a carried state.
2. `step`: one token a sequence, recurrent; the state is constant in size for the linear models.
3. Both with a state: prefill with `forward(return_state=True)`, then `step`.

Source of the layout: arXiv 2406.16690, appendix A.1 (pre-norm, shared embedding and head). The
final norm is not printed there; all public code has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from models import width
from models.architecture import part
from models.config import ModelConfig, layer_configs
from models.cross_entropy import linear_cross_entropy
from models.layers import (
    GLU,
    LayerState,
    OffsetRMSNorm,
    RMSNorm,
    Shared,
    Span,
    Stem,
    TokenMixer,
    Trees,
    make_span,
    operand,
)
from models.mixed_stem import make_stem


class State(NamedTuple):
    """What a model carries from token to token: a pytree of tensors, first dimension N sequences.

    `step` may update the tensors in place; copy the state to continue it twice
    (`torch.utils._pytree.tree_map(torch.clone, state)`).
    """

    position: Tensor
    """Tokens seen by each sequence, (N,) int64."""
    stem: LayerState
    """State of the stem (cosFormer2's TPE; otherwise empty)."""
    blocks: list[LayerState]
    """State of each block's token mixer."""


class Block(nn.Module):
    """x + TokenMixer(Norm(x)), then x + ChannelMixer(Norm(x)).

    In full, with s the `residual_scale` and norms where `norms` puts them:
    x + s PostNorm(TokenMixer(Norm(x))), then x + s PostNorm(ChannelMixer(Norm(x))).
    """

    def __init__(
        self,
        config: ModelConfig,
        mixer: TokenMixer,
        norm: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.scale = config.residual_scale

        def placed(norm: Callable[..., nn.Module], here: bool) -> nn.Module:
            return norm(config.dim, config.norm_eps) if here else nn.Identity()

        # What comes with a transformer's weights has weights, also where other norms have none.
        behind = OffsetRMSNorm if config.norm_offset else RMSNorm
        self.mixer_norm = placed(norm, config.norms != "post")
        self.mixer = mixer
        self.mixer_post_norm = placed(behind, config.norms != "pre")
        self.channel_norm = placed(norm, config.norms != "post")
        self.channel = GLU(config)
        self.channel_post_norm = placed(behind, config.norms != "pre")

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The block's output, from its input and what its token mixer made of that."""
        x = self._add(x, self.mixer_post_norm(mixed))
        mixed = self.channel(operand(self.channel_norm(x)))
        return self._add(x, self.channel_post_norm(mixed))

    def _add(self, x: Tensor, more: Tensor) -> Tensor:
        return x + more if self.scale == 1 else torch.add(x, more, alpha=self.scale)

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        mixed, kept = self.mixer(operand(self.mixer_norm(x)), span, shared, state)
        return self.finish(x, mixed), kept

    def step(
        self, x: Tensor, positions: Tensor, shared: Shared, state: LayerState
    ) -> tuple[Tensor, LayerState]:
        mixed, kept = self.mixer.step(operand(self.mixer_norm(x)), positions, shared, state)
        return self.finish(x, mixed), kept


class LanguageModel(nn.Module):
    """A causal language model of any architecture."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        norm = OffsetRMSNorm if config.norm_offset else part(config.architecture.norm)
        self.stem: Stem = make_stem(config)
        self.blocks = nn.ModuleList(
            Block(config, part(own.architecture.mixer)(own, layer), norm)
            for layer, own in enumerate(layer_configs(config))
        )
        self.norm: nn.Module = norm(config.dim, config.norm_eps)
        # A tied head is the embedding itself, not a second name for it: moving a model off the
        # meta device would untie two names.
        self.head = (
            None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)
        )
        if config.mup_base_dim is not None:
            width.mark(self)

    @property
    def _stack(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def keeps_tokens(self, length: int) -> bool:
        """Whether the state of `length` tokens holds every one by itself (see `TokenMixer`)."""
        return all(block.mixer.keeps_tokens(length) for block in self._stack)

    @property
    def head_weight(self) -> Tensor:
        """The output projection (V, d), which is the embedding where the two are tied."""
        return self.embedding.weight if self.head is None else self.head.weight

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw every weight matrix from N(0, config.std) and set everything else to its start.

        Also fills buffers, so that a model may be built on the meta device, materialised with
        `to_empty` and initialised here. Uses torch's global random state.
        """
        for module in self.modules():
            init_module(module, self.config.std)

    def hidden(
        self,
        tokens: Tensor,
        state: State | None = None,
        *,
        keep_state: bool = False,
        cu_seqlens: Tensor | None = None,
        trees: Trees | None = None,
    ) -> tuple[Tensor, State | None]:
        """What the head multiplies, (B, T, d), and the state if it is kept.

        Args:
            tokens: (B, T) integers.
            state: as in `forward`.
            keep_state: also return the state after the last tokens.
            cu_seqlens: as in `forward`.
            trees: how the tokens of each row follow each other where they are not in one line, for
                models that keep all tokens of that length (`keeps_tokens`). No state can be kept
                after trees.
        """
        packed_on = state is not None and cu_seqlens is not None
        if trees is not None and (keep_state or packed_on or not self.keeps_tokens(1)):
            raise ValueError(
                "trees: for models that keep tokens; no state after, none before packed"
            )
        offset = None if state is None else state.position
        span = make_span(tokens, offset, cu_seqlens, keep_state, trees)
        x = self.embedding(tokens)  # (B, T, d)
        x, shared, stem_state = self.stem(x, span, None if state is None else state.stem)
        block_states: list[LayerState] = []
        for layer, block in enumerate(self._stack):
            x, kept = block(x, span, shared[layer], None if state is None else state.blocks[layer])
            block_states.append(kept)
        x = self._last_norm(x)
        if not keep_state:
            return x, None
        return x, State(_advance(tokens, offset, cu_seqlens), stem_state, block_states)

    def _last_norm(self, x: Tensor) -> Tensor:
        """The last norm, with the factors on the logits: one over muP's multiplier, and its own."""
        x, m = self.norm(x), width.multiplier(self.config)
        x = x if m == 1 else x / m
        return x if self.config.logit_scale == 1 else x * self.config.logit_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of what `hidden` returns, (..., d)."""
        logits = nn.functional.linear(hidden, self.head_weight)
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats of targets (...), from what `hidden` returns, (..., d)."""
        return linear_cross_entropy(hidden, self.head_weight, targets, self.config.logit_cap)

    def forward(
        self,
        tokens: Tensor,
        state: State | None = None,
        return_state: bool = False,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, State]:
        """Logits of the next token after every token.

        Args:
            tokens: (B, T) integers.
            state: where to continue from, for N sequences; None: from empty.
            return_state: also return the state after the last tokens.
            cu_seqlens: int32 (N + 1,) boundaries of N packed sequences, with B = 1; None: the B
                rows are the sequences.

        Returns:
            logits (B, T, V), or (logits, state).
        """
        x, kept = self.hidden(tokens, state, keep_state=return_state, cu_seqlens=cu_seqlens)
        logits = self.logits(x)
        return logits if kept is None else (logits, kept)

    def loss(self, tokens: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """Cross-entropy of each target in nats, (B, T) float32; 0 where the target is -100.

        Args:
            tokens: (B, T) inputs.
            targets: (B, T) the tokens that follow them (the caller shifts).
            cu_seqlens: as in `forward`.
        """
        x, _ = self.hidden(tokens, cu_seqlens=cu_seqlens)
        return self.losses(x, targets)

    def initial_state(
        self,
        batch_size: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> State:
        """The state of `batch_size` sequences without tokens.

        Args:
            batch_size: number of sequences.
            device: None: the model's.
            dtype: of key-value caches, None: the model's. Recurrent states are float32 (float64
                for float64).
        """
        device = self.embedding.weight.device if device is None else torch.device(device)
        dtype = self.embedding.weight.dtype if dtype is None else dtype
        return State(
            torch.zeros(batch_size, dtype=torch.int64, device=device),
            self.stem.initial_state(batch_size, device, dtype),
            [block.mixer.initial_state(batch_size, device, dtype) for block in self._stack],
        )

    @torch.no_grad()
    def step(self, token: Tensor, state: State, *, reserve: bool = True) -> tuple[Tensor, State]:
        """Logits after one more token of every sequence. Not differentiable (`forward` is).

        Args:
            token: (B,) integers.
            state: for B sequences; its tensors may be updated in place.
            reserve: make room in key-value caches first, which reads the longest position on the
                host. False where `reserve` has made the room, for compiled or captured steps.

        Returns:
            logits (B, V) and the state after the token.
        """
        if reserve:
            state = self.reserve(state, 1)
        x = self.embedding(token)  # (B, d)
        x, shared, stem_state = self.stem.step(x, state.position, state.stem)
        block_states: list[LayerState] = []
        for block, here, before in zip(self._stack, shared, state.blocks, strict=True):
            x, after = block.step(x, state.position, here, before)
            block_states.append(after)
        logits = self.logits(self._last_norm(x))
        return logits, State(state.position + 1, stem_state, block_states)

    def reserve(self, state: State, tokens: int) -> State:
        """The state with room for `tokens` more tokens; recurrent states need none."""
        if not any(block.mixer.growing for block in self._stack):
            return state
        capacity = int(state.position.max()) + tokens
        blocks = [
            block.mixer.reserve(kept, capacity)
            for block, kept in zip(self._stack, state.blocks, strict=True)
        ]
        return state._replace(blocks=blocks)


def init_module(module: nn.Module, std: float) -> None:
    """Set a module's own parameters and buffers to their start, those of its children not."""
    if isinstance(module, nn.Linear | nn.Embedding):
        rule = getattr(module, "width_rule", None)
        nn.init.normal_(module.weight, std=std if rule is None else std * rule.spread)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    elif (reset := getattr(module, "reset_parameters", None)) is not None:
        reset()


def _advance(tokens: Tensor, offset: Tensor | None, cu_seqlens: Tensor | None) -> Tensor:
    """Tokens seen by each sequence after a call, (N,) int64."""
    if cu_seqlens is None:
        batch, length = tokens.shape
        seen = torch.full((batch,), length, dtype=torch.int64, device=tokens.device)
    else:
        seen = cu_seqlens.to(torch.int64).diff()
    return seen if offset is None else offset + seen


def build(
    config: ModelConfig,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> LanguageModel:
    """The model of a configuration with fresh weights.

    Args:
        config: model.
        device: where to build; "meta" allocates nothing and draws no weights.
        dtype: of the parameters, None: float32.
    """
    with torch.device("meta"):
        model = LanguageModel(config)
    model = model.to(dtype=torch.float32 if dtype is None else dtype)
    if device is not None and torch.device(device).type == "meta":
        return model
    model = model.to_empty(device="cpu" if device is None else device)
    model.init_weights()
    return model
