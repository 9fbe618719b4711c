"""The commands: answers, JSON, errors of one paragraph, and no torch anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.fit.law_fit import LawFit
from analysis.io.sweep import Conventions
from analysis.laws.registry import FORMS
from tests.support.make_runs import LAWS, Problem, write_sweep
from tests.support.worlds import suite

ROOT = Path(__file__).parents[3]
runner = CliRunner()


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(
        tmp_path_factory.mktemp("runs") / "demo", archs=("llama", "tnl"), dims=(32, 64, 96, 128),
        seeds=(0, 1), log_lines=20, problems={"tnl-d128-s1": Problem(state="diverged")},
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    n = np.repeat(np.geomspace(1e7, 1e9, 5), 5)
    d = np.tile(np.geomspace(1e9, 1e11, 5), 5)
    noise = np.exp(1e-4 * np.random.default_rng(0).standard_normal(len(n)))
    frames = [
        pd.DataFrame({"arch": arch, "size_m": n / 1e6, "tokens_b": d / 1e9,
                      "final": (1.7 + a / n**0.34 + 410 / d**0.28) * noise})
        for arch, a in (("x", 400.0), ("y", 500.0))
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "table.csv"
    pd.concat(frames).to_csv(path, index=False)
    return path


def call(*words: object) -> tuple[int, str, str]:
    result = runner.invoke(app, [str(w) for w in words], env={"COLUMNS": "200", "NO_COLOR": "1"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def columns(*extra: str) -> tuple[str, ...]:
    return ("--loss", "final", "--params", "size_m*1e6", *extra)


def test_fit_of_a_table(table: Path) -> None:
    code, out, _ = call("fit", table, *columns("--bootstrap", "100"))
    assert code == 0
    assert "x: L = E + A N^-alpha + B D^-beta, 25 points of 25 runs" in out
    assert "y: L = E" in out
    assert "D (tokens) = 'tokens_b' x 1e+09 (guessed)" in out
    assert "0.34" in out
    assert "90% interval" in out


def test_parameters_can_be_held(table: Path) -> None:
    choices = columns("--bootstrap", "0", "--json", "--fix", "E=1.75", "--fix", "alpha=0.3")
    code, out, _ = call("fit", table, *choices)
    assert code == 0
    for fit in json.loads(out)["fits"].values():
        assert fit["parameters"]["E"] == pytest.approx(1.75)
        assert fit["parameters"]["alpha"] == pytest.approx(0.3)
    code, _, err = call("fit", table, *columns("--bootstrap", "0", "--fix", "E"))
    assert code == 2
    assert "--fix E: give NAME=VALUE" in err


def test_fit_as_json_gives_the_truth(table: Path) -> None:
    code, out, _ = call("fit", table, *columns("--bootstrap", "0", "--json"))
    assert code == 0
    record = json.loads(out)
    for name, a in (("x", 400.0), ("y", 500.0)):
        fit = record["fits"][name]
        # noise of 1e-4 moves log A by about 1e-2 and exponents by a few 1e-4
        assert fit["parameters"]["A"] == pytest.approx(a, rel=0.05)
        assert fit["parameters"]["beta"] == pytest.approx(0.28, abs=2e-3)
        assert fit["intervals_90"] is None
        assert fit["objective"]["name"] == "huber"
        assert fit["evidence"]["starts"] > 1
        assert {row["choice"] for row in fit["sensitivity"]} >= {"reference", "delta"}
        assert {row["section"] for row in fit["checklist"]} >= {"Form", "Data"}
    assert "'tokens_b' x 1e+09" in record["conventions"]


def test_choices_and_checklist_stand_beside_every_fit(table: Path) -> None:
    code, out, _ = call("fit", table, *columns("--bootstrap", "50"))
    flat = " ".join(out.split())
    assert code == 0
    assert flat.count("other choices: a from 0.4") == 2
    said = "of every group: checklist: 25 of 33 questions answered; the data do not say: Which"
    assert flat.count(said) == flat.count("questions answered") == 1
    assert "without the cheapest quarter" not in flat.replace("farthest: checkpoints, without", "")
    assert "--full prints every choice" in flat
    full = call("fit", table, *columns("--bootstrap", "50", "--full"))[1]
    assert "without the cheapest quarter" in full
    assert "Which learning-rate schedule?" in full
    assert "Which optimiser?" in full


def test_groups_are_compared(table: Path) -> None:
    """y's law needs A 25 % larger: x is the more efficient by a factor that can be worked out."""
    code, out, _ = call("fit", table, *columns("--bootstrap", "50", "--baseline", "y"))
    flat = " ".join(out.split())
    assert code == 0
    assert "compared with y:" in flat
    assert "x is more efficient: y needs 1." in flat
    assert "The frontiers of x and y do not cross" in flat or "the refits cross at all" in flat
    assert "prefers shared exponents" in flat
    record = json.loads(call("fit", table, *columns("--bootstrap", "50", "--json"))[1])
    assert record["comparison"]["baseline"] == "x"
    row = record["comparison"]["multipliers"]["y"]["table"][-1]
    assert row["lo"] < row["multiplier"] < row["hi"] < 1
    # at x's optimum A N^-alpha is beta / (alpha + beta) of the reducible loss; to first order
    # raising A by 25 % raises K by 1.25^(beta / (alpha + beta)), and C by K^(1/s)
    share, slope = 0.28 / 0.62, 0.34 * 0.28 / 0.62
    assert row["multiplier"] == pytest.approx(1.25 ** (-share / slope), rel=0.02)
    code, _, err = call("fit", table, *columns("--bootstrap", "0", "--baseline", "z"))
    assert code == 2
    assert "baseline 'z': no such group; there are x, y" in " ".join(err.split())


