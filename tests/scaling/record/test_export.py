"""`linscale generate` and `linscale export` on trained runs; tokenizers as tokenizer.json."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from models.architecture import BUILT_IN
from models.config import ConfigError
from scaling.cli.main import app
from scaling.data.tokenizers import ByteTokenizer, TiktokenTokenizer, train_bpe
from scaling.record.export import to_json_tokenizer
from scaling.record.pretrained import load_pretrained, usable_device
from scaling.training.train import train

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80)
ENCODING = tiktoken.Encoding(
    "small",
    pat_str=r"""'s|\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+""",
    mergeable_ranks={bytes([i]): i for i in range(256)}
    | {b"th": 256, b"he": 257, b"the": 258, b" t": 259, b"12": 260, b"\xc3\xa9": 261, b"ee": 262}
    | {b"eee": 263, b"eeee": 264, b"thee": 265},
    special_tokens={"<|endoftext|>": 266},
)


@pytest.fixture
def trained(make_run: Any, tmp_path: Path) -> Any:
    """Trains a run of a few steps and returns its directory."""

    def run(arch: str, *overrides: str) -> Path:
        config = make_run("budget.tokens=512", "budget.horizons=()", *overrides, arch=arch)
        assert train(config, tmp_path / "sweep") == "done"
        return tmp_path / "sweep" / config.run_id

    return run


