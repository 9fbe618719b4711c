"""`linscale linearize` as a user meets it: our runs, foreign directories, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from linscale.errors import LinscaleError
from models.config import ConfigError
from models.llama import SoftmaxAttention
from scaling.cli.main import app
from scaling.record.export import export_pretrained
from scaling.record.pretrained import load_pretrained

STEP = 4 * 32
SMALL = ["optim.lr=3e-3", "parallel.threads=1"]


def linscale(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["linearize", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("supra", ["--no-decay", "--no-norm", "--keep-softmax", "1"]),
        ("lolcats", ["--window", 4, "--arrangement", "sliding", "--feature-map", "t2r"]),
    ],
)
def test_a_run_of_ours(teacher: Any, tmp_path: Path, method: str, options: list[Any]) -> None:
    command = [teacher[1], "--method", method, "--tokens", 12 * STEP, *options, "-o", tmp_path]
    first = linscale(*command, *SMALL)
    assert first.exit_code == 0, first.output
    text = " ".join(first.output.split())
    for words in ("parameters (", "of the teacher's 19,200", "5%", "after surgery", "milestone"):
        assert words in text
    again = linscale(*command, "--json", *SMALL)  # which is done already
    values = json.loads(again.stdout[again.stdout.index("{") :])
    assert values["losses"][0]["what"] == "teacher"
    assert values["losses"][-1]["tokens"] == 12 * STEP
    config = json.loads((Path(values["run"]) / "config.json").read_text())
    if method == "supra":
        assert config["model"]["options"]["softmax_layers"] == [1]
        assert not config["model"]["options"]["norm"]
        assert config["model"]["options"]["decay_slopes"] == "none"
    else:
        assert config["model"]["options"]["arrangement"] == "sliding"
        assert config["linearize"]["transfer_tokens"] == 6 * STEP
        assert config["linearize"]["lora_rank"] == 8
        # Teacher and windows had the low-rank stage alone: the same tokens, rate and rank.
        assert sorted(values["controls"]) == ["equal window", "teacher", "window"]
        for name, control in values["controls"].items():
            own = json.loads((tmp_path / control["run"] / "config.json").read_text())
            assert own["linearize"]["transfer_tokens"] == 0
            assert own["linearize"]["lora_rank"] == 8
            assert (own["optim"], own["seed"]) == (config["optim"], config["seed"])
            assert control["tokens"] == 6 * STEP
            arch = "llama" if name == "teacher" else "lolcats"
            assert own["model"]["arch"] == arch
            if arch == "lolcats":
                assert own["model"]["options"]["feature_map"] == "none"


def test_a_directory_in_hugging_faces_layout(teacher: Any, workplace: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    export_pretrained(load_pretrained(teacher[1]), foreign, "transformers")
    shape = ["data.sequence_length=32", "data.batch_sequences=4", "data.validation_blocks=6"]
    command = [foreign, "--tokens", 6 * STEP, "-o", tmp_path / "out", *SMALL, *shape]
    with pytest.raises(LinscaleError, match="--corpus"):
        linscale(*command)
    result = linscale(*command, "--corpus", f"text:{workplace}/*.txt", "--json")
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout[result.stdout.index("{") :])
    # The same weights and text as the run's own checkpoint.
    milestone = json.loads((teacher[1] / "milestones.jsonl").read_text())
    assert values["validation"]["teacher"]["loss"] == pytest.approx(milestone["val_loss"], abs=0.05)
    assert values["teacher"].get("tokens") is None


def test_costliest_layers_and_tasks_before_and_after(teacher: Any, tmp_path: Path) -> None:
    """A run of attention transfer judges the layers; teacher and student answer the questions."""
    questions = tmp_path / "questions"
    questions.mkdir()
    words = [("the quick brown", " fox", " sun"), ("jumps over a " * 9, "dog", "over")]
    lines = [{"query": q, "choices": [a, b], "gold": 0} for q, a, b in words]
    (questions / "arc_easy.jsonl").write_text("".join(json.dumps(n) + "\n" for n in lines))
    out = tmp_path / "out"
    command = [teacher[1], "--method", "lolcats", "--tokens", 12 * STEP, "--window", 4,
               "--keep", 1, "--tasks", "arc_easy", "--data", questions, "-o", out, *SMALL,
               "data.sequence_length=16", "data.batch_sequences=8"]  # fmt: skip
    first = linscale(*command)
    assert first.exit_code == 0, first.output
    assert "arc_easy" in first.stdout
    # The student was trained on 16 tokens and sees its teacher's 32: both lose the long question's
    # beginning, once for each of its answers.
    for of in ("teacher", "1,536 tokens"):
        assert f"arc_easy, {of}: 2 prompts lost their beginning" in first.stdout
    assert "1,536 tokens" in first.stdout
    again = linscale(*command, "--json")  # nothing is trained, measured or evaluated again
    values = json.loads(again.stdout[again.stdout.index("{") :])
    (probe,) = out.glob("*-probe-*")
    costs = json.loads((probe / "linearization.json").read_text())["costs"]
    assert sorted(costs) == ["0", "1"]
    kept = json.loads((Path(values["run"]) / "config.json").read_text())["model"]["options"]
    assert kept["softmax_layers"] == [int(max(costs, key=lambda layer: costs[layer]))]
    assert json.loads((probe / "milestones.jsonl").read_text())["tokens"] == 6 * STEP
    of = {(n["of"], n["metric"]): n for n in values["tasks"]}
    assert set(of) >= {("teacher", "acc"), ("run", "acc"), ("run", "acc_norm")}
    assert all(n["n"] == 2 for n in of.values())
    assert load_pretrained(values["run"]).context == 32
    assert all((n["truncated"], n["context"]) == (2, 32) for n in values["tasks"])
    stored = (Path(values["run"]) / "evals.jsonl").read_text().splitlines()
    assert json.loads(stored[0])["task"] == "arc_easy"


def test_other_mixers_and_stages(teacher: Any, tmp_path: Path) -> None:
    command = [teacher[1], "--method", "hgrn2", "--tokens", 12 * STEP, "-o", tmp_path, "--json"]
    stages = [f"linearize.hidden_tokens={4 * STEP}", "linearize.temperature=2",
              "linearize.fit_sequences=8"]  # fmt: skip
    result = linscale(*command, *SMALL, *stages)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout[result.stdout.index("{") :])
    # It has no window of its own: windows of equal state stand beside it.
    (equal, sink) = [row for row in values["losses"] if row["what"].startswith("equal state")]
    assert equal["state_bytes"] == sink["state_bytes"] <= values["state_bytes"]["student"]
    stages = [row for row in values["losses"] if not row["what"].startswith("equal state")]
    assert stages[-1]["recovered"] == stages[-1]["of_surgery"]
    assert [row["what"] for row in stages] == [
        "teacher", "before fitting outputs", "after surgery", "after hidden states", "milestone",
    ]  # fmt: skip
    config = json.loads((Path(values["run"]) / "config.json").read_text())
    assert config["model"]["arch"] == "hgrn2"
    assert config["linearize"]["temperature"] == 2.0


def test_going_on_with_a_linearized_model(teacher: Any, tmp_path: Path) -> None:
    out = ["-o", tmp_path, "--json", *SMALL]
    stage_1 = ["linearize.lora_rank=0", f"linearize.transfer_tokens={6 * STEP}"]
    first = linscale(
        teacher[1], "--method", "lolcats", "--tokens", 6 * STEP, "--window", 4, *out, *stage_1
    )
    run = json.loads(first.stdout[first.stdout.index("{") :])
    second = linscale(run["run"], "--method", "lolcats", "--tokens", 6 * STEP, *out)
    assert second.exit_code == 0, second.output
    values = json.loads(second.stdout[second.stdout.index("{") :])
    assert values["tokens"]["transfer"] == 0
    assert values["parameters"]["after"] < 0.5 * values["parameters"]["total"]
    with pytest.raises(ConfigError, match="is linearized already"):
        linscale(run["run"], "--method", "supra", "-o", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "hgrn2", "--window", "4"], ("window=4", "hgrn2 has no such option")),
        (["--method", "hgrn2", "--keep", "2"], ("keep=2", "between 1 and 1")),
        (["--method", "tnl", "--keep-softmax", "2"], ("layer 2", "last is 1")),
        (["--method", "lolcats", "--keep", "1", "--keep-by", "age"], ("keep_by='age'", "position")),
        (["--method", "lolcats", "--keep", "2"], ("keep=2", "between 1 and 1")),
        (["--tasks", "perplexity", "--data", "nowhere"], ("nowhere", "no such directory")),
        (["--method", "mamba"], ("mamba", "supra, lolcats")),
        (["--method", "supra", "--window", "4"], ("window=4", "supra has no such option")),
        (["--method", "lolcats", "--no-norm"], ("norm", "lolcats has no such option")),
        (["--method", "lolcats", "--no-decay"], ("no_decay", "only supra")),
        (["--keep-softmax", "a"], ("keep_softmax='a'", "such as 0,15")),
        (["--keep-softmax", "7"], ("softmax_layers", "last layer is 1")),
        (["--feature-map", "softmax"], ("feature_map", "hedgehog")),
        (["optim.rate=1"], ("optim.rate", "no such field")),
    ],
)
def test_refused(
    teacher: Any, tmp_path: Path, arguments: list[str], words: tuple[str, ...]
) -> None:
    with pytest.raises((LinscaleError, ConfigError)) as error:
        linscale(teacher[1], *arguments, "-o", tmp_path)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_report_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(LinscaleError, match="neither a sweep"):
        CliRunner().invoke(app, ["linearize-report", str(tmp_path)], catch_exceptions=False)


@pytest.mark.parametrize("by", ["position", "kl"])
def test_layers_kept_by_position_and_divergence(teacher: Any, tmp_path: Path, by: str) -> None:
    command = [teacher[1], "--method", "lolcats", "--tokens", 6 * STEP, "--window", 2, "--keep", 1,
               "--keep-by", by, "--no-controls", "-o", tmp_path, "--json", *SMALL]  # fmt: skip
    result = linscale(*command)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout[result.stdout.index("{") :])
    (kept,) = json.loads((Path(values["run"]) / "config.json").read_text())["model"]["options"][
        "softmax_layers"
    ]
    probes = list(tmp_path.glob("*-probe-*"))
    if by == "position":  # the last of each of one group, and nothing is measured
        assert (kept, probes) == (1, [])
        return
    costs = json.loads((probes[0] / "linearization.json").read_text())["divergences"]
    assert all(cost > 0 for cost in costs.values())  # a divergence is never negative
    assert kept == int(max(costs, key=lambda layer: costs[layer]))


@pytest.mark.parametrize(
    ("method", "by"),
    [("supra", "cost"), ("hgrn2", "kl"), ("gated_deltanet", "cost"), ("tnl", "position")],
)
def test_methods_without_attention_transfer_keep_layers(
    teacher: Any, tmp_path: Path, method: str, by: str
) -> None:
    """The costlier of two layers; what is measured is measured once, and the run goes on."""
    command = [teacher[1], "--method", method, "--tokens", 3 * STEP, "--keep", 1, "--keep-by", by,
               "--no-controls", "-o", tmp_path, "--json", *SMALL]  # fmt: skip
    result = linscale(*command)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout[result.stdout.index("{") :])
    model = load_pretrained(values["run"]).model
    (kept,) = model.config.softmax_layers
    assert type(model.blocks[kept].mixer) is SoftmaxAttention
    assert type(model.blocks[1 - kept].mixer) is not SoftmaxAttention
    stored = tmp_path / "layer_costs.json"
    if by == "position":
        assert (kept, stored.exists()) == (1, False)
    else:
        ((name, costs),) = json.loads(stored.read_text()).items()
        assert name.endswith(f" {by}")
        assert kept == int(max(costs, key=lambda layer: costs[layer]))
        assert min(costs.values()) > (0 if by == "kl" else -1)
        # Other numbers there are believed: nothing is measured again.
        other = {str(1 - kept): costs[str(kept)], str(kept): costs[str(1 - kept)]}
        stored.write_text(json.dumps({name: other}))
    again = linscale(*command)
    values = json.loads(again.stdout[again.stdout.index("{") :])
    now = load_pretrained(values["run"]).model.config.softmax_layers
    assert now == ((kept,) if by == "position" else (1 - kept,))


def test_a_layer_that_is_kept_is_the_teachers(teacher: Any) -> None:
    """With softmax in all layers the student computes what the teacher does."""
    import torch

    from models.language_model import build
    from models.linearize.initialise import gated_config, start_from

    theirs = load_pretrained(teacher[1]).model
    tokens = torch.randint(0, 257, (2, 20))
    for arch in ("tnl", "hgrn2", "gla", "gated_deltanet", "kda"):
        student = build(gated_config(theirs.config, arch, keep=(0, 1)))
        start_from(student, theirs)
        torch.testing.assert_close(student(tokens), theirs(tokens), atol=1e-5, rtol=1e-5)
