"""The harness on our models: against its own `hf` model, local data, and what is missing."""

from __future__ import annotations

import json

import pytest
import torch

from models.config import toy_config
from models.language_model import build
from scaling.evaluation import harness, local_tasks
from scaling.evaluation.results import EvaluationError
from scaling.evaluation.settings import Settings
from scaling.evaluation.tasks import Subject
from scaling.record.pretrained import Pretrained

pytest.importorskip("lm_eval")

ROWS = {
    "arc_easy": [
        {"query": "Question: What is warm?\n", "choices": ["sun", "ice", "a stone"], "gold": 0},
        {"query": "Question: Who?\n", "choices": ["me", "them"], "gold": 1},
    ],
    "winogrande": [
        {"context_options": ["Ann saw Bo so Ann", "Ann saw Bo so Bo"], "continuation": "ran.",
         "gold": 1},
    ],
    "lambada_openai": [{"context": "The cat sat on the", "continuation": "mat"}],
    "hellaswag": [{"query": "Cats: A cat", "choices": ["sits", "flies"], "gold": 0}],
    "openbookqa": [{"query": "The sun is", "choices": ["hot", "cold"], "gold": 0}],
    "boolq": [{"query": "Passage: P.\nQuestion: q?\n", "choices": ["no", "yes"], "gold": 1}],
}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    for name, rows in ROWS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return tmp_path


def test_what_does_not_fit_the_context(make_toy):
    from scaling.evaluation.harness_model import HarnessModel

    model = HarnessModel(make_toy("tnl"), max_length=20, batch_size=4)
    pair = instances("loglikelihood", [("a", "b" * 21)])
    with pytest.raises(EvaluationError, match=r"continuation of 21 tokens.*raise --max-length"):
        model.loglikelihood(pair, disable_tqdm=True)
    long = instances("generate_until", [("abc", {"until": ["x"], "max_gen_toks": 20})])
    with pytest.raises(EvaluationError, match="generates 20 tokens, and the context is 20"):
        model.generate_until(long)


def test_prompts_of_local_tasks(data):
    prompts = {}
    for name in ROWS:
        task = local_tasks.from_lines(name, data / f"{name}.jsonl")
        task.build_all_requests(limit=1)
        prompts[name] = [instance.args for instance in task.instances]
    question = "Question: What is warm?\nAnswer:"
    assert prompts["arc_easy"] == [(question, " sun"), (question, " ice"), (question, " a stone")]
    assert prompts["winogrande"] == [
        ("Ann saw Bo so Ann", " ran."),
        ("Ann saw Bo so Bo", " ran."),
    ]
    assert prompts["lambada_openai"] == [("The cat sat on the", " mat")]
    assert prompts["hellaswag"] == [("Cats: A cat", " sits"), ("Cats: A cat", " flies")]
    assert prompts["openbookqa"] == [("The sun is", " hot"), ("The sun is", " cold")]
    assert prompts["boolq"] == [("P.\nQuestion: q?\nAnswer:", f" {c}") for c in ("no", "yes")]


def test_a_local_task_gives_numbers(make_toy, data):
    settings = Settings(data=data)
    measures = {
        m.metric: m for m in harness.run_task("arc_easy", Subject(make_toy("tnl"), settings))
    }
    assert set(measures) == {"acc", "acc_norm"}
    assert measures["acc"].n == 2
    assert measures["acc"].value in (0, 0.5, 1)
    assert harness.label("arc_easy", settings)["data"][0] == "arc_easy.jsonl"


def test_damaged_local_files(data):
    path = data / "arc_easy.jsonl"
    for content, message in (('{"query": 1}\n', "line 1.*choices"), ("", "no questions")):
        path.write_text(content)
        with pytest.raises(EvaluationError, match=message):
            local_tasks.from_lines("arc_easy", path)


NATIVE = {
    "hellaswag": {
        "activity_label": "Cats", "ctx_a": "A cat [title] sits.", "ctx_b": "it", "label": "1",
        "endings": ["runs.", "sleeps."],
    },
    "wikitext": {"page": " = A page = \n\n Some text , here . \n"},
}  # fmt: skip
"""Lines in the fields of the data sets that the harness loads."""


