"""Generation against transformers' filters and `generate`, and against recomputation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_leaves

from models.config import ARCHS, Arch, ConfigError, toy_config
from models.generation import Decoder, Sampling, TextStream, filter_logits, generate, prefill
from models.interop import import_model
from models.language_model import LanguageModel, build

VOCAB = 61
PROMPTS = [[5, 9, 60, 3], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [30] * 40]


class Letters:
    """A tokenizer of single characters from code point 32 on."""

    eos_id = 0
    vocab_size = VOCAB - 3
    prefix = ()

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 32 for c in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(t + 32) for t in tokens)


def toy(arch: Arch) -> LanguageModel:
    torch.manual_seed(0)
    config = toy_config(arch, 32, vocab_size=VOCAB, layers=2).replace(init_std=0.3)
    return build(config, dtype=torch.float64).eval()


def run(
    model: LanguageModel, prompts: list[list[int]], sampling: Sampling, eos: tuple[int, ...] = ()
) -> list[list[int]]:
    decoder = Decoder(model, prompts, sampling, eos)
    out: list[list[int]] = [[] for _ in prompts]
    while decoder.running:
        for number, token in decoder.advance():
            out[number].append(token)
    return out


@pytest.mark.parametrize("arch", ARCHS)
def test_greedy_equals_recomputation(arch: Arch) -> None:
    model = toy(arch)
    results = run(model, PROMPTS, Sampling(max_new_tokens=12, temperature=0))
    for prompt, tokens in zip(PROMPTS, results, strict=True):
        known = list(prompt)
        for token in tokens:
            with torch.no_grad():
                assert model(torch.tensor([known]))[0, -1].argmax() == token
            known.append(token)
        assert len(tokens) == 12


@pytest.mark.parametrize("arch", ARCHS)
def test_packed_prefill_equals_each_alone(arch: Arch) -> None:
    model = toy(arch)
    logits, _ = prefill(model, PROMPTS)
    for number, prompt in enumerate(PROMPTS):
        alone, _ = prefill(model, [prompt])
        torch.testing.assert_close(logits[number], alone[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("arch", ARCHS)
def test_sampling_in_a_batch_equals_alone(arch: Arch) -> None:
    """Also when others end early: token 7 ends a text here."""
    model = toy(arch)
    sampling = {"max_new_tokens": 25, "top_p": 0.95, "repetition_penalty": 1.2}
    together = run(model, PROMPTS, Sampling(seed=3, **sampling), (7, 11, 13, 17, 19))
    assert len({len(tokens) for tokens in together}) > 1, "choose ends that occur"
    for number, prompt in enumerate(PROMPTS):
        alone = run(model, [prompt], Sampling(seed=3 + number, **sampling), (7, 11, 13, 17, 19))
        assert alone == [together[number]]


@pytest.mark.parametrize("arch", ["tnl", "hgrn2", "cosformer2"])
def test_recurrent_state_keeps_its_size(arch: Arch) -> None:
    decoder = Decoder(toy(arch), PROMPTS, Sampling(max_new_tokens=200, temperature=0))
    sizes = set()
    while decoder.running:
        decoder.advance()
        sizes.add(sum(t.nbytes for t in tree_leaves(decoder.state)))
    assert len(sizes) == 1


def theirs(sampling: Sampling, logits: Tensor, seen: Tensor) -> Tensor:
    """The same filters by transformers' processors, one sequence at a time."""
    rows = []
    for row, known in zip(logits, seen, strict=True):
        ids, row = known.nonzero().T, row[None].clone()
        processors: list[Any] = []
        if sampling.repetition_penalty != 1:
            penalty = sampling.repetition_penalty
            processors.append(transformers.RepetitionPenaltyLogitsProcessor(penalty))
        processors.append(transformers.TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k is not None:
            processors.append(transformers.TopKLogitsWarper(sampling.top_k))
        if sampling.top_p is not None:
            processors.append(transformers.TopPLogitsWarper(sampling.top_p))
        if sampling.min_p is not None:
            processors.append(transformers.MinPLogitsWarper(sampling.min_p))
        for processor in processors:
            row = processor(ids, row)
        rows.append(row[0])
    return torch.stack(rows)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 10_000},
        {"top_p": 0.01},
        {"top_p": 0.6},
        {"top_p": 1.0},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.05, "temperature": 1.4, "repetition_penalty": 1.1},
    ],
)
def test_filters_equal_transformers(choices: dict[str, Any]) -> None:
    sampling = Sampling(**choices)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 97, generator=generator)
    seen = torch.rand(50, 97, generator=generator) < 0.2
    ours = filter_logits(logits, sampling, seen)
    torch.testing.assert_close(ours, theirs(sampling, logits, seen), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_equals_generate_of_transformers(penalty: float, tmp_path: Any) -> None:
    torch.manual_seed(2)
    other = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            eos_token_id=None,
            bos_token_id=None,
        )
    ).eval()
    other.save_pretrained(tmp_path)
    model, _ = import_model(tmp_path)
    settings = Sampling(max_new_tokens=30, temperature=0, repetition_penalty=penalty)
    for prompt in PROMPTS:
        expected = other.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=30,
            repetition_penalty=penalty,
            pad_token_id=0,
        )
        assert run(model, [prompt], settings) == [expected[0, len(prompt) :].tolist()]


