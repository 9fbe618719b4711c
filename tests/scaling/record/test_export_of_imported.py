"""Students of other people's models keep what makes those usable: tokenizer, template, ends."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from models.architectures.lolcats import LoLCATs
from models.linearize.surgery import linearize
from scaling.cli.main import app
from scaling.data.chat import ChatTemplate, read_template
from scaling.data.json_tokenizer import KEPT, JsonTokenizer, load_json_tokenizer
from scaling.record.export import export_pretrained
from scaling.record.pretrained import Pretrained, load_pretrained
from scaling.record.record import copy_files

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] | trim }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
MESSAGES = [{"role": "user", "content": " the quick fox "}]


def chat_tokenizer() -> Any:
    """Byte-level, with turns that are special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>", "<turn>", "<end>"]
    vocabulary = {text: number for number, text in enumerate([*special, *letters])}
    inner: Any = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        additional_special_tokens=["<turn>", "<end>"], chat_template=TEMPLATE,
    )  # fmt: skip
    return tokenizer


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A random Gemma 3 with all of its files."""
    torch.manual_seed(0)
    tokenizer = chat_tokenizer()
    config = transformers.Gemma3TextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=1, head_dim=16, sliding_window=16,
        initializer_range=0.2, max_position_embeddings=256, sliding_window_pattern=2,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.Gemma3ForCausalLM(config)
    model.generation_config = transformers.GenerationConfig(
        eos_token_id=[2, 4], bos_token_id=1, pad_token_id=0, do_sample=True, top_k=7, top_p=0.9
    )
    model.save_pretrained(tmp_path / "gemma")
    tokenizer.save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


@pytest.fixture
def student(gemma: Path) -> Pretrained:
    loaded = load_pretrained(gemma)
    return dataclasses.replace(loaded, model=linearize(loaded.model, LoLCATs(window=8)).eval())


def test_files_come_along_as_they_are(gemma: Path, student: Pretrained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_pretrained(student, out, "transformers")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (gemma / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    generation = json.loads((out / "generation_config.json").read_text())
    for values in (config, generation):
        assert values["eos_token_id"] == [2, 4]
    assert (generation["top_k"], generation["top_p"], generation["pad_token_id"]) == (7, 0.9, 0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    theirs = transformers.AutoTokenizer.from_pretrained(gemma)
    chat = {"add_generation_prompt": True, "tokenize": False}
    assert tokenizer.apply_chat_template(MESSAGES, **chat) == theirs.apply_chat_template(
        MESSAGES, **chat
    )
    made = tokenizer("<turn>user the fox<end>", return_tensors="pt")
    assert set(made) == {"input_ids", "attention_mask"}
    assert made["input_ids"].tolist() == [theirs("<turn>user the fox<end>")["input_ids"]]
    assert {3, 4} <= set(made["input_ids"][0].tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        model = transformers.AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    again = load_pretrained(out)
    assert again.eos_ids == (2, 4)
    with torch.no_grad():
        ids = made["input_ids"]
        torch.testing.assert_close(model(ids).logits, student.model(ids), rtol=0, atol=1e-4)
    answer = model.generate(**made, do_sample=False, max_new_tokens=9)
    assert answer.shape[1] > ids.shape[1]


def test_our_chats_are_those_of_transformers(gemma: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(gemma)
    loaded = load_pretrained(gemma)
    text = read_template(loaded.files).render(MESSAGES)
    assert text == theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert isinstance(loaded.tokenizer, JsonTokenizer)
    ids = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert loaded.tokenizer.encode_marked(text) == ids
    # A marker that a text spells stays text.
    assert 3 not in loaded.tokenizer.encode("<turn>")


def test_chat_on_the_command_line(gemma: Path) -> None:
    arguments = ["generate", str(gemma), "--chat", "--max-new-tokens", "6", "--temperature", "0"]
    one = CliRunner().invoke(app, [*arguments, "-p", "the fox", "--json"], catch_exceptions=False)
    (answer,) = json.loads(one.stdout)
    lines = CliRunner().invoke(app, arguments, input="the fox\nand\n", catch_exceptions=False)
    assert lines.exit_code == 0
    assert lines.stdout.startswith(answer["text"])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(gemma).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(gemma)
    asked = [{"role": "user", "content": "the fox"}]
    made = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    out = theirs.generate(**made, do_sample=False, max_new_tokens=6)
    fresh = out[0, made["input_ids"].shape[1] :]
    assert answer["text"] == tokenizer.decode(fresh, skip_special_tokens=True)


def test_a_run_keeps_its_teachers_files(gemma: Path, tmp_path: Path) -> None:
    """As `write_tokenizer` puts them beside a run's own tokenizer.json."""
    tokenizer = load_json_tokenizer("file:x", gemma / "tokenizer.json")
    assert tokenizer.folder == gemma
    copy_files(gemma, tmp_path / "run" / KEPT)
    (tmp_path / "run" / "tokenizer.json").write_text(tokenizer.to_json())
    (tmp_path / "run" / "tokenizer_config.json").write_text(tokenizer.to_config())
    again = load_json_tokenizer("file:x", tmp_path / "run" / "tokenizer.json")
    assert again.folder == tmp_path / "run" / KEPT
    assert again.fingerprint == tokenizer.fingerprint


def test_templates_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match="no Jinja template"):
        ChatTemplate("{% for %}", {})
    with pytest.raises(LinscaleError, match="only users here"):
        ChatTemplate("{{ raise_exception('only users here') }}", {}).render(MESSAGES)
    with pytest.raises(LinscaleError, match="no chat template"):
        read_template(tmp_path)
    with pytest.raises(LinscaleError, match="has no chat template"):
        read_template(None)
