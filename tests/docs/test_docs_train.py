"""The commands of the documentation that train, evaluate or read what was trained, page by page.

They are given in one process, in a folder in which `experiments/` holds the project's experiments
with few runs of few steps each. `NOT_HERE` says which are not given, and why.
"""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.records import load_sweep
from scaling.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "docs/cluster",
    "docs/evaluation",
    "docs/fitting",
    "docs/generation",
    "docs/interop",
    "docs/parallelism",
    "docs/recall",
)
READ = ("docs/evaluation", "docs/fitting", "docs/generation", "docs/interop")
"""Pages that read runs/quickstart without training it."""
NOT_HERE = {
    r"--launcher slurm": "needs SLURM: tests/scaling/test_slurm.py, with a stand-in",
    r"--watch": "does not end",
    r"loggers=": "needs tensorboard: tests/scaling/test_loggers.py",
    r"path/to/|runs/SWEEP": "a name to be replaced",
    r"parallel\.devices=2": "tests/scaling/test_fsdp.py and test_sequence_parallel.py",
}
"""Pattern of a command -> why it is not given."""
COMMAND = re.compile(r"^ *(?:\$ )?((?:linscale|python -m|make) [^`\n]+)\n?(error:)?", re.MULTILINE)
SHORT = """
whole = runs


def runs(toy: bool = False):
    made = whole(toy) if whole.__code__.co_argcount else whole()
    kept = [run for run in made if run.model.arch in ("llama", "tnl")]
    ladder = [run for run in kept if run.size in ("d16", "d24", "d32", "d48", "d64", "d80")]
    return [shorter(run) for run in (ladder or kept[:4])[:MOST]]


def shorter(run):
    step = run.tokens_per_step
    return run.override([
        f"budget.tokens={16 * step}", f"budget.horizons={6 * step},{16 * step}",
        f"schedule.warmup_tokens={2 * step}", "data.validation_blocks=4",
    ])
"""


def commands(page: str) -> list[tuple[str, bool]]:
    """Commands of a page that are given, and whether the page shows that they are refused."""
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"^```sh\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)  # test_docs.py
    found = [(line.split("  #")[0].strip(), bool(error)) for line, error in COMMAND.findall(text)]
    return [(c, error) for c, error in found if not any(re.search(p, c) for p in NOT_HERE)]


def put_experiment(folder: Path, name: str, source: str, most: int = 10) -> None:
    text = f"{source}{SHORT}\n\nMOST = {most}\n"
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with short experiments."""
    root = tmp_path_factory.mktemp("user")
    (root / "experiments").mkdir()
    for path in (ROOT / "experiments").glob("*.py"):
        if "\ndef runs(" in path.read_text(encoding="utf-8"):
            put_experiment(root / "experiments", path.stem, path.read_text(encoding="utf-8"))
    return root


@pytest.fixture(scope="session")
def trained(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with runs/quickstart."""
    root = shutil.copytree(untrained, tmp_path_factory.mktemp("trained") / "user")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        give("linscale run experiments/quickstart.py")
    return root


def give(command: str, *, refused: bool = False) -> None:
    """A command in this process, in the working directory, with its file patterns filled in."""
    command = re.sub(
        r"runs/(\w+)/RUN",
        lambda match: str(sorted(Path(f"runs/{match[1]}").glob("*/config.json"))[0].parent),
        command,
    )
    program, *arguments = (
        name for piece in shlex.split(command) for name in (sorted(glob(piece)) or [piece])
    )
    if program == "python":
        _, module, *rest = arguments
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *rest])
            importlib.import_module(module).main()
        return
    if arguments[0] in ("run", "evaluate") and "--launcher" not in arguments:
        arguments += ["--launcher", "inline"]  # the pool of workers has tests of its own
    result = CliRunner().invoke(app, arguments)
    if refused:
        assert isinstance(result.exception, Exception), command
        return
    assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"


@pytest.mark.slow  # a minute or two of one core together
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES)
def test_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    given = commands(page)
    assert given
    kind = "trained" if page in READ else "untrained"
    monkeypatch.chdir(shutil.copytree(request.getfixturevalue(kind), tmp_path / "here"))
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8")
    prepare(page, text)
    for command, refused in given:
        give(command, refused=refused)


def prepare(page: str, text: str) -> None:
    """What a page's reader has by then: an experiment, a text, questions, a table."""
    if page in ("docs/cluster", "docs/parallelism"):  # every command trains the quickstart
        path = ROOT / "experiments" / "quickstart.py"
        put_experiment(Path("experiments"), "quickstart", path.read_text("utf-8"), most=1)
    for line in re.findall(r"^(?:mkdir|printf) .*$", text, re.MULTILINE):
        subprocess.run(["bash", "-c", line], check=True)
    if page == "docs/fitting":
        points = load_sweep(ROOT / "experiments" / "results" / "quickstart").points
        columns = {"arch": "arch", "n_params": "N", "tokens": "D", "loss": "final_loss"}
        points[list(columns)].set_axis(list(columns.values()), axis=1).to_csv("results.csv")


def test_what_is_not_given_is_in_the_pages() -> None:
    shown = "\n".join(
        line
        for page in PAGES
        for line, _ in COMMAND.findall(
            (ROOT / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
        )
    )
    assert [p for p in NOT_HERE if not re.search(p, shown, re.MULTILINE)] == []