def test_a_sweep_is_compared_under_its_own_flops_and_in_pairs(sweep_dir: Path) -> None:
    options = ("--bootstrap", "60", "--json")
    record = json.loads(call("fit", sweep_dir, *options)[1])
    compared = record["comparison"]
    assert compared["baseline"] == "llama"
    assert set(compared["multipliers"]) == {"tnl"}
    assert not compared["multipliers"]["tnl"]["paired"]  # tnl lacks the diverged run
    answers = {r["question"]: r["answer"] for r in record["fits"]["tnl"]["checklist"]}
    assert answers["Which data and tokenizer?"] == "kjv, bytes"


def test_three_approaches_as_a_command(tmp_path: Path) -> None:
    """An IsoFLOP grid: approaches 2 and 3 answer, 1 says what it lacks."""
    rows = []
    for budget in np.geomspace(1e18, 1e21, 4):
        best = (budget / 6) ** 0.5 * 0.3
        n = best * np.geomspace(0.25, 4, 7)
        d = budget / (6 * n)
        rows.append(pd.DataFrame({"params": n, "tokens": d, "flops": budget,
                                  "loss": 1.7 + 400 / n**0.34 + 410 / d**0.28}))  # fmt: skip
    path = tmp_path / "grid.csv"
    pd.concat(rows).to_csv(path, index=False)
    code, out, _ = call("fit", path, "--bootstrap", "50", "--approaches")
    assert code == 0
    assert "N* ~ C^a" in out
    assert "needs training curves" in out
    record = json.loads(call("fit", path, "--bootstrap", "50", "--approaches", "--json")[1])
    found = {r["approach"]: r for r in record["approaches"]["all"]["approaches"]}
    truth = 0.28 / 0.62
    assert found["3 parametric"]["a"] == pytest.approx(truth, abs=1e-4)
    assert found["2 IsoFLOP"]["a"] == pytest.approx(truth, abs=0.02)
    assert found["2 IsoFLOP"]["a_lo"] <= found["2 IsoFLOP"]["a"] <= found["2 IsoFLOP"]["a_hi"]
    assert found["1 envelope"]["a"] is None


