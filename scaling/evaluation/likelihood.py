"""Log-likelihoods of continuations, in which what texts have in common is read once.

The choices of a question share its context, and often their first words; contexts share a prefix of
examples. So the texts of a whole task are sorted by their tokens and formed into groups:

    a text joins the group before it when the beginning that it shares with all of that group is at
    least a quarter of it, and is worth more than what the others then read each for themselves

What texts share is one token in the tree of a group. How a group is read depends on the state:

1. Where it keeps tokens (softmax attention), a group of up to `WHOLE` tokens is read as it is,
   packed into one row with others; a token sees those that it continues.
2. Otherwise the groups are ordered by the length of their shared beginning, and some of them at a
   time read it. The rest goes on from its state: as a tree again, or where a recurrent state has to
   be copied for it, as a row for each text.

Rows are read with others of about their length, so that little is padding. The head is applied to
the positions alone that predict a token of a continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map

from models.architectures.llama import follows_length
from models.generation import read
from models.language_model import LanguageModel, State
from models.layers import Trees
from scaling.evaluation.results import EvaluationError

LEAST_SHARED = 0.25
"""Part of a text that must stand in a group already for it to join."""
ALIKE = 0.75
"""Rows are read together down to this part of the longest."""
BRANCHES = 512
"""Tokens of a group behind its shared beginning, or as many as that has: all may look at all."""
WHOLE = 256
"""Tokens of a tree that is read in one piece: all of it may look at all."""
AT_ONCE = 512
"""Tokens that pass through the model at once on a CPU, whose caches do not hold what more make."""
LOGITS = 2**25
"""Logits that are held at once."""

Pair = tuple[list[int], list[int]]
"""Tokens of a context and of its continuation."""
Score = tuple[float, bool]
"""Log-likelihood in nats, and whether greedy decoding gives the continuation."""


T = TypeVar("T")


class Text(NamedTuple):
    """Context and continuation as inputs and targets."""

    number: int
    """Its place among the pairs."""
    inputs: list[int]
    """All tokens but the last."""
    targets: list[int]
    """The continuation, predicted by the last of the inputs."""


@dataclass
class Group:
    """Texts with a shared beginning."""

    shared: int
    """Inputs that all texts begin with."""
    texts: list[Text]

    @property
    def beginning(self) -> list[int]:
        """The shared inputs."""
        return self.texts[0].inputs[: self.shared]

    @property
    def tokens(self) -> int:
        """Inputs, with the shared ones counted once."""
        return self.shared + sum(len(text.inputs) - self.shared for text in self.texts)


class Row(NamedTuple):
    """What follows the shared beginning of a group, or one of its texts."""

    group: int
    """Number of the group in its pass."""
    tokens: Tensor
    """(n,)."""
    tree: Trees | None
    """How they follow each other, (n,) and (n, n); None: in one line."""
    paths: list[tuple[Text, list[int]]]
    """Texts, and where their inputs are among the tokens."""


@torch.no_grad()
def score(
    model: LanguageModel, pairs: Sequence[Pair], *, max_length: int, batch_size: int
) -> list[Score]:
    """Log-likelihood of each continuation after its context.

    Args:
        model: in evaluation mode.
        pairs: at least one token each in context and continuation.
        max_length: inputs that a prediction may see; longer contexts lose their beginning.
        batch_size: rows that pass through the model at once.

    Raises:
        EvaluationError: a continuation is empty or longer than `max_length`.
    """
    texts: list[Text] = []
    for number, (context, continuation) in enumerate(pairs):
        if not 0 < len(continuation) <= max_length:
            raise EvaluationError(
                f"a continuation of {len(continuation)} tokens does not fit the "
                f"{max_length} tokens of context; raise --max-length, or leave the task "
                "out for this model."
            )
        inputs = [*context, *continuation][:-1]
        texts.append(Text(number, inputs[-max_length:], continuation))
    scores: list[Score] = [(0.0, False)] * len(pairs)
    if follows_length(model.config):  # angles depend on what a call reads
        groups = [Group(len(text.inputs), [text]) for text in texts]
    else:
        groups = _groups(texts)
    at_once = AT_ONCE if model.embedding.weight.device.type == "cpu" else LOGITS
    whole: list[Row] = []
    if model.keeps_tokens(max(len(text.inputs) for text in texts)):
        trees = (_tree(0, Group(0, group.texts)) for group in groups if group.tokens <= WHOLE)
        whole = [tree for tree in trees if tree is not None]
        groups = [group for group in groups if group.tokens > WHOLE]
    for batch in _alike(whole, lambda row: len(row.tokens), batch_size, at_once, 0):
        for text, found in _trees(model, batch):
            scores[text.number] = found
    for batch in _alike(groups, lambda group: group.shared, batch_size, at_once):
        for text, found in _pass(model, batch, batch_size, at_once):
            scores[text.number] = found
    return scores


def _groups(texts: list[Text]) -> list[Group]:
    """Texts by what they share; see the module."""
    groups: list[Group] = []
    for text in sorted(texts, key=lambda text: text.inputs):
        length = len(text.inputs)
        if groups:
            group = groups[-1]
            # The texts are sorted: what the last has in common with this one, all have.
            shared = min(group.shared, _common(group.texts[-1].inputs, text.inputs))
            saves = shared >= LEAST_SHARED * length and (
                len(group.texts) * (group.shared - shared) < group.shared
            )
            behind = sum(len(other.inputs) - shared for other in [*group.texts, text])
            if saves and behind <= max(BRANCHES, shared):
                group.texts.append(text)
                group.shared = shared
                continue
        groups.append(Group(length, [text]))
    return groups


def _common(first: list[int], second: list[int]) -> int:
    """Tokens that two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _alike(
    items: list[T], size: Callable[[T], int], most: int, tokens: int, alike: float = ALIKE
) -> Iterator[list[T]]:
    """Runs of items of about one size, the largest first: at most `most`, and so many tokens."""
    items = sorted(items, key=size, reverse=True)
    first = 0
    for end in range(1, len(items) + 1):
        full = end - first == most or (end - first + 1) * size(items[first]) > tokens
        if end == len(items) or full or size(items[end]) < alike * size(items[first]):
            yield items[first:end]
            first = end


