"""The key-value cache: a text cut in any way gives the logits of one call; windows bound it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import toy_config
from models.generation import Decoder, Sampling
from models.kv_cache import held
from models.language_model import LanguageModel, build

VOCAB, LENGTH, WINDOW = 61, 40, 7


def model(window: int | None) -> LanguageModel:
    torch.manual_seed(0)
    config = toy_config("llama", 32, vocab_size=VOCAB, layers=2)
    config = config.replace(init_std=0.3, window=window, kv_heads=1)
    return build(config, dtype=torch.float64).eval()


MODELS = {window: model(window) for window in (None, 1, WINDOW, 2 * LENGTH)}
TOKENS = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(1))


@settings(max_examples=25, deadline=None)
@given(
    window=st.sampled_from(list(MODELS)),
    cuts=st.lists(st.integers(1, LENGTH - 1), max_size=5, unique=True),
    stepped=st.lists(st.booleans(), min_size=6, max_size=6),
    fresh=st.booleans(),
)
def test_any_cut_of_a_text_gives_the_same_logits(
    window: int | None, cuts: list[int], stepped: list[bool], fresh: bool
) -> None:
    """Pieces are read in parallel or step by step, from no state or an initial one."""
    model = MODELS[window]
    state = model.initial_state(2) if fresh else None
    edges = [0, *sorted(cuts), LENGTH]
    outputs = []
    with torch.no_grad():
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
        expected = model(TOKENS)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("window", list(MODELS))
def test_packed_sequences_of_any_lengths_are_continued(window: int | None) -> None:
    """Twice packed, with other cuts, then a step: each sequence as if alone."""
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
        whole = model(TOKENS)
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