def test_one_law_for_all_groups(table: Path) -> None:
    options = columns("--group", "", "--bootstrap", "0", "--json", "--form", "power_d_e")
    code, out, _ = call("fit", table, *options)
    assert code == 0
    fits = json.loads(out)["fits"]
    assert list(fits) == ["all"]
    assert fits["all"]["n_points"] == 50


def test_fit_of_a_sweep_in_a_convention(sweep_dir: Path, tmp_path: Path) -> None:
    saved = tmp_path / "deep" / "fits.json"
    options = ("--params", "total", "--compute", "6nd", "--bootstrap", "50", "--json", "-o", saved)
    code, out, _ = call("fit", sweep_dir, *options)
    assert code == 0
    record = json.loads(out)
    assert record["conventions"].startswith("N: all parameters; C = 6ND")
    assert record["exclusions"][0]["reason"] == "diverged"
    assert record["fits"]["llama"]["parameters"]["beta"] == pytest.approx(
        LAWS["llama"].beta, abs=0.05
    )
    low, high = record["fits"]["llama"]["intervals_90"]["beta"]
    assert low < record["fits"]["llama"]["parameters"]["beta"] < high
    full = json.loads(saved.read_text())
    again = LawFit.from_json(json.dumps(full["llama"]))
    assert again.params == record["fits"]["llama"]["parameters"]
    assert again.draws is not None
    assert len(again.draws.values) == 50


def test_exclusions_and_notes_are_printed(sweep_dir: Path) -> None:
    code, out, _ = call("fit", sweep_dir, "--bootstrap", "0")
    assert code == 0
    assert "left out: tnl-d128-s1" in out
    assert out.index("llama: L = E") < out.index("tnl: L = E")


def test_a_group_that_cannot_be_fitted_does_not_stop_the_rest(table: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(table)
    few = frame[frame["arch"] == "y"].head(3).assign(arch="z")
    path = tmp_path / "t.csv"
    pd.concat([frame, few]).to_csv(path, index=False)
    code, out, _ = call("fit", path, *columns("--bootstrap", "0"))
    assert code == 0
    assert "not fitted: z: chinchilla has 5 parameters and 3 usable points" in " ".join(out.split())
    assert "x: L = E" in out
    few.to_csv(path, index=False)
    code, _, err = call("fit", path, *columns("--bootstrap", "0"))
    assert code == 2
    assert "z: chinchilla has 5 parameters" in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fit", "absent.csv"), "does not exist; give a CSV file or a sweep directory"),
        (("fit", "TABLE", "--loss", "fianl"), "did you mean 'final'?"),
        (("fit", "TABLE", "--loss", "final"), "which chinchilla needs"),
        (("fit", "TABLE", "--loss", "final", "--params", "size_m", "--form", "chincilla"),
         "form 'chincilla' is not known; choose one of power_c"),
        (("fit", "TABLE", "--loss", "final", "--params", "size_m", "--objective", "l1"),
         "objective 'l1' is not known; choose one of huber"),
        (("fit", "TABLE", "--loss", "final", "--params", "size_m", "--delta", "-1"),
         "delta must be a positive number"),
        (("fit", "SWEEP", "--params", "active"), "choose non_embedding or paper or total"),
        (("fit", "TABLE", "--other-data"), "a table tells nothing of their data"),
        (("fit", "SWEEP", "--tokens", "D"), "a sweep needs none of them"),
        (("fit", "SWEEP", "-o", "/dev/null/x.json"), "cannot be written"),
        (("report", "absent"), "does not exist"),
    ],
)  # fmt: skip
def test_errors_are_one_paragraph(
    words: tuple[str, ...], message: str, table: Path, sweep_dir: Path
) -> None:
    places = {"TABLE": str(table), "SWEEP": str(sweep_dir)}
    code, out, err = call(*(places.get(w, w) for w in words))
    assert code == 2
    flat = " ".join(err.split())
    assert flat.startswith("error: ")
    assert message in flat
    assert "Traceback" not in err
    assert "\n\n" not in err.strip()
    assert out == ""