def test_draws_follow_the_distribution() -> None:
    """4000 draws against the probabilities: chi-squared within its 99.99 % quantile."""
    model = toy("tnl")
    prompts = [PROMPTS[0]] * 4000
    logits, _ = prefill(model, prompts[:1])
    expected = filter_logits(logits, Sampling(top_k=8))[0].softmax(-1) * len(prompts)
    drawn = run(model, prompts, Sampling(max_new_tokens=1, top_k=8, seed=5))
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=VOCAB).float()
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi = ((counts - expected)[kept].square() / expected[kept]).sum().item()
    assert chi < 29.9  # 7 degrees of freedom, tail probability 1e-4


def test_text_ends_stops_and_streams() -> None:
    model, tokenizer = toy("hgrn2"), Letters()
    sampling = Sampling(max_new_tokens=60, seed=1)
    whole = generate(model, tokenizer, ["HELLO", ""], sampling, eos_ids=())
    assert [(c.reason, len(c.tokens), len(c.text)) for c in whole] == [("length", 60, 60)] * 2
    text = whole[0].text
    stop = text[10:13]
    place = text.index(stop)
    heard: list[str] = []
    (cut, _) = generate(
        model,
        tokenizer,
        ["HELLO", ""],
        Sampling(max_new_tokens=60, seed=1, stop=("never there", stop)),
        eos_ids=(),
        on_text=lambda number, piece: heard.append(piece) if number == 0 else None,
    )
    assert cut.reason == "stop"
    assert cut.text == text[:place] == "".join(heard)
    assert len(cut.tokens) == place + len(stop)
    assert len(heard) > 3, "text must come while it is made"


def test_padding_of_the_embedding_is_never_drawn() -> None:
    model = toy("tnl")
    prompts = [[5]] * 300
    counts = [0, 0]
    for number, limit in enumerate((None, 10)):
        decoder = Decoder(model, prompts, Sampling(max_new_tokens=2), vocab_size=limit)
        while decoder.running:
            counts[number] += sum(token >= 10 for _, token in decoder.advance())
    assert counts[0] > 100
    assert counts[1] == 0


def test_end_token_is_not_text() -> None:
    model, tokenizer = toy("tnl"), Letters()
    free = generate(model, tokenizer, ["AB"], Sampling(max_new_tokens=30, temperature=0))[0]
    end = free.tokens[-1]
    ended = generate(
        model, tokenizer, ["AB"], Sampling(max_new_tokens=30, temperature=0), eos_ids=(end,)
    )[0]
    first = free.tokens.index(end)
    assert ended.reason == "end"
    assert ended.tokens == free.tokens[: first + 1]
    assert ended.text == tokenizer.decode(free.tokens[:first])


@settings(deadline=None)
@given(
    st.binary(max_size=60),
    st.lists(st.text(alphabet="ab\u00e9\u20ac", min_size=1, max_size=3), max_size=2),
)
def test_stream_gives_the_text_of_all_tokens(raw: bytes, stop: list[str]) -> None:
    """Bytes that form no character are held back and come out as in one decoding."""
    stream = TextStream(lambda tokens: bytes(tokens).decode(errors="replace"), stop)
    pieces = []
    for byte in raw:
        pieces.append(stream.add(byte))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    whole = raw.decode(errors="replace")
    cut = min((whole.find(s) for s in stop if s in whole), default=len(whole))
    assert "".join(pieces) == stream.text == whole[:cut]
    assert stream.stopped == (cut < len(whole))


def test_stop_strings_are_held_back() -> None:
    stream = TextStream(lambda tokens: bytes(tokens).decode(), ["abc"])
    assert [stream.add(b) for b in b"xaabb"] == ["x", "", "a", "", "abb"]
    assert stream.add(ord("a")) == ""
    assert stream.finish() == "a"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0: must be at least 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 0.0}, "top_p=0.0: must be above 0"),
        ({"min_p": 1.5}, "min_p=1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0"),
        ({"stop": ("",)}, "at least one character"),
    ],
)
def test_bad_sampling(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**choices)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "give at least one"),
        ([[1], []], "prompt 1 has no tokens"),
        ([[1, VOCAB]], f"token {VOCAB}, and the model has {VOCAB}"),
    ],
)
def test_bad_prompts(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoder(toy("llama"), prompts, Sampling())
