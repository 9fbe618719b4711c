"""Recall: the share of answers of a task (`scaling.data.recall_tasks`) that a model gives.

The sequences are those that no run is trained on, the same for every model: with as much to
remember as the task asks for, and with less. With --lengths they are made longer than in training,
which shows whether what was learnt is a rule or a table of distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from models.cross_entropy import IGNORE_INDEX
from models.language_model import LanguageModel
from scaling.data.recall_data import Rows, held_out
from scaling.data.recall_tasks import Recall
from scaling.evaluation.results import Measure

BATCH_TOKENS = 2**16
"""Tokens that pass through the model at once, unless one sequence is longer."""


@torch.no_grad()
def give_answers(model: LanguageModel, rows: Rows) -> torch.Tensor:
    """Share of its answers that the model gives in each sequence, greedily: (n,) float64.

    Args:
        model: in evaluation mode.
        rows: inputs and targets (n, 2, T), with as many answers in every sequence.
    """
    device = model.embedding.weight.device
    shares = []
    for part in torch.from_numpy(rows).split(max(1, BATCH_TOKENS // rows.shape[2])):
        inputs, targets = part.to(device).unbind(1)  # (b, T)
        asked = targets != IGNORE_INDEX
        hidden, _ = model.hidden(inputs)
        logits = model.logits(hidden[asked])  # (b * answers, V)
        right = logits.argmax(-1) == targets[asked]
        shares.append(right.view(len(part), -1).double().mean(1).cpu())
    return torch.cat(shares)


def measures(
    model: LanguageModel, task: Recall, trained: int, lengths: Sequence[int], count: int
) -> list[Measure]:
    """Accuracy over `count` sequences: of the trained length, with the full load and with each
    smaller one (in powers of two), or with the full load at each of `lengths`, which in state
    tracking is in proportion to them.

    Raises:
        ConfigError: a length that is too short for the task.
    """

    def measure(metric: str, length: int, load: int, task: Recall = task) -> Measure:
        shares = give_answers(model, held_out(task, count, length, load))
        spread = float(shares.std()) / math.sqrt(count) if count > 1 else None
        return Measure(metric=metric, value=float(shares.mean()), stderr=spread, n=count)

    if lengths:
        at = {length: task.at_length(length, trained) for length in lengths}
        return [measure(f"accuracy@{n}", n, other.load, other) for n, other in at.items()]
    smaller = [2**i for i in range(task.load.bit_length()) if 2**i < task.load]
    return [
        measure("accuracy", trained, task.load),
        *(measure(f"accuracy of {load}", trained, load) for load in smaller),
    ]
