"""Every way to score a text against the model's own logits, token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scaling.data.tokenizers import ByteTokenizer
from scaling.evaluation.perplexity import (
    Document,
    as_document,
    block_losses,
    block_measures,
    context_measures,
    document_losses,
    document_measures,
    position_measures,
    read_documents,
    sliding_losses,
)
from scaling.evaluation.results import EvaluationError

TEXT = "In 12 words, more."


def naive(model, tokens, start, context_of):
    """Loss of token i from the inputs [context_of(i), i] alone."""
    text = [start, *tokens]
    out = []
    for i in range(len(tokens)):
        logits = model(torch.tensor([text[context_of(i) : i + 1]]))[0, -1]
        out.append(-logits.log_softmax(-1)[text[i + 1]].item())
    return np.array(out)


def test_a_whole_document_is_one_context(model):
    tokens = list(TEXT.encode())
    with torch.no_grad():
        expected = naive(model.model, tokens, 255, lambda i: 0)
    for chunk in (7, 1000):
        found = document_losses(model.model, tokens, start=255, chunk=chunk)
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (64, 32)])
def test_sliding_windows_score_each_token_once(model, window, stride):
    tokens = list(TEXT.encode())
    n = len(tokens)

    def first_input(i):
        if i < window or n <= window:
            return 0
        end = min(n, window + math.ceil((i + 1 - window) / stride) * stride)
        return end - window

    with torch.no_grad():
        expected = naive(model.model, tokens, 255, first_input)
    found = sliding_losses(
        model.model, tokens, start=255, window=window, stride=stride, batch_size=3
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_stride_beyond_the_window_is_refused(model):
    with pytest.raises(EvaluationError, match="stride=9 with window=8"):
        sliding_losses(model.model, [1, 2], start=255, window=8, stride=9, batch_size=1)


def test_blocks_by_position(model):
    blocks = np.random.default_rng(0).integers(0, 256, (5, 25))
    losses = block_losses(model.model, blocks, batch_size=2)
    assert losses.shape == (5, 24)
    with torch.no_grad():
        logits = model.model(torch.tensor(blocks[:, :-1]))
    expected = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch.tensor(blocks[:, 1:]), reduction="none"
    )
    np.testing.assert_allclose(losses, expected.numpy(), atol=1e-6)
    curve = {m.metric: m.value for m in position_measures(losses)}
    assert list(curve) == [f"nats_per_token@{r}" for r in ("1", "2", "3-4", "5-8", "9-16", "17-24")]
    assert curve["nats_per_token@5-8"] == pytest.approx(losses[:, 4:8].mean())
    long = {m.metric: m.value for m in context_measures(losses, 8)}
    assert long == {
        f"nats_per_token@{a + 1}-{a + 8}": pytest.approx(losses[:, a : a + 8].mean())
        for a in (0, 8, 16)
    }
    loss, bits = block_measures(losses, bytes_per_token=2.0)
    assert loss.value == pytest.approx(losses.mean())
    assert loss.stderr == pytest.approx(losses.mean(axis=1).std(ddof=1) / math.sqrt(5))
    assert bits.value == pytest.approx(losses.mean() / math.log(2) / 2)


def test_measures_of_documents():
    documents = [Document(tokens=(1,) * 4, text_bytes=8, words=2)] * 2
    nats = [np.full(4, 0.5), np.full(4, 1.0)]
    by = {m.metric: m for m in document_measures(documents, nats)}
    assert by["nats_per_token"].value == pytest.approx(0.75)
    # Equal sizes: the standard error of a ratio is that of the mean.
    assert by["nats_per_token"].stderr == pytest.approx(np.std([0.5, 1.0], ddof=1) / math.sqrt(2))
    assert by["bits_per_byte"].value == pytest.approx(6 / 16 / math.log(2))
    assert by["word_perplexity"].value == pytest.approx(math.exp(6 / 4))
    one = Document(tokens=(1,), text_bytes=1, words=1)
    with pytest.raises(EvaluationError, match="white space"):
        document_measures([one], [np.array([1000.0])])


def test_documents_from_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("zwölf words")
    assert read_documents([path], ByteTokenizer()) == [as_document("zwölf words", ByteTokenizer())]
    assert as_document("zwölf words", ByteTokenizer()).text_bytes == 12
    for content, message in ((b"\xff\xfe", "UTF-8"), (b" \n", "holds no text")):
        path.write_bytes(content)
        with pytest.raises(EvaluationError, match=message):
            read_documents([path], ByteTokenizer())
    with pytest.raises(EvaluationError, match="missing"):
        read_documents([tmp_path / "missing.txt"], ByteTokenizer())
