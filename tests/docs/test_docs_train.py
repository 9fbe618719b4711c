"""What the documentation says to type is typed: README and every page, from top to bottom.

A page's commands, its Python blocks and its experiment are given in one process, in a folder in
which `experiments/` holds the project's experiments with few runs of few steps each. Commands in
blocks marked `sh` run as printed in test_docs.py. `NOT_GIVEN` says which are not given, and why;
`INSTEAD` what is put for a name that the reader replaces, or for a budget of hours.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from typer.testing import CliRunner

from analysis.io.records import load_sweep
from experiments.teachers import TEACHERS
from scaling.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "tests" / "support" / "slurm_stand_in"
NOT_GIVEN = {
    r"^make (test|setup)$": "is what runs, and where it runs",
    r"^pip install": "needs a package index",
    r"^make gpu-check$|^linscale tune$|kernels_gpu|^compute-sanitizer": "needs a GPU",
    r"experiments\.benchmarks\.": "measures for minutes, and replaces kept results: make bench",
    r"experiments\.corpora build|medium_rates\.py|medium_ladder(\.py| )": "needs 67 MB of text",
    r"experiments\.linearize_gemma|gemma\.report runs/": "needs a real model, and days",
    r"^torchrun": "needs four machines: tests/scaling/sweep/test_slurm.py starts a node's ranks",
    r"--layout fla": "needs an HGRN2 with SwiGLU: tests/models/test_interop_fla.py",
    r"--stop-early|^linscale stop-early": "looks every half minute: "
    "tests/scaling/training/test_stop_early.py",
    r"--adaptive|^linscale decisions": "chooses from more runs than are here: "
    "tests/scaling/sweep/test_adaptive.py",
    r"^linscale gate": "ends with its verdict as exit code: tests/docs/test_json.py",
    r"^linscale import": "reads a file of yours: tests/docs/test_json.py",
    r"loggers=": "needs tensorboard: tests/scaling/training/test_loggers.py",
}
"""Pattern of a command -> why it is not given."""
INSTEAD = {
    r"budget.tokens=2000000000": "budget.tokens=20480",
    r"budget.horizons=2000000000": "budget.horizons=20480",
    r"schedule.warmup_tokens=100000000": "schedule.warmup_tokens=4096",
    r"--tokens 2e5": "--tokens 2e4",
    r"hidden_tokens=5e4": "hidden_tokens=5e3",
    r"run quickstart --minutes 10": "run experiments/quickstart.py",
    r"--nodes [124] ": "",  # the stand-in for SLURM is one machine,
    r"--device h200": "--device cpu",  # whose runs are set to its CPU
    r"size=1B arch=llama": "size=d16 arch=llama",
    r"--refine runs/paper_ladder": "seed=1 --refine runs/paper_ladder",  # and has done its ladder
    r"hf:NAME": "hf:hub",
    r"path/to/(huggingface/)?checkpoint": "checkpoint",
    r"evaluate runs/SWEEP": "evaluate runs/quickstart/hgrn2-d16*",  # a run that may look far
    r"runs/SWEEP": "runs/quickstart",
    r"(evaluate runs/quickstart) (?=--suite|--tasks perplexity,s)": r"\1/llama-d16* ",
}
"""What is given in the place of what a page shows; see `prepare` for the files."""
PROGRAMS = ("linscale", "python", "make", "pip", "torchrun", "compute-sanitizer")
CODE = re.compile(r"^```(\w*)\n(.*?)^```|^ {4}(\S[^\n]*)$", re.MULTILINE | re.DOTALL)
READ = ("evaluation", "fitting", "generation", "interop", "linearize", "refining")
"""Pages that read runs/quickstart without training it."""
FEWER = {
    "README": {"paper_ladder": 1},
    "cluster": {"quickstart": 1, "paper_ladder": 1},
    "parallelism": {"quickstart": 1},
    "tutorial_cluster": {"paper_ladder": 5},
}
"""Runs of ladders that a page trains more than once, or as jobs; 5 are one law."""
KEPT = {"linearize_loop": r"^(supra|continued|.*scratch)-d(48|64)-s1$|^lolcats-d(48|64)-s1-25k$"}
"""Names of the runs that are left of an experiment, where they are not those of two mixers."""
SHORT = """
import re

