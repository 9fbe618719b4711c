"""docs/json.md against what the commands print, both ways, and the exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from linscale.terminal import console
from scaling.cli import main as main_module
from scaling.cli.gate import EXIT_CODES
from scaling.cli.main import app
from tests.support.make_runs import write_sweep

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
PAGE = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,), "number": (int, float), "whole": (int,), "bool": (bool,), "list": (list,),
    "object": (dict,),
}  # fmt: skip


def section(title: str) -> dict[str, tuple[str, bool]]:
    """Path -> type, and whether it is optional."""
    body = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = [part for part in body if part.split("\n")[0] == title]
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z?]+) \| (.*) \|$", text, flags=re.MULTILINE)
    assert rows, title
    return {path: (kind, meaning.startswith("optional")) for path, kind, meaning in rows}


def found_at(value: Any, path: str) -> Iterator[tuple[bool, Any]]:
    """Whether the field is there, and its value, at every place that a path names."""
    head, _, rest = path.partition(".")
    name = head.removesuffix("[]")
    if name == "*":
        for each in value.values():
            yield from found_at(each, rest) if rest else [(True, each)]
        return
    inside = value if not name else value.get(name, LookupError)
    if inside is LookupError:
        yield False, None
    elif head.endswith("[]"):
        for each in inside:
            yield from found_at(each, rest)
    elif rest and inside is not None:
        yield from found_at(inside, rest)
    elif not rest:
        yield True, inside


def fields_of(value: Any, path: str = "") -> Iterator[str]:
    """Every path in a document."""
    if isinstance(value, list):
        for each in value:
            yield from fields_of(each, f"{path}[]")
    elif isinstance(value, dict):
        for name, each in value.items():
            inner = f"{path}.{name}" if path else name
            yield inner
            yield from fields_of(each, inner)


def known(path: str, documented: dict[str, Any]) -> bool:
    """Whether a path is on the page, leads to one that is, or lies in an object whose fields the
    page leaves open."""
    parts, pages = _parts(path), [_parts(each) for each in documented]
    for page in pages:
        shared = list(zip(parts, page, strict=False))
        if all(part == name or name == "*" for part, name in shared):
            leaf = not any(len(o) > len(page) and o[: len(page)] == page for o in pages)
            if len(parts) <= len(page) or leaf:
                return True
    return False


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("[]", ".[]").split(".") if part]


def check(title: str, document: Any, *, closed: bool = True) -> None:
    """Every documented field is there with its type, and (closed) every field is documented."""
    documented = section(title)
    for path, (kind, optional) in documented.items():
        places = list(found_at(document, path))
        for there, value in places:
            assert there or optional, f"{title}: {path} is missing"
            if there and not (value is None and kind.endswith("?")):
                types = TYPES[kind.rstrip("?")]
                assert isinstance(value, types), f"{title}: {path} is {value!r}, not {kind}"
                assert not isinstance(value, bool) or bool in types, path
    if closed:
        unknown = {path for path in fields_of(document) if not known(path, documented)}
        assert not unknown, f"{title}: not on the page: {sorted(unknown)}"


def call(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def commands(group: Any = None, before: str = "linscale") -> Iterator[tuple[str, Any]]:
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def test_every_command_has_json_and_a_section() -> None:
    for name, command in commands():
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert "--json" in flags, name
        assert section(name), name


def test_no_option_denies_a_denial() -> None:
    for name, command in commands():
        for parameter in command.params:
            flags = [*parameter.opts, *parameter.secondary_opts]
            assert not [flag for flag in flags if flag.startswith("--no-no-")], name


def sides(root: Path, noise: float) -> list[Path]:
    """One architecture each, two sizes, two seeds; the second loses 2 to 3 % more."""
    return [
        write_sweep(root / arch, archs=(arch,), dims=(32, 64), seeds=(0, 1), log_lines=3,
                    noise=noise, seed=number)
        for number, arch in enumerate(("llama", "tnl"))
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seeds that scatter by far more than the difference."""
    return sides(tmp_path_factory.mktemp("sides"), 0.05)