def test_runs_on_other_data_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "demo", archs=("tnl",), dims=(32, 64, 96, 128), seeds=(0,),
                        log_lines=2)  # fmt: skip
    odd = min(path.parent for path in sweep.glob("*/config.json"))
    environment = json.loads((odd / "environment.json").read_text())
    changed = environment | {"data_changes": [{"step": 3}]}
    (odd / "environment.json").write_text(json.dumps(changed))
    words = ("fit", sweep, "--bootstrap", "0", "--json")
    left, kept = (json.loads(call(*words, *more)[1]) for more in ((), ("--other-data",)))
    assert [each["run_id"] for each in left["exclusions"]] == [odd.name]
    assert "--other-data keeps it" in left["exclusions"][0]["reason"]
    assert kept["exclusions"] == []
    assert [each["fits"]["tnl"]["n_runs"] for each in (left, kept)] == [3, 4]


def test_report_command(sweep_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options arrive; the writing itself is the matter of test_report.py."""
    seen: dict[str, object] = {}

    def write(directory: Path, out: Path, **options: object) -> Path:
        seen.update(options, directory=directory, out=out)
        return out / "index.html"

    monkeypatch.setattr("analysis.report.report.write_report", write)
    options = ("-o", tmp_path / "r", "--bootstrap", "150", "--seed", "3", "--baseline", "tnl",
               "--other-data", "--params", "total", "--loss", "train")  # fmt: skip
    code, shown, _ = call("report", sweep_dir, *options)
    assert code == 0
    assert str(tmp_path / "r" / "index.html") in shown
    assert callable(seen.pop("progress"))
    assert callable(seen.pop("told"))
    assert seen == {"directory": sweep_dir, "out": tmp_path / "r", "baseline": "tnl",
                    "bootstrap": 150, "seed": 3, "given": None, "only": None, "seals": (),
                    "other_data": True, "style": "house", "formats": ["png", "pdf"],
                    "conventions": Conventions(parameters="total", loss="train")}  # fmt: skip
    call("report", sweep_dir)
    assert seen["other_data"] is False
    assert seen["out"] == sweep_dir / "report"


def test_long_bootstraps_report_progress(table: Path) -> None:
    """A bar appears on a terminal only; what is tested is that it is fed and changes nothing."""
    short = columns("--group", "", "--form", "power_d_e", "--seed", "1")
    code, out, _ = call("fit", table, *short, "--bootstrap", "2000")
    assert code == 0
    silent = json.loads(call("fit", table, *short, "--bootstrap", "2000", "--json")[1])
    low, high = silent["fits"]["all"]["intervals_90"]["alpha"]
    assert f"{low:.5g} … {high:.5g}" in out


def test_help_has_examples_and_every_form() -> None:
    code, out, _ = call("fit", "--help")
    assert code == 0
    assert "linscale fit results.csv --loss final_loss" in " ".join(out.split())
    for form in FORMS:
        assert form.removesuffix("_e") in out or form.removesuffix("_no_e") in out


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | env,
    )  # fmt: skip


FORBIDDEN = ("torch", "lightning", "pytorch_lightning", "scaling", "models", "experiments")
BLOCK = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {FORBIDDEN!r}:
            raise ImportError(name + " is not for analysis")

sys.meta_path.insert(0, Block())
"""


def test_every_module_imports_without_torch_and_the_training_half() -> None:
    code = BLOCK + (
        "import importlib, pkgutil, analysis\n"
        "names = [m.name for m in pkgutil.walk_packages(analysis.__path__, 'analysis.')]\n"
        "for name in names:\n"
        "    if name != 'analysis.__main__': importlib.import_module(name)\n"
        "print(len(names))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25


def test_commands_run_without_torch(table: Path) -> None:
    words = ["python -m analysis", "fit", str(table), *columns("--bootstrap", "0", "--json")]
    code = BLOCK + f"import sys; sys.argv = {words!r}; import analysis.__main__"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["fits"]) == {"x", "y"}


def test_linscale_fits_a_table_without_torch(table: Path) -> None:
    """The whole command line, training half mounted: a table is fitted without importing torch."""
    words = ["linscale", "fit", str(table), *columns("--bootstrap", "0", "--json")]
    code = (
        "import contextlib, io, sys\n"
        "from scaling.cli.main import main\n"
        f"sys.argv = {words!r}\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "assert '\"fits\"' in out.getvalue()\n"
        "print([n for n in ('torch', 'lightning', 'triton') if n in sys.modules])"
    )
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from analysis.cli.commands import app\n"
        "print([n for n in ('numpy', 'pandas', 'scipy', 'matplotlib') if n in sys.modules])"
    )
    done = python(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_brackets_in_names_are_printed_as_they_are(tmp_path: Path, table: Path) -> None:
    frame = pd.read_csv(table).rename(columns={"final": "loss [nats]"})
    frame["arch"] = frame["arch"].map({"x": "[/x]", "y": "[bold]y"})
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    code, out, _ = call("fit", path, "--params", "size_m*1e6", "--bootstrap", "0")
    assert code == 0
    assert "loss = 'loss [nats]' (guessed)" in out
    assert "[/x]: L = E" in out
    assert "[bold]y: L = E" in out


def test_json_is_strict_where_numbers_are_infinite(tmp_path: Path, table: Path) -> None:
    """Seven points of six unknowns: AICc is infinite, which JSON cannot say."""
    path = tmp_path / "t.csv"
    pd.read_csv(table).iloc[[0, 4, 8, 12, 16, 20, 24]].to_csv(path, index=False)
    code, out, _ = call("fit", path, *columns("--bootstrap", "0", "--json"))
    assert code == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    record = json.loads(out, parse_constant=refuse)
    assert record["fits"]["x"]["criteria"]["aicc"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--form", "chinchila"), "form 'chinchila' is not known"),
        (("--objective", "huba"), "objective 'huba' is not known"),
        (("--delta", "0"), "delta must be a positive number"),
        (("--bootstrap", "1"), "--bootstrap 1 gives no interval"),
        (("--clusters", "sise"), "no column 'sise' for --clusters"),
    ],
)
def test_a_wrong_option_is_said_once(table: Path, words: tuple[str, str], message: str) -> None:
    code, _, err = call("fit", table, *columns(*words))
    assert code == 2
    assert " ".join(err.split()).count(message) == 1


