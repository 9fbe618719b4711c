"""Without any extra: fitting, reports and plans work; what needs more says which extra."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from linscale.installation import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = """
import sys
from linscale.__main__ import main
for command in {commands!r}:
    print(f"$ {{command}}", flush=True)
    sys.argv = ["linscale", *command.split()]
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    sys.stderr.flush()
    print(f"\\nexit {{code}}", flush=True)
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Command -> what it said and its exit code."""
    folder = tmp_path_factory.mktemp("plain")
    site = folder / "site-packages"  # as here, without what the extras bring
    site.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name not in EXTRAS and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    rows = [f"{n},{d},{1.7 + (n / 1e6) ** -0.4 + (d / 1e6) ** -0.3}"
            for n in (10**6, 10**7, 10**8, 10**9) for d in (10**7, 10**8, 10**9)]  # fmt: skip
    (folder / "table.csv").write_text("\n".join(["n,d,loss", *rows]))
    (folder / "exp.py").write_text(
        "from linscale import TOY_VOCAB, toy_config, toy_recipe\n"
        "def runs():\n"
        "    model = toy_config('tnl', 32, vocab_size=TOY_VOCAB)\n"
        "    return [toy_recipe('tnl-d32', 'd32', model, tokens=100_000)]\n"
    )
    commands = [
        "fit table.csv --params n --tokens d --bootstrap 0",
        "plan exp.py --device h100",
        "run exp.py",
        "evaluate runs/exp --tasks perplexity",
        "generate runs/exp/x",
    ]
    done = subprocess.run(
        [sys.executable, "-S", "-c", COMMANDS.format(commands=commands)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{site}", "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    parts = re.split(r"^\$ (.*)$", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("command", "shown"), [("fit", "alpha"), ("plan", "tnl-d32")])
def test_works(said: dict[str, str], command: str, shown: str) -> None:
    (output,) = (text for given, text in said.items() if given.startswith(command))
    assert "exit 0" in output
    assert shown in output


@pytest.mark.parametrize("command", ["run", "evaluate", "generate"])
def test_says_which_extra(said: dict[str, str], command: str) -> None:
    (output,) = (text for given, text in said.items() if given.startswith(command))
    assert "exit 2" in output
    assert f"linscale {command} needs torch, which the extra `train` brings" in (
        " ".join(output.split())
    )
    assert "Traceback" not in output
