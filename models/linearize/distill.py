"""Teaching a linear model by a transformer, stage by stage, as MOHAWK does (arXiv 2408.10189).

    1. matrix_losses       sum_s (M_ts - A_ts)^2, mean over queries and heads, for every layer:
                           mixing matrix M of the student, attention matrix A of the teacher
    2. hidden_losses       mean (block_student(u) - block_teacher(u))^2 for every layer, u being the
                           teacher's hidden states before it
    3. distillation_loss   tau^2 KL(softmax(z_teacher / tau) || softmax(z_student / tau))
                           (+ hard x cross-entropy of the text), z the logits (arXiv 1503.02531)

The student is any model with the teacher's depth and width: a linearized one, or a TNL, HGRN2 or
cosFormer2, from `models.linearize.initialise` or fresh. Both models are in memory and share no
tensors: copy the teacher (`copy.deepcopy`) before `linearize`. Which parameters learn is the
caller's choice; MOHAWK freezes the channel mixers in stage 1 and lets all learn later.

The layers' losses do not share a graph: backward on each as it comes holds one layer's activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from models.config import ConfigError
from models.cosformer2 import CosineAttention
from models.delta_mixer import DeltaMixer
from models.gla import GatedLinearAttention
from models.hgrn2 import GatedRecurrence
from models.kernels import delta_attention
from models.kernels.api import cosine_attention, hgrn2_attention, linear_attention
from models.language_model import Block, LanguageModel
from models.layers import Shared, Span, TokenMixer, make_span
from models.linearize.lolcats import HybridAttention
from models.linearize.supra import SupraAttention
from models.linearize.transfer import attention_weights, softmax_weights
from models.llama import SoftmaxAttention
from models.tnl import DecayAttention


def matrix_losses(
    student: LanguageModel, teacher: LanguageModel, tokens: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Distance of the mixing matrices of each layer, in order: (layer, scalar).

    Layers where both have the same softmax attention are left out. Takes T x T memory.

    Args:
        student: any model of the teacher's depth, width and heads.
        teacher: a softmax model.
        tokens: (B, T).

    Raises:
        ConfigError: the two do not match.
    """
    if student.config.heads != teacher.config.heads:
        raise ConfigError(
            f"model.heads={student.config.heads} of the student and {teacher.config.heads} of the "
            "teacher: mixing matrices are compared head by head; give both as many."
        )
    for layer, x, span, theirs, block in _teacher_stream(student, teacher, tokens):
        if layer in student.config.softmax_layers:
            continue
        mine = cast(Block, student.blocks[layer])
        with torch.no_grad():
            target = mixing_matrix(block.mixer, block.mixer_norm(x), span, theirs)
        shared = student.stem(x, span, None)[1][layer]
        matrix = mixing_matrix(mine.mixer, mine.mixer_norm(x), span, shared)
        yield layer, (matrix - target).square().sum(-1).mean()