def _trees(model: LanguageModel, rows: list[Row]) -> Iterator[tuple[Text, Score]]:
    """Scores of the texts of whole trees, packed one after another."""
    device = model.embedding.weight.device
    tokens = torch.cat([row.tokens for row in rows])[None].to(device)
    trees = [row.tree for row in rows if row.tree is not None]
    depth = torch.cat([tree.depth for tree in trees])[None].to(device)
    visible = _visible(trees, max(len(tree.depth) for tree in trees)).to(device)
    starts = np.cumsum([0, *(len(row.tokens) for row in rows)])
    edges = torch.tensor(starts, device=device, dtype=torch.int32)
    hidden, _ = model.hidden(tokens, cu_seqlens=edges, trees=Trees(depth, visible))
    texts, index = [], []
    for row, start in zip(rows, starts.tolist(), strict=False):
        for text, path in row.paths:
            texts.append(text)
            index += [start + place for place in path[-len(text.targets) :]]
    return _scores(model, hidden[0], texts, index)


def _pass(
    model: LanguageModel, groups: list[Group], batch_size: int, at_once: int
) -> Iterator[tuple[Text, Score]]:
    """Scores of the texts of some groups."""
    hidden, starts, state = read(model, [group.beginning for group in groups])
    pieces, read_so_far = [hidden], len(hidden)
    places = {  # of what each text reads in the rows, among the tokens of all pieces
        text.number: range(start, start + group.shared)
        for start, group in zip(starts, groups, strict=True)
        for text in group.texts
    }
    texts = [text for group in groups for text in group.texts]
    if model.keeps_tokens(max(len(text.inputs) for text in texts)):
        trees = [_tree(number, group) for number, group in enumerate(groups)]
        rows = [tree for tree in trees if tree is not None]
    else:
        rows = [row for number, group in enumerate(groups) for row in _chains(number, group)]
    behind: dict[int, list[int]] = {}
    for batch in _alike(rows, lambda row: len(row.tokens), batch_size, at_once):
        hidden = _continue(model, state, batch)
        for number, row in enumerate(batch):
            start = read_so_far + number * hidden.shape[1]
            for text, path in row.paths:
                behind[text.number] = [start + place for place in path]
        pieces.append(hidden.flatten(0, 1))
        read_so_far += len(pieces[-1])
    index: list[int] = []
    for text in texts:
        index += [*places[text.number], *behind.get(text.number, ())][-len(text.targets) :]
    return _scores(model, torch.cat(pieces), texts, index)


