"""Pages are reachable, and every command in a block marked `sh` runs as printed."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
import typer

from analysis.io.sweep_files import find_sweep
from linscale.shipped import experiment_file
from scaling.cli.main import app
from scaling.config.run import dotted_names

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = [
    pytest.param(line, id=f"{page.stem}: {line[:50]}")
    for page in PAGES
    for block in BLOCK.findall(page.read_text(encoding="utf-8"))
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr or done.stdout


def test_there_are_commands() -> None:
    assert COMMANDS


def shown() -> list[object]:
    """Commands that need minutes, a trained run or a cluster: indented, or in other blocks."""
    found: list[object] = []
    for page in [*PAGES, ROOT / "README.md"]:
        text = BLOCK.sub("", page.read_text(encoding="utf-8")).replace("\\\n", " ")
        for line in re.findall(
            r"^ *(?:\$ )?((?:linscale|python -m|make) [^`\n]+)$", text, re.MULTILINE
        ):
            command = line.split("  #")[0].strip()
            found.append(pytest.param(command, id=f"{page.stem}: {command[:50]}"))
    return found


@pytest.mark.parametrize("command", shown())
def test_shown_command_can_be_given(command: str) -> None:
    """Its sub-command, options, arguments and files exist; it is not run."""
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(arguments) - {"&&", "make"} <= set(targets)
        return
    if program == "python":
        assert importlib.util.find_spec(arguments[1]) is not None
        return
    commands = cast("Any", typer.main.get_command(app)).commands
    assert arguments[0] in commands
    commands[arguments[0]].make_context(arguments[0], list(arguments[1:]))
    for path in arguments[1:]:
        if path.startswith("experiments/"):
            assert (ROOT / path).exists(), path


def test_files_of_commands_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an installation has: experiments and kept sweeps, by the paths that the pages print."""
    lines = [str(cast("Any", p).values[0]) for p in [*COMMANDS, *shown()]]
    named = {
        word
        for line in lines
        if re.search(r"(^|; )linscale ", line)
        for word in shlex.split(line)
        if re.fullmatch(r"experiments/\w+\.py|experiments/results/[\w-]+\.zip", word)
    }
    assert len(named) > 10
    monkeypatch.chdir(tmp_path)
    for word in named:
        found = find_sweep(word) if word.endswith(".zip") else experiment_file(Path(word))
        assert found is not None, word
        assert found.is_file(), word
        assert found.is_absolute(), word


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """The module that MkDocs loads from a path, as it does."""
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Strict: a page outside the navigation, a dead link or a name that is gone is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    mixers = (tmp_path / "explanation_mixers" / "index.html").read_text("utf-8")
    assert "<math" in mixers
    assert "$$" not in mixers


def test_reference_has_every_field(hooks: ModuleType) -> None:
    page = hooks.fields()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| .* \| (.*) \|$", page, re.MULTILINE))
    assert set(dotted_names()) <= set(rows)
    assert [name for name in dotted_names() if not rows[name].strip()] == []


def test_reference_has_every_command(hooks: ModuleType) -> None:
    page = hooks.commands()
    for command in ("plan", "run", "status", "fit", "report", "generate", "evaluate", "export"):
        assert f"## `linscale {command}`" in page


def test_equations_are_drawn_and_code_is_left_alone(hooks: ModuleType) -> None:
    text = "costs $5 and $6, `$a$`, $x_t$\n\n```\n$b$\n```\n\n    $c$\n"
    drawn = hooks.on_page_markdown(text)
    assert drawn.count("<math") == 1
    for kept in ("$5 and $6", "`$a$`", "$b$", "$c$"):
        assert kept in drawn


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
