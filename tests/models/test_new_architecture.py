"""An architecture is one file outside the package: the code of docs/tutorial_architecture.md."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linscale.code_search import searched
from models import accounting, contract, measured
from models.architecture import Architecture, find
from models.config import ConfigError, ModelConfig, toy_config
from models.kernels.api import linear_attention
from models.kernels.reference import recurrent_reference
from models.language_model import build
from models.layers import LayerState, Shared, Span, TokenMixer
from scaling.config.run import BudgetConfig, DataConfig, RunConfig
from tests.support.mixer_contract import MixerContract
from tests.support.model_variants import install
from tests.support.tutorial_architecture import my_gla, source

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.ModuleType]:
    with my_gla(tmp_path_factory.mktemp("mine")) as loaded:
        yield loaded


class TestGatedLinearAttention(MixerContract):
    @property
    def config(self) -> ModelConfig:  # pyright: ignore[reportIncompatibleVariableOverride]
        return toy_config("my_gla", 64, vocab_size=61, layers=2)


def test_stays_about_a_hundred_lines() -> None:
    assert len(source().splitlines()) < 110


def test_costs_by_hand() -> None:
    """Projections of d x (d/2, d/2, d, d, d), gate d x 16 and 16 x d/2 with bias, GLU, norms."""
    config = toy_config("my_gla", 48, vocab_size=61)
    d, g, depth, v = config.dim, config.glu_dim, config.layers, config.head_dim
    mixer = 4 * d * d + 16 * d + 16 * d // 2
    groups = accounting.parameters(config)
    assert groups["token_mixer"] == depth * (mixer + d // 2 + v)
    assert groups["channel_mixer"] == depth * 3 * d * g
    assert groups["norm"] == 2 * depth * d + d
    state = depth * config.heads * (v // 2) * v
    assert accounting.state_bytes(config, 3) == 4 * 3 * state
    total = 3 * (2 * depth * (mixer + 3 * d * g) + 4 * state + 2 * d * 61)
    assert accounting.train_flops_per_token(config, 256)["total"] == total
    # No row in the paper's table: the exact convention without the head.
    paper = accounting.train_flops_per_token(config, 256, "paper")
    assert paper["total"] == total - 6 * d * 61
    assert accounting.decode_flops_per_token(config, 10)["total"] == total / 3


def test_the_mixer_is_the_papers_recurrence() -> None:
    """The decay that reaches the primitive is sigma(.)^(1/16), against the plain recurrence."""
    torch.manual_seed(0)
    config = toy_config("my_gla", 48, vocab_size=61, layers=1)
    model = build(config.replace(init_std=0.5), dtype=torch.float64)
    mixer = model.blocks[0].mixer  # pyright: ignore[reportAttributeAccessIssue]
    x = torch.randn(2, 30, 48, dtype=torch.float64)
    q, k, v, _, decay = mixer._project(x)  # pyright: ignore[reportCallIssue]
    alpha = torch.sigmoid(mixer.gate_up(mixer.gate_down(x))) ** (1 / 16)  # pyright: ignore
    torch.testing.assert_close(decay.exp().flatten(-2), alpha)
    expected, _ = recurrent_reference(q, k, v, decay)
    torch.testing.assert_close(linear_attention(q, k, v, decay)[0], expected)


def test_an_empty_state_needs_closed_forms(module: types.ModuleType) -> None:
    measured.layer_costs.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module.GatedLinearAttention, "initial_state", lambda self, n, device, dtype: {}
        )
        with pytest.raises(ConfigError, match=r"model.arch='my_gla' starts with an empty state"):
            accounting.parameters(toy_config("my_gla", 48, vocab_size=61))
    measured.layer_costs.cache_clear()


def run(arch: str, *overrides: str, **parts: Any) -> RunConfig:
    config = RunConfig(
        name="run",
        model=toy_config(arch, 32, vocab_size=257, layers=2),
        data=DataConfig(sequence_length=64, batch_sequences=8),
        budget=BudgetConfig(tokens=100_000),
        **parts,
    )
    return config.override(list(overrides))


def test_names_that_are_no_architecture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"arch='hgrn': did you mean hgrn2\?.*llama, .*looked"):
        toy_config("hgrn", 48, vocab_size=61)
    (folder,) = searched()
    with pytest.raises(ConfigError, match=re.escape(folder)):
        toy_config("nowhere.gla", 48, vocab_size=61)
    for name in ("", "..x", "a b", ".my_gla"):
        with pytest.raises(ConfigError, match="Choose one of llama"):
            find(name)
    with pytest.raises(ConfigError, match=r"json.__init__.py defines no ARCHITECTURE"):
        find("json")
    (Path(folder) / "broken_mixer.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ConfigError, match=r"'broken_mixer': importing .*nothing_of_that_name"):
        find("broken_mixer")


def test_options_are_set_checked_and_kept() -> None:
    config = run("my_gla", "model.options.rank=4")
    assert config.model.options.rank == 4  # pyright: ignore[reportAttributeAccessIssue]
    assert config.run_id != run("my_gla").run_id
    values = json.loads(json.dumps(config.to_json()))
    assert RunConfig.from_json(values) == config
    with pytest.raises(
        ConfigError, match=r"rnk: no such field with model.arch=my_gla; did you mean"
    ):
        run("my_gla", "model.options.rnk=4")
    with pytest.raises(ConfigError, match=r"options.rank=4.5: must be a whole number"):
        run("my_gla", "model.options.rank=4.5")


def test_a_record_names_a_file_and_does_not_run_it(
    module: types.ModuleType, tmp_path: Path
) -> None:
    """Another process that knows the record alone: code is found where the process searches."""
    values = run("my_gla").to_json()
    assert values["model"]["file"] == module.__file__
    code = (
        "import json, sys\nfrom scaling.config.run import RunConfig\n"
        "from linscale.code_search import search_also\nsearch_also()\n"
        "print(RunConfig.from_json(json.load(sys.stdin)).run_id)"
    )

    def read(values: dict[str, Any], *folders: object) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(map(str, (ROOT, *folders)))
        environment = os.environ | {"PYTHONPATH": path, "LINSCALE_PATH": ""}
        return subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(values), text=True,
            capture_output=True, env=environment, cwd=tmp_path, check=False,
        )  # fmt: skip

    folder = Path(str(module.__file__)).parent
    assert read(values, folder).stdout.strip() == run("my_gla").run_id
    refused = read(values)
    assert refused.returncode
    assert f"record says that it was '{module.__file__}'" in refused.stderr
    assert f"put {folder} on PYTHONPATH" in refused.stderr

    trap = tmp_path / "elsewhere" / "trap.py"
    trap.parent.mkdir()
    trap.write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nARCHITECTURE = None\n")
    values["model"] |= {"arch": "trap", "file": str(trap)}
    assert "model.arch='trap'" in read(values).stderr
    assert not (tmp_path / "sprung").exists()


class RunningMean(TokenMixer):
    """Mean of a projection over all tokens so far: right on one device, and no primitive."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.dim = config.dim
        self.inner = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x: Tensor, span: Span, shared: Shared, state: LayerState | None
    ) -> tuple[Tensor, LayerState]:
        total = self.inner(x).cumsum(1)
        if state is not None:
            total = total + state["sum"][:, None].to(x.dtype)
        return total / (span.positions[..., None] + 1), {"sum": total[:, -1]}


