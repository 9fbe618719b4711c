"""`linscale export`: a model with its tokenizer as a directory that transformers loads.

Weights, configuration and code are written by `models.interop.export_model`; here the tokenizer
becomes a `tokenizer.json` that encodes every text to the same tokens:

| tokenizer   | tokenizer.json                                                             |
|-------------|----------------------------------------------------------------------------|
| `bytes`     | byte-level BPE without merges: one token a byte, number = value            |
| `bpe:`, `file:` | itself; where it came with a model, all of its files as they are       |
| `tiktoken:` | byte-level BPE whose merges are read off the ranks, with the same pattern  |
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.errors import LinscaleError
from scaling.data.tokenizers import (
    END_OF_TEXT,
    ByteTokenizer,
    JsonTokenizer,
    TiktokenTokenizer,
    Tokenizer,
)
from scaling.record.pretrained import Pretrained
from scaling.record.record import TOKENIZER, TOKENIZER_CONFIG, copy_files
from scaling.system.files import read_json

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

GENERATION = "generation_config.json"
INPUTS = ["input_ids", "attention_mask"]
"""What models here read of what a tokenizer makes."""


def export_pretrained(loaded: Pretrained, directory: Path | str, layout: str) -> None:
    """Write a model and its tokenizer.

    Args:
        loaded: what to export.
        directory: where to; must be empty or absent.
        layout: `transformers`, or `fla` for flash-linear-attention's HGRN2.

    Raises:
        ConfigError: the layout cannot hold the model, or the directory is not empty.
        LinscaleError: the tokenizer cannot be written as a tokenizer.json.
    """
    from models.interop import export_model

    directory = Path(directory)
    tokenizer = None if loaded.files is not None else to_json_tokenizer(loaded.tokenizer)
    eos_id, *more = loaded.eos_ids
    context = loaded.context or 2048  # transformers' own default where nothing is known
    export_model(
        loaded.model,
        directory,
        context=context,
        eos_id=(eos_id, *more) if more else eos_id,
        vocab_size=loaded.tokenizer.vocab_size,
        layout=layout,
        generation=None if loaded.files is None else read_json(loaded.files / GENERATION),
    )
    if tokenizer is None:
        assert loaded.files is not None
        _copy_tokenizer(loaded.files, directory)
        return
    (directory / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    end = tokenizer.id_to_token(eos_id)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        # A special token spelt out in a text is just text, as in training.
        "split_special_tokens": True,
        "padding_side": "left",
        "model_input_names": INPUTS,
    }
    (directory / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2) + "\n", encoding="utf-8"
    )


def _copy_tokenizer(folder: Path, directory: Path) -> None:
    """The tokenizer's files as they came, but for what no model here reads."""
    generation = (directory / GENERATION).read_bytes()
    copy_files(folder, directory)
    (directory / GENERATION).write_bytes(generation)
    path = directory / TOKENIZER_CONFIG
    settings = read_json(path) | {"model_input_names": INPUTS}
    # What transformers 5 has its own words for, in those that 4 knows too.
    if settings.pop("backend", None) == "tokenizers":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(more := settings.get("extra_special_tokens"), list):
        del settings["extra_special_tokens"]
        settings["additional_special_tokens"] = more
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def to_json_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer for the `tokenizers` library.

    Raises:
        LinscaleError: it is of a kind that has no equivalent there.
    """
    import tokenizers

    if isinstance(tokenizer, JsonTokenizer):
        return tokenizers.Tokenizer.from_str(tokenizer.to_json())
    if isinstance(tokenizer, ByteTokenizer):
        letters = _byte_letters()
        vocabulary = {letters[byte]: byte for byte in range(256) if byte != tokenizer.eos_id}
        vocabulary[END_OF_TEXT] = tokenizer.eos_id
        return _byte_level(vocabulary, [], None, [END_OF_TEXT])
    if isinstance(tokenizer, TiktokenTokenizer):
        return _from_tiktoken(tokenizer.inner)
    raise LinscaleError(f"tokenizer {tokenizer.name}: cannot be exported.")


def _byte_level(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    pattern: str | None,
    special: list[str],
) -> tokenizers.Tokenizer:
    """Byte-level BPE; a pattern splits the text first, None leaves it whole."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    # The library's stubs and its classes disagree on what is callable.
    result: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pattern is None:
        result.pre_tokenizer = bytes_only
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        result.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens([AddedToken(token, special=True) for token in special])
    return result


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level BPE: itself where it can be printed, and
    otherwise the next letter from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def _from_tiktoken(encoding: tiktoken.Encoding) -> tokenizers.Tokenizer:
    """Merges from ranks: a token came from the two parts that lower ranks leave of its bytes."""
    letters = _byte_letters()

    def spell(raw: bytes) -> str:
        return "".join(letters[byte] for byte in raw)

    special = {encoding.encode_single_token(t): t for t in encoding.special_tokens_set}
    ranks = {
        raw: rank
        for raw in encoding.token_byte_values()
        if (rank := encoding.encode_single_token(raw)) not in special
    }
    vocabulary = {spell(raw): rank for raw, rank in ranks.items()}
    vocabulary |= {text: number for number, text in special.items()}
    merges: list[tuple[str, str]] = []
    for raw, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(raw) > 1 and (parts := _parts(raw, rank, ranks)) is not None:
            merges.append((spell(parts[0]), spell(parts[1])))
    return _byte_level(vocabulary, merges, encoding._pat_str, list(special.values()))


def _parts(raw: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two pieces that a token's bytes are merged to by all tokens of lower rank."""
    pieces = [raw[i : i + 1] for i in range(len(raw))]
    while len(pieces) > 2:
        joined = [ranks.get(a + b, rank) for a, b in itertools.pairwise(pieces)]
        best, place = min((rank, place) for place, rank in enumerate(joined))
        if best >= rank:
            return None
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces[0], pieces[1]