def hidden_losses(
    student: LanguageModel,
    teacher: LanguageModel,
    tokens: Tensor,
    cu_seqlens: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Squared error of each block's output on the teacher's hidden states: (layer, scalar).

    Args: as `matrix_losses`; the heads may differ, and the sequences be packed (`cu_seqlens`, as in
        `LanguageModel.forward`).

    Raises:
        ConfigError: the two do not match.
    """
    # The teacher runs each block twice: here, and where the stream goes on.
    for layer, x, span, theirs, block in _teacher_stream(student, teacher, tokens, cu_seqlens):
        with torch.no_grad():
            target, _ = block(x, span, theirs, None)
        shared = student.stem(x, span, None)[1][layer]
        out, _ = cast(Block, student.blocks[layer])(x, span, shared, None)
        wide = torch.promote_types(out.dtype, torch.float32)
        yield layer, (out.to(wide) - target.to(wide)).square().mean()


def distillation_loss(
    student: LanguageModel,
    teacher: LanguageModel,
    tokens: Tensor,
    targets: Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    temperature: float = 1.0,
    hard: float = 0.0,
) -> Tensor:
    """Divergence from the teacher's next-token distribution, mean over tokens, a scalar in nats.

    Args:
        student, teacher: of one vocabulary. Only the student gets gradients.
        tokens: (B, T).
        targets: (B, T), the tokens that follow; those at -100 are left out. Where all are, the
            divergence is 0.
        cu_seqlens: boundaries of packed sequences, as in `LanguageModel.forward`.
        temperature: tau.
        hard: factor of the cross-entropy of `targets`.

    Raises:
        ConfigError: the vocabularies differ, or the temperature is not positive.
    """
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ConfigError(
            f"model.vocab_size={student.config.vocab_size} of the student and "
            f"{teacher.config.vocab_size} of the teacher: logits can only be matched between equal "
            "vocabularies."
        )
    if not temperature > 0:
        raise ConfigError(f"temperature={temperature}: must be above 0.")
    kept = targets != -100
    x, _ = student.hidden(tokens, cu_seqlens=cu_seqlens)
    mine = student.logits(x[kept])  # (n, V)
    if not len(mine):
        return mine.sum()  # no target, no divergence
    with torch.no_grad():
        x, _ = teacher.hidden(tokens, cu_seqlens=cu_seqlens)
        theirs = teacher.logits(x[kept])
    wide = torch.promote_types(mine.dtype, torch.float32)
    mine, theirs = mine.to(wide), theirs.to(wide)
    soft = F.kl_div(
        (mine / temperature).log_softmax(-1),
        (theirs / temperature).log_softmax(-1),
        reduction="batchmean",
        log_target=True,
    )
    loss = temperature**2 * soft
    return loss + hard * F.cross_entropy(mine, targets[kept]) if hard else loss


def mixing_matrix(mixer: TokenMixer, x: Tensor, span: Span, shared: Shared) -> Tensor:
    """M with o_t = sum_s M_ts v_s for every head, (B, H, T, T), before norms and gates.

    Args:
        mixer: softmax, linearized or one of the linear models'.
        x: (B, T, d), normed.
        span: positions, without packing or a state.
        shared: from the model's stem, for this layer.
    """
    if isinstance(mixer, HybridAttention):
        q, k, _ = mixer._project(x, shared)
        return attention_weights(mixer, q, k, span)[0]
    if type(mixer) is SoftmaxAttention:
        q, k, _ = mixer._project(x, shared)
        return softmax_weights(mixer, q, k, span)
    # The kernels are linear in the values: the unit vectors as values give the columns of M.
    length = x.shape[1]
    v = torch.eye(length, device=x.device, dtype=x.dtype)[None, :, None]
    v = v.expand(x.shape[0], length, mixer.heads, length)  # pyright: ignore[reportCallIssue, reportArgumentType]
    if isinstance(mixer, SupraAttention):
        q, k, _ = mixer._features(x, shared)
        out, _ = linear_attention(q, k, v, None if mixer.decay is None else mixer.decay())
    elif isinstance(mixer, DecayAttention):
        q, k, _ = mixer._project(x, span.positions)
        out, _ = linear_attention(q, k, v, mixer.decay())
    elif isinstance(mixer, GatedRecurrence):
        q, gate, _ = mixer._project(x)
        out, _ = hgrn2_attention(q, gate, v, shared[0])
    elif isinstance(mixer, GatedLinearAttention):
        q, k, _, decay = mixer._project(x)
        out, _ = linear_attention(q, k, v, decay)
    elif isinstance(mixer, DeltaMixer):
        q, k, _ = mixer._split(mixer.conv(mixer.qkv(x), span, None)[0])
        out, _ = delta_attention(q, k, v, mixer._shares(x), mixer.decays(x))
    elif isinstance(mixer, CosineAttention):
        q, k = mixer._project(x)[0].unbind(-3)
        out, _ = cosine_attention(q, k, v, mixer.angles())
    else:
        raise ConfigError(
            f"{type(mixer).__name__}: its mixing matrix is not known here; start with "
            "hidden_losses, which every mixer has."
        )
    return out.transpose(1, 2)  # (B, H, T, T)


def _teacher_stream(
    student: LanguageModel,
    teacher: LanguageModel,
    tokens: Tensor,
    cu_seqlens: Tensor | None = None,
) -> Iterator[tuple[int, Tensor, Span, Shared, Block]]:
    """Layer by layer: the teacher's hidden states before it, what it shares, and its block."""
    ours, theirs = student.config, teacher.config
    for name in ("layers", "dim"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ConfigError(
                f"model.{name}={getattr(ours, name)} of the student and {getattr(theirs, name)} of "
                "the teacher: layers are matched one to one; give both the same."
            )
    span = make_span(tokens, None, cu_seqlens, False)
    with torch.no_grad():
        x, shared, _ = teacher.stem(teacher.embedding(tokens), span, None)
    for layer, block in enumerate(teacher.blocks):
        block = cast(Block, block)
        yield layer, x, span, shared[layer], block
        with torch.no_grad():
            x, _ = block(x, span, shared[layer], None)
