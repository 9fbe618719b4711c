"""Log-likelihoods against each text read alone, whatever is shared and however it is batched."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.architectures.llama import RopeScaling
from models.architectures.lolcats import LoLCATs
from models.language_model import build
from scaling.evaluation import likelihood
from scaling.evaluation.likelihood import score
from tests.support.model_variants import vary

MAX_LENGTH = 20


def alone(model, pairs):
    """Each text by itself, by the plain forward pass."""
    expected = []
    for context, ending in pairs:
        tokens = [*context, *ending][-MAX_LENGTH - 1 :]
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:-1]]))[0, -len(ending) :]
        targets = torch.tensor(ending)
        value = logits.log_softmax(-1)[torch.arange(len(ending)), targets].sum().item()
        expected.append((value, bool((logits.argmax(-1) == targets).all())))
    return expected


def check(model, pairs, batch_size=4):
    found = score(model, pairs, max_length=MAX_LENGTH, batch_size=batch_size)
    expected = alone(model, pairs)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], abs=1e-6)


CONTEXTS = [b"abcdefgh", b"xyz", b"a longer context than all the others", b"abcdefgi", b"q"]
ENDINGS = [b"12345", b"1", b"xyz", b"12399", b"12345"]


def questions():
    return [(list(context), list(ending)) for context in CONTEXTS for ending in ENDINGS]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize(("whole", "at_once"), [(256, 1024), (30, 1024), (0, 1024), (30, 25)])
def test_scores_are_those_of_each_text_alone(model, batch_size, whole, at_once, monkeypatch):
    monkeypatch.setattr(likelihood, "WHOLE", whole)
    monkeypatch.setattr(likelihood, "AT_ONCE", at_once)
    check(model.model, questions(), batch_size)


VARIANTS = {
    "window": {"window": 5},
    "window, grouped": {"window": 5, "kv_heads": 1},
    "window of some": {"window": 12},
    "window of all": {"window": MAX_LENGTH},
    "grouped": {"kv_heads": 1, "qkv_bias": True},
    "dynamic": {"rope_scaling": RopeScaling(kind="dynamic", factor=2.0, original_length=6)},
    "supra": {"arch": "supra"},
    "hybrid": {"mixers": "hgrn2+llama(window=5)"},
    "dynamic in a layer": {
        "mixers": "tnl+llama(rope_scaling.kind=dynamic, rope_scaling.factor=2.0, "
        "rope_scaling.original_length=6)"
    },
    "lolcats": {"arch": "lolcats", "options": LoLCATs(window=4, softmax_layers=(1,))},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("whole", [0, 256])
def test_variants_of_llama(make_toy, changes, whole, monkeypatch):
    monkeypatch.setattr(likelihood, "WHOLE", whole)
    config = vary(make_toy("llama").model.config, **changes)
    torch.manual_seed(1)
    model = build(config.replace(init_std=0.3), dtype=torch.float64).eval()
    check(model, questions())


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=9),
    batch_size=st.integers(1, 5),
    whole=st.sampled_from([0, 20, 256]),
)
def test_texts_of_any_overlap(model, pairs, batch_size, whole):
    """Three tokens only: many texts begin alike, continue others or are the same."""
    with patch.object(likelihood, "WHOLE", whole):
        check(model.model, pairs, batch_size)


def test_the_calls_read_little_more_than_what_is_different(make_toy, monkeypatch):
    """Two questions of four choices: their contexts once, their choices once, no padding."""
    model = make_toy("llama").model
    read = []
    hidden = model.hidden
    monkeypatch.setattr(
        model,
        "hidden",
        lambda tokens, *a, **k: read.append(tokens.numel()) or hidden(tokens, *a, **k),
    )
    contexts, endings = [b"question one", b"Question two"], [b" yes", b" no", b" why", b" yet"]
    pairs = [(list(c), list(e)) for c in contexts for e in endings]
    # Shared: the context and the blank after it. Behind it " ye" " n" " wh" without the blank.
    score(model, pairs, max_length=64, batch_size=16)
    assert read == [2 * (13 + 5)]
    read.clear()
    monkeypatch.setattr(likelihood, "WHOLE", 0)
    score(model, pairs, max_length=64, batch_size=16)
    assert read == [2 * 13, 2 * 5]
    read.clear()
    monkeypatch.setattr(likelihood, "AT_ONCE", 20)
    score(model, pairs, max_length=64, batch_size=16)
    assert read == [13, 5, 13, 5]


def test_examples_before_all_questions_are_read_once():
    """Few-shot prompts: one group as long as it saves, another when the rest grows too long."""
    shots = [1] * 1000
    texts = [
        likelihood.Text(q * 4 + c, [*shots, 2, q, *[3 + q] * 60, c], [0])
        for q in range(8)
        for c in range(4)
    ]
    groups = likelihood._groups(texts)
    assert sorted(t.number for g in groups for t in g.texts) == list(range(32))
    assert len(groups) == 2
    assert all(
        sum(len(t.inputs) - g.shared for t in g.texts) <= max(likelihood.BRANCHES, g.shared)
        for g in groups
    )
    short = [likelihood.Text(n, [1, *[10 + n] * 8], [0]) for n in range(3)]
    assert len(likelihood._groups(short)) == 3  # one token in nine is not worth it
