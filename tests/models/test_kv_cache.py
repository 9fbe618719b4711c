"""The key-value cache: a text cut in any way gives the logits of one call; windows bound it."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import llama
from models.config import toy_config
from models.generation import Decoder, Sampling, read
from models.kv_cache import held
from models.language_model import LanguageModel, build
from tests.support.model_variants import vary

VOCAB, LENGTH, WINDOW = 61, 40, 7


def model(window: int | None) -> LanguageModel:
    torch.manual_seed(0)
    config = toy_config("llama", 32, vocab_size=VOCAB, layers=2)
    config = vary(config, init_std=0.3, window=window, kv_heads=1)
    return build(config, dtype=torch.float64).eval()


MODELS = {window: model(window) for window in (None, 1, WINDOW, 2 * LENGTH)}


def one_mask(model: LanguageModel) -> Tensor:
    """Logits of the whole text with all its queries at once, and so one mask of T x T."""
    with patch.object(llama, "QUERIES", LENGTH), torch.no_grad():
        return model(TOKENS)


TOKENS = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None)
@given(
    window=st.sampled_from(list(MODELS)),
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=5, unique=True),
    stepped=st.lists(st.booleans(), min_size=6, max_size=6),
    fresh=st.booleans(),
    queries=st.sampled_from([1, 5, 2 * LENGTH]),
)
def test_any_cut_of_a_text_gives_the_same_logits(
    window: int | None, cuts: list[int], stepped: list[bool], fresh: bool, queries: int
) -> None:
    """Pieces are read in parallel, some queries at a time, or step by step, from no state or an
    initial one."""
    model = MODELS[window]
    state = model.initial_state(2) if fresh else None
    edges = [0, *sorted(cuts), LENGTH]
    outputs = []
    with torch.no_grad(), patch.object(llama, "QUERIES", queries):
        for first, last, steps in zip(edges, edges[1:], stepped, strict=False):
            piece = TOKENS[:, first:last]
            if steps and state is not None:
                for token in piece.T:
                    logits, state = model.step(token, state)
                    outputs.append(logits[:, None])
            else:
                logits, state = model(piece, state, return_state=True)
                outputs.append(logits)
            assert state is not None
            slots = state.blocks[0]["k"].shape[1]
            assert slots >= min(last, LENGTH if window is None else window)
            assert window is None or slots <= window
        expected = one_mask(model)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", list(MODELS))
@pytest.mark.parametrize("queries", [1, 5, 2 * LENGTH])
def test_packed_sequences_of_any_lengths_are_continued(
    window: int | None, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice packed, with other cuts, then a step: each sequence as if alone."""
    monkeypatch.setattr(llama, "QUERIES", queries)
    model = MODELS[window]
    cuts = [(3, 5), (19, 30)]  # (tokens of the first call, of both) of each sequence
    first = torch.cat([TOKENS[row, :a] for row, (a, _) in enumerate(cuts)])[None]
    second = torch.cat([TOKENS[row, a:b] for row, (a, b) in enumerate(cuts)])[None]
    edges = torch.tensor([[0, 3, 22], [0, 2, 13]], dtype=torch.int32)
    with torch.no_grad():
        _, state = model(first, return_state=True, cu_seqlens=edges[0])
        logits, state = model(second, state, return_state=True, cu_seqlens=edges[1])
        last = torch.stack([TOKENS[row, b] for row, (_, b) in enumerate(cuts)])
        step, state = model.step(last, state)
        whole = one_mask(model)
    expected = [whole[row, a:b] for row, (a, b) in enumerate(cuts)]
    torch.testing.assert_close(logits[0], torch.cat(expected), rtol=0, atol=1e-9)
    after = torch.stack([whole[row, b] for row, (_, b) in enumerate(cuts)])
    torch.testing.assert_close(step, after, rtol=0, atol=1e-9)


def test_a_window_bounds_the_memory_of_decoding() -> None:
    """Prompts shorter and longer than the window; far more tokens than it holds."""
    prompts = [[1, 2, 3], list(range(30))]
    decoder = Decoder(MODELS[WINDOW], prompts, Sampling(max_new_tokens=50, temperature=0))
    sizes = set()
    while decoder.running:
        decoder.advance()
        sizes.add(decoder.state.blocks[0]["k"].shape[1])
    assert sizes == {WINDOW}


def test_positions_in_the_slots() -> None:
    lengths = torch.tensor([0, 2, 5, 9])
    assert held(lengths, 4, 4).tolist() == [
        [-4, -3, -2, -1],
        [0, 1, -2, -1],
        [4, 1, 2, 3],
        [8, 5, 6, 7],
    ]
    assert held(lengths, 4, None)[1].tolist() == [0, 1, -1, -1]


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *made, 0)
        return out


def test_prompts_of_mixed_lengths_take_memory_as_the_window_not_as_their_square() -> None:
    """Packed into one row; without the cut a mask alone has its length squared."""
    small = MODELS[WINDOW]
    prompts = [[token % VOCAB for token in range(length)] for length in (900, 30, 1500, 4)]
    total = sum(map(len, prompts))
    with Largest() as largest, torch.no_grad():
        hidden, starts, _ = read(small, prompts)
    widest = max(small.config.glu_dim, 2 * small.config.dim)
    scores = small.config.heads * llama.QUERIES * (llama.QUERIES + WINDOW)
    assert largest.elements <= max(total * widest, scores) < total**2
    for start, prompt in zip(starts, prompts, strict=True):
        alone, _, _ = read(small, [prompt])
        found = hidden[start : start + len(prompt)]
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-9)