def test_groups_of_a_table_are_drawn_in_pairs_on_request(tmp_path: Path) -> None:
    frame = pd.concat([suite(noise=0.003, runs="size", sizes=6),
                       suite(noise=0.003, runs="size", sizes=6, arch="y")])  # fmt: skip
    path = tmp_path / "t.csv"
    frame.drop(columns="run_id").to_csv(path, index=False)
    found = {}
    for words in ((), ("--clusters", "size")):
        out = call("fit", path, "--bootstrap", "50", "--json", *words)[1]
        found[words] = json.loads(out)["comparison"]["multipliers"]["y"]
    assert [r["paired"] for r in found.values()] == [False, True]
    unpaired, paired = ({w["code"]: w["message"] for w in r["warnings"]} for r in found.values())
    assert "--clusters on the command line" in unpaired["one_draw_source"]
    assert "one_draw_source" not in paired


def test_fit_starts_without_matplotlib(table: Path) -> None:
    code = (
        "import sys; from analysis.cli.commands import app\n"
        f"app(['fit', {str(table)!r}, '--loss', 'final', '--params', 'size_m*1e6', '--bootstrap', "
        "'0', '--group', ''], standalone_mode=False)\n"
        "heavy = {'matplotlib', 'scipy.stats', 'torch'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert "HEAVY []" in done.stdout, done.stdout[-300:] + done.stderr[-300:]
