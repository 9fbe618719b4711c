"""The tokenizer in a GGUF file, as a `tokenizer.json`.

| `tokenizer.ggml.model` | what it is                                                              |
|------------------------|-------------------------------------------------------------------------|
| `llama`                | SentencePiece's BPE: pieces with scores; a merge is any split of a piece|
|                        | into two, and ranks as the piece scores; what no piece covers is bytes  |
| `gpt2`                 | byte-level BPE with its merges; `tokenizer.ggml.pre` names the pattern  |
"""

from __future__ import annotations

from typing import Any

from models.interop.gguf_file import GGUFFile
from models.interop.tensors import InteropError

_CONTROL, _USER = 3, 4  # tokenizer.ggml.token_type
_NAMES = ("bos", "eos", "unknown", "padding")
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PATTERNS = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "llama-bpe": _WORDS + r"\p{N}{1,3}" + _REST,
    "qwen2": _WORDS + r"\p{N}" + _REST,
}
"""How texts are split before merges: `tokenizer.ggml.pre` -> pattern."""


def tokenizer_json(file: GGUFFile) -> dict[str, Any]:
    """Content of `tokenizer.json`.

    Raises:
        InteropError: the tokenizer is of another kind.
    """
    values = {k.removeprefix("tokenizer.ggml."): v for k, v in file.metadata.items()}
    kind = values.get("model")
    if kind == "llama":
        model = _sentencepiece(values)
    elif kind == "gpt2":
        model = _byte_level(file, values)
    else:
        raise InteropError(
            f"{file.path}: tokenizer.ggml.model={kind!r}; only llama (SentencePiece's BPE) and "
            "gpt2 (byte-level BPE) are read."
        )
    added = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for number, (text, kind) in enumerate(
            zip(values["tokens"], values["token_type"], strict=True)
        )
        if kind in (_CONTROL, _USER)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": _beginning(values),
        **model,
    }


def _sentencepiece(values: dict[str, Any]) -> dict[str, Any]:
    tokens, scores = values["tokens"], values["scores"]
    vocabulary = {text: number for number, text in enumerate(tokens)}
    merges: list[tuple[float, int, int, str, str]] = []
    for text, score, kind in zip(tokens, scores, values["token_type"], strict=True):
        if kind in (_CONTROL, _USER):
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in vocabulary and right in vocabulary:
                merges.append((-score, vocabulary[left], vocabulary[right], left, right))
    merges.sort()
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizer: dict[str, Any] = space
    if values.get("add_space_prefix", True):
        prepend = {"type": "Prepend", "prepend": "▁"}
        normalizer = {"type": "Sequence", "normalizers": [prepend, space]}
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = values.get("unknown_token_id")
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": _bpe(
            vocabulary,
            [[left, right] for *_, left, right in merges],
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        ),
    }


def _byte_level(file: GGUFFile, values: dict[str, Any]) -> dict[str, Any]:
    name = values.get("pre", "default")
    if name not in PATTERNS:
        raise InteropError(
            f"{file.path}: tokenizer.ggml.pre={name!r}; only {', '.join(PATTERNS)} are known. "
            "Take the model's safetensors files instead."
        )
    split = {
        "type": "Split",
        "pattern": {"Regex": PATTERNS[name]},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "decoder": level,
        "model": _bpe(
            {text: number for number, text in enumerate(values["tokens"])},
            [merge.split(" ", 1) for merge in values["merges"]],
            ignore_merges=name == "llama-bpe",
        ),
    }


def _bpe(vocabulary: dict[str, int], merges: list[list[str]], **more: Any) -> dict[str, Any]:
    rest: dict[str, Any] = {
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {"type": "BPE", **rest, **more, "vocab": vocabulary, "merges": merges}


def _beginning(values: dict[str, Any]) -> dict[str, Any] | None:
    """What puts the token that begins a text before it, where the model wants one."""
    number = values.get("bos_token_id")
    if number is None or not values.get("add_bos_token", values["model"] == "llama"):
        return None
    text = values["tokens"][number]
    begin = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": n}} for n, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
    }


def tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    """Content of `tokenizer_config.json`, less the chat template."""
    values = {k.removeprefix("tokenizer.ggml."): v for k, v in file.metadata.items()}
    theirs = dict(zip(_NAMES, ("bos_token", "eos_token", "unk_token", "pad_token"), strict=True))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **{
            theirs[name]: values["tokens"][number]
            for name in _NAMES
            if (number := values.get(f"{name}_token_id")) is not None
        },
    }