def test_the_gate_ends_with_its_verdict(tmp_path: Path) -> None:
    base, changed = sides(tmp_path, 1e-4)
    assert call("gate", base, changed, code=1)["verdict"] == "does not transfer"
    assert call("gate", changed, base)["verdict"] == "transfers"


def test_documents_of_records(sweeps: list[Path], tmp_path: Path) -> None:
    quickstart = RESULTS / "quickstart.zip"
    check("linscale plan", call("plan", "quickstart", "--device", "h100"))
    check("linscale status", call("status", quickstart))
    check("linscale verify", call("verify", sweeps[0], code=1))  # it holds no checkpoints
    check("linscale fit", call("fit", quickstart, "--bootstrap", 20))
    check("linscale forecast", call("forecast", quickstart, "--at", "N=1e6,D=1e7",
                                    "-o", tmp_path / "seal.json"))  # fmt: skip
    check("linscale forecast --score",
          call("forecast", quickstart, "--score", tmp_path / "seal.json"))  # fmt: skip
    check("linscale tables", call("tables", quickstart))
    verdict = call("gate", *sweeps, code=3)
    check("linscale gate", verdict)
    assert EXIT_CODES[verdict["verdict"]] == 3


def test_documents_of_tables(tmp_path: Path) -> None:
    table = tmp_path / "optima.csv"
    table.write_text("C,N\n1e18,1e7\n1e19,3.1e7\n1e20,9e7\n")
    check("linscale optima", call("optima", table))
    lines = ["N,D,lr,loss"]
    for n in (1e6, 4e6, 16e6):
        for d in (1e8, 4e8):
            best = -6 - 0.2 * (n > 2e6)
            lines += [f"{n},{d},{2.0**k},{3 - 0.05 * (n > 2e6) + 0.02 * (k - best) ** 2}"
                      for k in range(-9, -3)]  # fmt: skip
    sweep = tmp_path / "sweep.csv"
    sweep.write_text("\n".join(lines))
    check("linscale tuning", call("tuning", sweep, "--bootstrap", 100))
    check("linscale import", call("import", sweep, "-o", tmp_path / "points.csv"))
    assert (tmp_path / "points.csv").read_text().startswith("run_id,")


def linscale(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scaling.cli.main", *map(str, words)]
    pipe = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=pipe)


def test_exit_codes(tmp_path: Path, sweeps: list[Path]) -> None:
    """As both pages have them; 0, 2 and 3 of processes."""
    agents = (ROOT / "AGENTS.md").read_text(encoding="utf-8")
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == [0, 1, 2, 3, 70, 130]
    assert all(row in agents for row in rows)
    assert linscale("--version", cwd=tmp_path).returncode == 0
    wrong = linscale("status", "nowhere", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1  # one paragraph; in a pipe, one line
    assert linscale("gate", *sweeps, cwd=tmp_path).returncode == 3


@pytest.mark.parametrize(("raised", "code"), [(RuntimeError, 70), (KeyboardInterrupt, 130)])
def test_faults_and_interrupts(
    raised: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(main_module, "app", fail)
    monkeypatch.setattr(sys, "argv", ["linscale", "status"])
    with pytest.raises(SystemExit) as ended:
        main_module.main()
    assert ended.value.code == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 70)


def test_what_follows_in_one_process_prints_as_ever() -> None:
    call("plan", "quickstart", "--device", "h100")
    assert not console().stderr


def test_quiet_and_verbose_stand_anywhere(tmp_path: Path) -> None:
    assert linscale("status", "-q", "nowhere", cwd=tmp_path).stderr.startswith("error: ")
    assert "Traceback" in linscale("status", "nowhere", "-v", cwd=tmp_path).stderr