def _scores(
    model: LanguageModel, hidden: Tensor, texts: list[Text], index: list[int]
) -> Iterator[tuple[Text, Score]]:
    """Scores of texts whose targets are predicted, one after another, by hidden states (., d)."""
    every = hidden[torch.tensor(index, device=hidden.device)]  # (targets, d)
    targets = torch.tensor([t for text in texts for t in text.targets], device=hidden.device)
    some = max(1, LOGITS // model.config.vocab_size)
    parts = zip(every.split(some), targets.split(some), strict=True)
    found = [_likelihood(model, *part) for part in parts]
    logs, hits = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
    first = np.cumsum([0, *(len(text.targets) for text in texts[:-1])])
    sums, greedy = np.add.reduceat(logs, first), np.logical_and.reduceat(hits, first)
    return zip(texts, zip(sums.tolist(), greedy.tolist(), strict=True), strict=True)


def _likelihood(model: LanguageModel, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of targets (n,), and whether they are the likeliest tokens."""
    logits = model.logits(hidden)  # (n, V)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logs = -torch.nn.functional.cross_entropy(wide, targets, reduction="none")
    return logs.double(), logits.argmax(-1) == targets


def _continue(model: LanguageModel, state: State, rows: list[Row]) -> Tensor:
    """Hidden states (R, longest, d) of rows, each from the state of its group."""
    device = model.embedding.weight.device
    owner = torch.tensor([row.group for row in rows], device=device)
    own = tree_map(lambda tensor: tensor[owner], state)
    tokens = pad_sequence([row.tokens for row in rows], batch_first=True).to(device)
    trees = [row.tree for row in rows if row.tree is not None]
    if not trees:
        return model.hidden(tokens, own)[0]
    depth = pad_sequence([tree.depth for tree in trees], batch_first=True).to(device)
    visible = _visible(trees, tokens.shape[1]).to(device)
    return model.hidden(tokens, own, trees=Trees(depth, visible))[0]


def _visible(trees: list[Trees], longest: int) -> Tensor:
    """What the tokens of some trees see, (R, longest, longest); padding sees itself."""
    visible = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
    for tree, matrix in zip(trees, visible, strict=True):
        matrix[: len(tree.depth), : len(tree.depth)] = tree.visible
    return visible


def _chains(number: int, group: Group) -> list[Row]:
    """A row for each text that goes on behind the shared beginning."""
    rows = []
    for text in group.texts:
        if rest := text.inputs[group.shared :]:
            rows.append(Row(number, torch.tensor(rest), None, [(text, list(range(len(rest))))]))
    return rows


def _tree(number: int, group: Group) -> Row | None:
    """One row for all texts, in which equal beginnings are the same tokens; None: no tokens."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token): place in the row
    parents, depth, paths = [], [], []
    for text in group.texts:
        node, path = -1, []
        for level, token in enumerate(text.inputs[group.shared :]):
            child = nodes.setdefault((node, token), len(nodes))
            if child == len(parents):
                parents.append(node)
                depth.append(level)
            path.append(node := child)
        paths.append((text, path))
    if not nodes:
        return None
    visible = torch.eye(len(nodes), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
    tokens = torch.tensor([token for _, token in nodes])
    return Row(number, tokens, Trees(torch.tensor(depth), visible), paths)