def cli(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_generate_streams_and_repeats(trained: Any) -> None:
    run = trained("tnl")
    arguments = ("generate", run, "-p", "the quick", "--max-new-tokens", "20", "--seed", "3")
    text = cli(*arguments)
    assert text.startswith("the quick")
    assert text == cli(*arguments)
    assert text != cli(*arguments[:-1], "4")
    (alone,) = json.loads(cli(*arguments, "--json"))
    batch = json.loads(cli("generate", run, "-p", "a", *arguments[2:-1], "2", "--json"))
    assert batch[1] == alone
    assert text == f"the quick{alone['text']}\n"
    checkpoint = next(run.glob("checkpoints/milestone-*.pt"))
    assert cli("generate", checkpoint, *arguments[2:]) == text


@pytest.mark.parametrize("arch", list(BUILT_IN))
def test_pipeline_of_transformers_gives_our_text(arch: str, trained: Any, tmp_path: Path) -> None:
    run, out = trained(arch), tmp_path / "exported"
    cli("export", run, "-o", out)
    with warnings.catch_warnings():
        # transformers' loader of code from a directory leaves files for the collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        pipe = transformers.pipeline("text-generation", model=str(out), trust_remote_code=True)
    # One reaches past two of LoLCATs' windows.
    prompts = ["the quick brown fox " * 8, "a lazy", "é"]
    results = pipe(prompts, max_new_tokens=25, batch_size=3, return_full_text=False)
    arguments = [part for prompt in prompts for part in ("-p", prompt)]
    greedy = ("--temperature", "0", "--max-new-tokens", "25", "--json")
    expected = json.loads(cli("generate", run, *arguments, *greedy))
    assert [r[0]["generated_text"] for r in results] == [row["text"] for row in expected]
    config = json.loads((out / "generation_config.json").read_text())
    assert config["suppress_tokens"] == [256]  # the model has a row that the tokenizer has not
    # The exported directory answers our own command as well.
    assert json.loads(cli("generate", out, *arguments, *greedy)) == expected


def test_bpe_tokenizer_is_kept_with_the_run(trained: Any, tmp_path: Path) -> None:
    run = trained("hgrn2", "data.tokenizer=bpe:280", "model.vocab_size=288")
    loaded = load_pretrained(run)
    assert loaded.tokenizer.vocab_size == 280
    cli("export", run, "-o", tmp_path / "exported")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    text = "the quick <|endoftext|> fox\n\n  é"
    assert theirs.encode(text) == loaded.tokenizer.encode(text).tolist()
    (run / "tokenizer.json").rename(run / "elsewhere.json")
    with pytest.raises(LinscaleError, match="the run's tokenizer is missing"):
        load_pretrained(run)
    other = train_bpe("bpe:280", ["another text altogether, with words of its own " * 9])
    (run / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(LinscaleError, match="not the one that it was trained with"):
        load_pretrained(run)


@settings(deadline=None)
@given(TEXTS)
def test_byte_tokenizer_exported(text: str) -> None:
    ours = ByteTokenizer()
    theirs = to_json_tokenizer(ours)
    theirs.encode_special_tokens = True
    tokens = theirs.encode(text).ids
    assert tokens == ours.encode(text).tolist()
    assert theirs.decode(tokens) == text


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_byte_tokenizer_decodes_any_tokens_alike(tokens: list[int]) -> None:
    ours = ByteTokenizer()
    assert to_json_tokenizer(ours).decode(tokens) == ours.decode(tokens)


@settings(deadline=None)
@given(st.one_of(TEXTS, st.text(alphabet="the 12é'sE", max_size=60)))
def test_tiktoken_exported(text: str) -> None:
    ours = TiktokenTokenizer("tiktoken:small", ENCODING)
    theirs = to_json_tokenizer(ours)
    theirs.encode_special_tokens = True
    assert theirs.encode(text).ids == ours.encode(text).tolist()
    assert theirs.token_to_id("<|endoftext|>") == ours.eos_id


def test_foreign_model_with_its_beginning_token(tmp_path: Path) -> None:
    """A tokenizer that puts a token before every text has it put before our prompts too."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, eos_token_id=298, bos_token_id=280, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    bpe = train_bpe("bpe:280", ["some words to learn from, over and over " * 9])
    values = json.loads(bpe.to_json())
    bos = {"id": 280, "content": "<s>", "special": True, "single_word": False}
    bos |= {"lstrip": False, "rstrip": False, "normalized": False}
    values["added_tokens"].append(bos)
    piece = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [280], "tokens": ["<s>"]}}
    values["post_processor"] = {"type": "TemplateProcessing", "single": piece, "pair": [
        *piece, {"Sequence": {"id": "B", "type_id": 1}}], "special_tokens": special}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    loaded = load_pretrained(tmp_path)
    assert loaded.tokenizer.prefix == (280,)
    assert loaded.eos_ids == (298,)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json")
    )
    inputs = tokenizer("words over", return_tensors="pt")
    assert inputs["input_ids"][0, 0] == 280
    theirs = model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=12,
        do_sample=False, pad_token_id=298,
    )  # fmt: skip
    new = theirs[0, inputs["input_ids"].shape[1] :]
    (ours,) = json.loads(
        cli("generate", tmp_path, "-p", "words over", "--temperature", "0",
            "--max-new-tokens", "12", "--json")
    )  # fmt: skip
    assert ours["text"] == tokenizer.decode(new, skip_special_tokens=True)


def test_what_is_no_model_is_named(trained: Any, tmp_path: Path) -> None:
    run = trained("llama")
    with pytest.raises(LinscaleError, match="is a sweep; give one of its runs, such as"):
        load_pretrained(run.parent)
    with pytest.raises(LinscaleError, match=r"nothing: is not a directory with config\.json"):
        load_pretrained(tmp_path / "nothing")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text('{"run_id": "a')
    with pytest.raises(LinscaleError, match=r"torn/config\.json: is not a JSON object"):
        load_pretrained(tmp_path / "torn")
    with pytest.raises(LinscaleError, match="is not a device"):
        usable_device("toaster")
    with pytest.raises(
        ConfigError, match="there are hgrn2, gla, gated_deltanet, kda in this layout"
    ):
        CliRunner().invoke(
            app, ["export", str(run), "-o", str(tmp_path / "x"), "--layout", "fla"],
            catch_exceptions=False,
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"top_p=2\.0: must be above 0 and at most 1"):
        CliRunner().invoke(app, ["generate", str(run), "--top-p", "2"], catch_exceptions=False)
    (run / "milestones.jsonl").write_text("")
    with pytest.raises(LinscaleError, match="the run has no milestone yet"):
        load_pretrained(run)
    config = json.loads((run / "config.json").read_text())
    del config["run_id"], config["sweep"]
    config["model_type"] = "t5"
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(LinscaleError, match=r"there is no tokenizer\.json"):
        load_pretrained(run)


@pytest.mark.parametrize(("there", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_the_gpu_is_taken_where_there_is_one(
    there: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate`, `evaluate` and `blockwise` without --device; with it, what was asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert usable_device("") == torch.device(chosen)
    assert usable_device("cpu") == torch.device("cpu")
    for name, command in get_command(app).commands.items():
        defaults = [p.default for p in command.params if p.name == "device"]
        assert name not in ("generate", "evaluate", "blockwise") or defaults == [""], name