whole = runs


def runs(toy: bool = False):
    made = whole(toy) if whole.__code__.co_argcount else whole()
    kept = [run for run in made if re.search(KEPT, run.name)] or made
    return [shorter(run) for run in kept[:MOST]]


def shorter(run):
    step = run.tokens_per_step
    if run.name.endswith("k"):  # LoLCATs' two stages, short as they are
        return run.override(["data.validation_blocks=4"])
    return run.override([
        f"budget.tokens={16 * step}", f"budget.horizons={5 * step},{9 * step},{16 * step}",
        f"schedule.warmup_tokens={2 * step}", "data.validation_blocks=4",
    ])
"""
Item = tuple[str, str]
"""`shell`, `refused`, `python` or `experiment`, and its text."""


def items(page: str) -> list[Item]:
    """What a page tells its reader to type or to write into a file, in its order."""
    text = (ROOT / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found: list[Item] = []
    for language, block, indented in CODE.findall(text):
        if language == "python":
            found.append(("python", block))
        elif "def runs(" in block:
            found.append(("experiment", block))
        elif language != "sh":
            found += _shell([indented] if indented else block.splitlines())
    return found


def _shell(lines: list[str]) -> Iterator[Item]:
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        command = line.removeprefix("$ ").split("  #")[0].strip()
        if command.split(" ")[0] in ("mkdir", "printf", *PROGRAMS):
            yield ("refused" if after.startswith("error:") else "shell", command)


def given(page: str) -> list[Item]:
    return [(k, t) for k, t in items(page) if not any(re.search(p, t) for p in NOT_GIVEN)]


ALL = ["README", *sorted(f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md"))]
PAGES = [page for page in ALL if given(page)]


def put_experiment(folder: Path, name: str, source: str, most: int = 10) -> None:
    kept = KEPT.get(name, "^(llama|hgrn2|my_gla)-")
    text = f"{source}{SHORT}\n\nMOST, KEPT = {most}, {kept!r}\n"
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with short experiments. The paper's ladder is the quickstart's there."""
    root = tmp_path_factory.mktemp("user")
    (root / "experiments").mkdir()
    (root / "experiments" / "results").symlink_to(ROOT / "experiments" / "results")
    for path in (ROOT / "experiments").glob("*.py"):
        ladder = path.stem == "paper_ladder"
        source = (path.with_stem("quickstart") if ladder else path).read_text(encoding="utf-8")
        if "\ndef runs(" in source:
            most = 1 if path.stem == "decay_ablation" else 10  # trained by two processes
            source = source.replace("102_400", "8_192")
            put_experiment(root / "experiments", path.stem, source, most)
    return root


@pytest.fixture(scope="session")
def trained(untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with runs/quickstart."""
    root = shutil.copytree(untrained, tmp_path_factory.mktemp("trained") / "user", symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        give("linscale run experiments/quickstart.py")
    return root


@pytest.fixture(autouse=True)
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for SLURM's commands, and a cache of its own."""
    (tmp_path / "queue").mkdir()
    monkeypatch.setenv("SLURM_STAND_IN", str(tmp_path / "queue"))
    monkeypatch.setenv("PATH", f"{STAND_IN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LINSCALE_CACHE", str(tmp_path / "cache"))


def replaced(text: str) -> str:
    """The same with the names and budgets of `INSTEAD`, and a run for RUN."""
    for shown, instead in INSTEAD.items():
        text = re.sub(shown, instead, text)
    text = re.sub(  # short runs have other identifiers
        r"(runs/quickstart/llama-d64)-\w+",
        lambda match: match[0] if Path(match[0]).exists() else f"{match[1]}*",
        text,
    )
    return re.sub(
        r"runs/(\w+)/RUN",
        lambda match: str(sorted(Path(f"runs/{match[1]}").glob("*/config.json"))[0].parent),
        text,
    )


def give(command: str, *, refused: bool = False) -> None:
    """A command in this process, in the working directory, with its file patterns filled in."""
    program, *arguments = (
        name
        for piece in shlex.split(replaced(command))
        for name in (sorted(glob(piece)) or [piece])
    )
    if program == "make":
        for line in recipe(arguments[0]):
            give(line)
    elif program == "python" and arguments[0] == "-c":
        run_python(arguments[1], {})
    elif program == "python":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", arguments[1:])
            importlib.import_module(arguments[1]).main()
    elif program != "linscale":
        subprocess.run(["bash", "-c", command], check=True)
    else:
        if arguments[0] in ("run", "evaluate") and not {"--launcher", "--jobs"} & {*arguments}:
            arguments += ["--launcher", "inline"]  # the pool of workers has tests of its own
        if arguments[0] == "report":
            arguments += ["--bootstrap", "100"]
        result = CliRunner().invoke(app, arguments)
        if refused:
            assert isinstance(result.exception, Exception), command
        else:
            assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception!r}"
        if "slurm" in arguments:
            wait_for_jobs()