SPLIT = ("parallel.devices=2", "parallel.sequence=2")


def test_sequences_are_split_only_where_an_architecture_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "running_mean", Architecture(label="mean", mixer=RunningMean))
    with pytest.raises(ConfigError, match=r"sequence=2 with model.arch='running_mean'.*splits_seq"):
        run("running_mean", *SPLIT)
    assert run("my_gla", *SPLIT).parallel.sequence == 2


def test_a_mixer_without_one_of_its_methods_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "running_mean", Architecture(label="mean", mixer=RunningMean))
    with pytest.raises(ConfigError, match="RunningMean has no method initial_state"):
        measured.layer_costs(run("running_mean").model, 0)


def test_the_contract_finds_a_wrong_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    for declared in (False, True):
        kind = Architecture(label="mean", mixer=RunningMean, splits_sequences=declared)
        install(monkeypatch, "running_mean", kind)
        case = contract.MixerContract()
        case.config = toy_config("running_mean", 32, vocab_size=61, layers=1)
        case.setup_method()
        if declared:
            with pytest.raises(AssertionError, match="running_mean declares splits_sequences"):
                case.test_splits_sequences_if_it_says_so()
        else:
            case.test_splits_sequences_if_it_says_so()


def test_the_contract_by_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report of every check; broken ones are named and do not stop the others."""

    def causal(self: contract.MixerContract) -> None:
        raise AssertionError("sees the future")

    kept = {
        "test_is_causal": causal,
        "test_order_matters": contract.MixerContract.test_order_matters,
    }
    for name in [n for n in dir(contract.MixerContract) if n.startswith("test_")]:
        if name in kept:
            monkeypatch.setattr(contract.MixerContract, name, kept[name])
        else:
            monkeypatch.delattr(contract.MixerContract, name)
    found = contract.check(toy_config("my_gla", 32, vocab_size=61, layers=1))
    assert found["test_order_matters"] == ""
    assert "sees the future" in found["test_is_causal"]
    monkeypatch.setattr(sys, "argv", ["contract", "my_gla"])
    with pytest.raises(SystemExit, match="1"):
        contract.main()


EXPERIMENT = """
from models.config import toy_config
from scaling.config.run import BudgetConfig, DataConfig, ParallelConfig, RunConfig


