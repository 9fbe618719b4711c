"""Next-token loss of a batch (`scaling.data.loader.Batch`): a mean over the targets that count."""

from __future__ import annotations

from torch import Tensor

from models.cross_entropy import IGNORE_INDEX
from models.language_model import LanguageModel
from scaling.data.loader import Batch


def mean_loss(net: LanguageModel, batch: Batch) -> Tensor:
    """Mean loss in nats over the targets of a batch, a scalar; 0 where it has none."""
    return token_losses(net, batch).sum() / count_targets(batch).clamp(min=1)


def count_targets(batch: Batch) -> Tensor:
    """How many targets count, a scalar."""
    return (batch[1] != IGNORE_INDEX).sum()


def block_means(net: LanguageModel, batch: Batch) -> Tensor:
    """Mean loss of every row over its targets, float64 (B,)."""
    return token_losses(net, batch).double().sum(1) / (batch[1] != IGNORE_INDEX).sum(1)


def token_losses(net: LanguageModel, batch: Batch) -> Tensor:
    """Loss of every token, (B, T); 0 where the target does not count."""
    tokens, targets, *packing = batch
    if not packing:
        return net.loss(tokens, targets)
    losses = net.loss(tokens.reshape(1, -1), targets.reshape(1, -1), packing[0])
    return losses.view(tokens.shape)