@pytest.mark.parametrize("layout", ["jsonl", "parquet", "saved"])
def test_the_harness_tasks_on_local_data_sets(make_toy, tmp_path, layout):
    from datasets import Dataset, DatasetDict

    for name, row in NATIVE.items():
        split = Dataset.from_list([row] * 2)
        path = tmp_path / name
        if layout == "saved":
            DatasetDict({"validation": split, "test": split}).save_to_disk(path)
        else:
            path.mkdir()
            for kind in ("validation", "test"):
                getattr(split, {"jsonl": "to_json"}.get(layout, f"to_{layout}"))(
                    path / f"{kind}.{layout}"
                )
    settings = Settings(data=tmp_path)
    (task,) = harness.build("hellaswag", settings).values()
    task.build_all_requests(limit=1)
    asked = "Cats: A cat. sits. It"  # as the harness mends the text
    assert [i.args for i in task.instances] == [(asked, " runs."), (asked, " sleeps.")]
    by = {m.metric: m for m in harness.run_task("wikitext", Subject(make_toy("tnl"), settings))}
    assert set(by) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}
    assert by["word_perplexity"].n == 2
    assert harness.label("wikitext", settings)["data"][0] == "wikitext"


def test_missing_data_say_how_to_prepare_them(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    harness._offline_without_hub.cache_clear()
    with pytest.raises(EvaluationError) as raised:
        harness.build("hellaswag", Settings())
    assert "load_dataset('Rowan/hellaswag').save_to_disk('DATA/hellaswag')" in str(raised.value)
    assert "DATA/hellaswag.jsonl" in str(raised.value)
    with pytest.raises(EvaluationError, match=r"qasper\.zip; unzip it .* --data DATA"):
        harness.build("scrolls_qasper", Settings())
    (tmp_path / "wikitext").mkdir()
    with pytest.raises(EvaluationError, match="holds no split"):
        harness.build("wikitext", Settings(data=tmp_path))
    (tmp_path / "wikitext" / "test.jsonl").write_text("[1, 2\n")
    with pytest.raises(EvaluationError, match="cannot be read as a data set"):
        harness.build("wikitext", Settings(data=tmp_path))
    (tmp_path / "wikitext" / "test.jsonl").write_text('{"text": "no page"}\n')
    with pytest.raises(EvaluationError, match="is not the data set of wikitext"):
        harness.build("wikitext", Settings(data=tmp_path))


WORDS = "the cat sat on the mat and the dog saw the cat run home again"


def instances(kind, requests):
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=arguments, idx=0) for arguments in requests
    ]


@pytest.mark.filterwarnings("ignore")  # transformers' and lm-eval's own
def test_llama_scores_as_the_harness_hf_model(tmp_path):
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from models.interop.export import export_model
    from scaling.data.tokenizers import train_bpe
    from scaling.evaluation.harness_model import HarnessModel

    tokenizer = train_bpe(
        "bpe:280", ["the cat sat on the mat and the dog saw the cat run home"] * 9
    )
    torch.manual_seed(1)
    model = build(toy_config("llama", 32, vocab_size=280, layers=2, head_dim=16)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(5)
    export_model(model, tmp_path / "hf", context=48, eos_id=tokenizer.eos_id)
    ours = HarnessModel(
        Pretrained(
            name="toy", model=model, tokenizer=tokenizer, context=48,
            eos_ids=(tokenizer.eos_id,), run=None,
        ),
        max_length=48,
        batch_size=3,
    )  # fmt: skip
    theirs = HFLM(
        pretrained=LlamaForCausalLM.from_pretrained(tmp_path / "hf"),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(tokenizer.to_json()), eos_token="<|endoftext|>"
        ),
        batch_size=3,
        max_length=48,
        device="cpu",
    )
    contexts = ["the cat sat", "", "on the mat and the dog saw " * 5, "the dog "]
    pairs = [(c, e) for c in contexts for e in (" on the mat", " ran", " saw the dog home")]
    found = ours.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    expected = theirs.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert [f[1] for f in found] == [e[1] for e in expected]
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], abs=1e-3)
    texts = [("the cat",), ("the cat sat on the mat and the dog " * 6,)]
    rolling = ours.loglikelihood_rolling(instances("loglikelihood_rolling", texts))
    assert rolling == pytest.approx(
        theirs.loglikelihood_rolling(instances("loglikelihood_rolling", texts)), abs=1e-3
    )
    options = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    prompts = [("the cat sat", options), ("the dog saw the", options)]
    assert ours.generate_until(instances("generate_until", prompts)) == theirs.generate_until(
        instances("generate_until", prompts)
    )