def runs():
    return [
        RunConfig(
            name=f"gla-d{dim}",
            model=toy_config("my_gla", dim, vocab_size=256),
            data=DataConfig(sequence_length=64, batch_sequences=8, validation_blocks=4),
            budget=BudgetConfig(tokens=20_480, checkpoint_every_tokens=2_048),
            parallel=ParallelConfig(accelerator="cpu", threads=1),
        )
        for dim in (16, 32)
    ]
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_path_outside_the_checkout(tmp_path: Path) -> None:
    """Plan, run, kill and resume, evaluate, generate and export, with two files in a folder."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_gla.py").write_text(source(), encoding="utf-8")
    (tmp_path / "mine" / "my_experiment.py").write_text(EXPERIMENT, encoding="utf-8")
    (tmp_path / "work").mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "LINSCALE_CACHE": str(tmp_path / "cache"),
    }
    program = [sys.executable, "-P", "-m", "scaling.cli.main"]

    def give(*arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            [*program, *arguments], env=environment, cwd=tmp_path / "work", text=True,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "gla-d32" in give("plan", "../mine/my_experiment.py")
    train = [*program, "run", "../mine/my_experiment.py"]
    with subprocess.Popen(train, env=environment, cwd=tmp_path / "work") as started:
        deadline = time.monotonic() + 300
        sweep = tmp_path / "work" / "runs" / "my_experiment"
        while not list(sweep.glob("*/checkpoints/*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        started.send_signal(signal.SIGKILL)
    give("run", "../mine/my_experiment.py")
    states = [json.loads(path.read_text())["state"] for path in sweep.glob("*/status.json")]
    assert states == ["done", "done"]
    give("evaluate", "runs/my_experiment", "--tasks", "perplexity")
    (largest,) = sweep.glob("gla-d32-*")
    give("generate", str(largest), "-p", "In the beginning", "--max-new-tokens", "8")
    message = give("export", str(largest), "-o", "out", code=2)
    assert "model.arch='my_gla'" in message
    assert "carries the code of a built-in architecture" in " ".join(message.split())