def run_python(code: str, names: dict[str, object]) -> None:
    """As a user's Python would: other libraries' warnings are not errors."""
    with warnings.catch_warnings(action="ignore"):
        exec(code, names)


def recipe(target: str) -> list[str]:
    """What `make` runs for a target."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)
    return [line.strip().removeprefix("$(BIN)/") for line in lines.splitlines()]


def wait_for_jobs() -> None:
    """Until every task of the stand-in for SLURM has ended, which must be well."""
    queue = Path(os.environ["SLURM_STAND_IN"])
    deadline = time.monotonic() + 600
    while len(list(queue.glob("job-*/*.log"))) > len(list(queue.glob("job-*/*.ended"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert {path.read_text().strip() for path in queue.glob("job-*/*.exit")} == {"0"}


@pytest.mark.slow  # some minutes of one core together
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES)
def test_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    name = page.removeprefix("docs/")
    kind = "trained" if name in READ else "untrained"
    here = shutil.copytree(request.getfixturevalue(kind), tmp_path / "here", symlinks=True)
    monkeypatch.chdir(here)
    prepare(name)
    names: dict[str, object] = {}
    for what, text in given(page):
        if what == "python" and name == "tutorial_architecture":
            (here / "my_gla.py").write_text(text, encoding="utf-8")
        elif what == "python":
            run_python(replaced(text), names)
            assert not callable(runs := names.pop("runs", None)) or runs()
        elif what == "experiment":
            put_experiment(here, "my_experiment", text)
        else:
            give(text, refused=what == "refused")
    plt.close("all")


def prepare(name: str) -> None:
    """What a page's reader has by then: a smaller experiment, a text, a table, an export."""
    for ladder, most in FEWER.get(name, {}).items():
        source = (ROOT / "experiments" / "quickstart.py").read_text(encoding="utf-8")
        put_experiment(Path("experiments"), ladder, source, most)
    if name in ("fitting", "refining"):
        points = load_sweep(ROOT / "experiments" / "results" / "quickstart.zip").points
        columns = {"arch": "arch", "n_params": "N", "tokens": "D", "loss": "final_loss"}
        points[list(columns)].set_axis(list(columns.values()), axis=1).to_csv("results.csv")
    if name in ("generation", "interop"):
        give("linscale export runs/quickstart/RUN -o checkpoint")
    if name == "tutorial_corpus":
        books(Path("books"))
    if name == "linearize":
        for run in TEACHERS.values():  # under the names that `make quickstart` gives them
            for own in Path("runs/quickstart").glob(f"{run.name}-*"):
                shutil.copytree(own, own.parent / run.run_id)


def books(folder: Path) -> None:
    """A folder of texts; the same as a data set in the hub's layout, and a tokenizer of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    Path("hub").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    Path("hub/train.jsonl").write_text(lines, encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(vocab_size=250, special_tokens=["<|endoftext|>"])  # pyright: ignore[reportCallIssue]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save("tokenizer.json")


def test_what_is_not_given_is_in_the_pages() -> None:
    shown = [text for page in ALL for kind, text in items(page) if kind == "shell"]
    assert [p for p in NOT_GIVEN if not any(re.search(p, text) for text in shown)] == []
