"""Tables as people have them: every cell is read as its writer meant it, or refused by name."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.cli.source import noise_of
from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.io import cells
from analysis.io.cells import read_cells
from analysis.io.columns import NAMES
from analysis.io.frames import words
from analysis.io.tables import load_table

ROWS = [(1e7, 1e9, 4.1), (3e7, 3e9, 3.6), (1e8, 1e10, 3.1), (3e8, 3e10, 2.8)]
PLAIN = "params,tokens,loss\n" + "".join(f"{n:g},{d:g},{x}\n" for n, d, x in ROWS)


def table(tmp_path: Path, text: str, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["20 000 000", "1 500"], [2e7, 1500]),
        (["20\u202f000\u00a0000"], [2e7]),
        (["20.000.000", "1.500"], [2e7, 1500]),
        (["20_000_000", "20'000'000"], [2e7, 2e7]),
        (["160G", "1.5B", "300 T", "70k", "2 bn"], [160e9, 1.5e9, 3e14, 70e3, 2e9]),
        (["20 million", "1.5 Billion", "2 trillion"], [2e7, 1.5e9, 2e12]),
        (["2e7 params", "70M parameters", "5B tokens", "1e20 FLOPs"], [2e7, 7e7, 5e9, 1e20]),
        (["1.5×10^6", "1.5 x 10^6", "10^20", "3·10**{5}"][:3], [1.5e6, 1.5e6, 1e20]),
        (["0.2·10⁹", "3 × 10⁻¹", "10¹²"], [2e8, 0.3, 1e12]),
        (["500,000", "1,250,000"], [5e5, 1.25e6]),
        (["500,000", "600,000"], [5e5, 6e5]),
        (["1,234.5", "1,000"], [1234.5, 1000]),
        (["1,5e9", "2,25e9"], [1.5e9, 2.25e9]),
        (["1,5B", "12,25B"], [1.5e9, 12.25e9]),
        (["1.234,5", "2.000,25"], [1234.5, 2000.25]),
        (["\u22121", "+3", ".5"], [-1, 3, 0.5]),
        (["", "NA", "n/a", "-", "null"], [np.nan] * 5),
    ],
)  # fmt: skip
def test_counts(cells: list[str], values: list[float]) -> None:
    found = read_cells(cells, "x", count=True)
    np.testing.assert_allclose(found.values, values, rtol=1e-12)
    assert found.bad == {}


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["5,088", "4,917"], [5.088, 4.917]),  # no model has a loss of 5088 nats
        (["3,5", "2,871"], [3.5, 2.871]),
        (["3.51", "2.9"], [3.51, 2.9]),
        (["3.1 nats"], [3.1]),
    ],
)
def test_losses(cells: list[str], values: list[float]) -> None:
    np.testing.assert_allclose(read_cells(cells, "x", count=False).values, values)


@pytest.mark.parametrize(
    ("cells", "count", "quoted"),
    [
        (["1,234,567", "1,5"], True, ("'1,234,567'", "'1,5'")),
        (["5,088", "3.51"], False, ("'5,088'", "'3.51'")),
        (["2,71", "3.51"], False, ("'2,71'", "'3.51'")),
        (["20.000.000", "1.5"], True, ("'20.000.000'", "'1.5'")),
    ],
)
def test_mixtures_are_refused(cells: list[str], count: bool, quoted: tuple[str, str]) -> None:
    with pytest.raises(AnalysisError, match="column 'x'") as caught:
        read_cells(cells, "x", count=count)
    assert all(cell in str(caught.value) for cell in quoted)


@pytest.mark.parametrize(
    "cell",
    ["~7e7", "7e7?", "big", "1.2.3", "7M M", "1e7-2e7", "12 PFLOP/s-days", "70 Mx", "1,23,456"],
)
def test_cells_that_are_no_number_are_quoted(tmp_path: Path, cell: str) -> None:
    path = table(tmp_path, PLAIN + f'"{cell}",1e9,3.0\n')
    sweep = load_table(path)
    assert len(sweep.points) == 4
    (row,) = sweep.exclusions.to_dict("records")
    assert row["run_id"] == "row 6"
    assert row["reason"] == f"'params' (--params): {cell!r} is not a number"


def test_noise_after_plus_minus_is_kept(tmp_path: Path) -> None:
    text = "params,tokens,loss\n1e7,1e9,3.51 ± 0.004\n1e8,1e10,3.01 +/- 0.003\n1e8,2e10,2.9\n"
    sweep = load_table(table(tmp_path, text))
    np.testing.assert_array_equal(sweep.points["loss"], [3.51, 3.01, 2.9])
    np.testing.assert_array_equal(sweep.points["loss_stderr"], [0.004, 0.003, np.nan])
    assert "'loss': what follows ± is taken as the noise of a row" in sweep.notes


def test_semicolons_and_thousands(tmp_path: Path) -> None:
    text = "params;tokens;loss\n500,000;1,250,000;3,5\n700,000;2,500,000;3,25\n"
    points = load_table(table(tmp_path, text)).points
    assert points["n_params"].tolist() == [5e5, 7e5]
    assert points["tokens"].tolist() == [1.25e6, 2.5e6]
    assert points["loss"].tolist() == [3.5, 3.25]


def test_perplexity_is_asked_about(tmp_path: Path) -> None:
    text = "params,tokens,loss\n1e7,1e9,60.3\n1e8,1e10,22.2\n1e9,1e11,16.1\n"
    with pytest.raises(AnalysisError, match=r"median of 22\.2: is this perplexity"):
        load_table(table(tmp_path, text))
    text = "params,tokens,val_ppl\n1e7,1e9,9.3\n1e8,1e10,8.2\n"
    with pytest.raises(AnalysisError, match=r"'val_ppl' .*is this perplexity"):
        load_table(table(tmp_path, text), loss="val_ppl")
    one = load_table(table(tmp_path, PLAIN + "1e8,1e10,5088\n"))
    assert len(one.points) == 4
    assert one.exclusions["reason"].tolist() == [
        "a loss of 5088 nats: diverged, or is this perplexity?"
    ]


def test_text_columns_are_not_guessed(tmp_path: Path) -> None:
    text = "params,data,budget,tokens_b,loss\n1e7,c4,large,1,4\n1e8,c4,large,2,3\n"
    sweep = load_table(table(tmp_path, text))
    assert sweep.points["tokens"].tolist() == [1e9, 2e9]
    assert "flops" not in sweep.points
    assert "'budget' was not taken for C (FLOPs): its cells are no numbers ('large')" in (
        sweep.notes
    )
    text = "params,data,loss\n1e7,c4,4\n1e8,c4,3\n"
    assert "tokens" not in load_table(table(tmp_path, text)).points


def test_perplexities_of_which_some_could_be_losses_are_asked_about(tmp_path: Path) -> None:
    """Perplexities of models from poor to good lie on both sides of what a loss can be."""
    head = "params,tokens,loss\n"
    rows = "".join(f"{1e7 * 2**i:g},1e9,{x}\n" for i, x in enumerate((43.6, 30.9, 12, 8, 6, 5)))
    with pytest.raises(AnalysisError, match=r"2 of 6 losses are above 15 nats, up to 43.6: is thi"):
        load_table(table(tmp_path, head + rows))
    assert len(load_table(table(tmp_path, head + rows), where=["loss < 15"]).points) == 4
    high = "".join(f"{1e7 * 2**i:g},1e9,{x}\n" for i, x in enumerate((14, 12, 10, 9, 8)))
    (warning,) = [n for n in load_table(table(tmp_path, head + high)).notes if "WARNING" in n]
    assert "the lowest loss is 8 nats" in warning
    (tmp_path / "t.csv").write_text("params,tokens,wiki_perplexity\n1e7,1e9,30\n")
    with pytest.raises(AnalysisError, match="'wiki_perplexity' is a perplexity: a loss is its log"):
        load_table(tmp_path / "t.csv")


def test_errors_name_the_users_columns_and_what_was_left_out(tmp_path: Path) -> None:
    head = "params,data,step,loss,state\n"
    lines = [f"{1e7 * 2**i:g},c4,{i},{4 - i / 10},finished\n" for i in range(8)]
    path = str(table(tmp_path, head + "".join(lines)))
    said = " ".join(CliRunner().invoke(app, ["fit", path]).output.split())
    assert "the table has: params, data, step, loss, state" in said
    assert "n_params" not in said
    assert "its cells are no numbers ('c4')" in said
    assert "--tokens 'step*524288'" in said
    bad = [line.replace("c4", "1e9").replace("finished", "failed") for line in lines[2:]]
    path = str(table(tmp_path, head + "".join([line.replace("c4", "1e9") for line in lines[:2]])
                     + "".join(bad)))  # fmt: skip
    said = " ".join(CliRunner().invoke(app, ["fit", path]).output.split())
    assert "6 rows were left out: state is failed (6x)" in said
    path = str(table(tmp_path, head + "".join(bad)))
    said = " ".join(CliRunner().invoke(app, ["fit", path]).output.split())
    assert "Look at these rows of the file." in said
    assert "linscale run" not in said


def test_noise_after_plus_minus_weighs_the_rows(tmp_path: Path) -> None:
    """As weights 1 / noise^2 given by hand do, and not where a row has none."""
    rng = np.random.default_rng(0)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 3e10, 5)))
    noise = np.where(np.arange(25) % 2 == 0, 0.002, 0.05)
    loss = 1.69 + 406.4 * n**-0.34 + 410.7 * d**-0.28 + noise * rng.standard_normal(25)
    lines = [f"{a:.6g},{b:.6g},{x:.5f} ± {s},{(x / s) ** 2}\n"
             for a, b, x, s in zip(n, d, loss, noise, strict=True)]  # fmt: skip
    path = table(tmp_path, "params,tokens,loss,w\n" + "".join(lines))

    def alpha(**options: str | None) -> float:
        return fit_law("chinchilla", sweep.points, **options).params["alpha"]

    sweep = load_table(path)
    column = noise_of(sweep, None, None)
    assert "rows weigh as 1 / (their ±)^2" in sweep.notes[-1]
    assert alpha(noise=column) == pytest.approx(alpha(weights="w"), rel=1e-3)
    assert abs(alpha(noise=column) - alpha()) > 1e-3
    assert noise_of(sweep, "", None) is None
    assert noise_of(sweep, None, "w") is None
    path.write_text(path.read_text().replace(" ± 0.05", "", 1))
    sweep = load_table(path)
    assert noise_of(sweep, None, None) is None
    assert "1 of 25 rows have no ±" in sweep.notes[-1]


@pytest.mark.parametrize(
    ("header", "roles"),
    [
        ("Name,config.model.n_params,total_tokens,eval/loss,_step,State", "run n d loss - -"),
        ("run_id,params.parameter_count,params.token_num,metrics.cd_val_loss", "run n d loss"),
        ("run_name,D [tokens],N [params],loss [nats]", "run d n loss"),
        ("name,throughput/total tokens,num_params,train/CE loss,compute", "run d n loss c"),
        ("id,num_input_tokens_seen,total_flos,eval_loss,num_parameters", "run d c loss n"),
        ("experiment_id,Tokens (B),Parameters (M),Validation Loss", "run d n loss"),
        ("Run Name,trainTokens,ModelSize,valLoss", "run d n loss"),
        ("run,n_tok,params,xent", "run d n loss"),
    ],
)
def test_known_names(tmp_path: Path, header: str, roles: str) -> None:
    small = "(B)" in header
    value = {"n": (10, 20) if small else (1e7, 2e7), "d": (1, 2) if small else (1e9, 2e9),
             "c": (1e17, 2e17), "loss": (3, 2), "run": ("a", "b"), "-": ("x", "y")}  # fmt: skip
    lines = [",".join(str(value[role][i]) for role in roles.split()) for i in (0, 1)]
    points = load_table(table(tmp_path, "\n".join([header, *lines]) + "\n")).points
    assert points["run_id"].tolist() == ["a", "b"]
    assert points["loss"].tolist() == [3, 2]
    assert points["n_params"].tolist() == [1e7, 2e7]
    assert points["tokens"].tolist() == [1e9, 2e9]


def test_no_name_stands_for_two_things() -> None:
    # Total parameters are counts of N, too: they are looked for where N are the active ones.
    names = [name for role, own in NAMES.items() if role != "total_params" for name in own]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("column", ["state", "State", "status", "run_state"])
def test_runs_that_did_not_end_well_are_left_out(tmp_path: Path, column: str) -> None:
    states = ["finished", "failed", "Crashed", "killed", "diverged", "running", "finished"]
    lines = [f"r{i},{1e7 * (i + 1):g},1e9,{4 - i / 10},{s}" for i, s in enumerate(states)]
    text = f"run,params,tokens,loss,{column}\n" + "\n".join(lines) + "\n"
    sweep = load_table(table(tmp_path, text))
    assert sweep.points["run_id"].tolist() == ["r0", "r6"]
    assert sweep.exclusions["run_id"].tolist()[:2] == ["r1, row 3", "r2, row 4"]
    assert sweep.exclusions["reason"].tolist()[:2] == [
        f"{column} is failed",
        f"{column} is Crashed",
    ]


@pytest.mark.parametrize(
    ("column", "cells", "kept"),
    [
        ("job_status", ["COMPLETED", "TIMEOUT", "completed"], [0, 2]),
        ("Run State", ["finished", "crashed", "running"], [0]),
        ("diverged", ["False", "True", ""], [0, 2]),
        ("is_failed", ["0", "1", "0"], [0, 2]),
        ("config.converged", ["yes", "no", "yes"], [0, 2]),
        ("finished", ["2024-01-01", "2024-01-02", ""], [0, 1, 2]),  # a date is no yes or no
    ],
)
def test_states_under_other_names_and_yes_or_no(
    tmp_path: Path, column: str, cells: list[str], kept: list[int]
) -> None:
    lines = [f"r{i},{1e7 * (i + 1):g},1e9,{4 - i / 10},{c}" for i, c in enumerate(cells)]
    sweep = load_table(table(tmp_path, f"run,params,tokens,loss,{column}\n" + "\n".join(lines)))
    assert sweep.points["run_id"].tolist() == [f"r{i}" for i in kept]
    assert all(why.startswith(f"{column} is ") for why in sweep.exclusions["reason"])


def test_a_status_that_says_something_else_stays(tmp_path: Path) -> None:
    text = "params,tokens,loss,status\n1e7,1e9,4,open\n1e8,1e10,3,closed\n"
    assert len(load_table(table(tmp_path, text)).points) == 2


def test_a_group_called_na_stays_and_blanks_make_no_second_group(tmp_path: Path) -> None:
    text = "arch,params,tokens,loss\nNA,1e7,1e9,4\nNA ,1e8,1e10,3\n NA,1e8,2e10,2.9\n,1e8,1e9,3\n"
    sweep = load_table(table(tmp_path, text))
    assert sweep.points["arch"].tolist() == ["NA"] * 3
    assert sweep.exclusions["run_id"].tolist() == ["row 5"]


def history(runs: int = 5, points: int = 12) -> str:
    lines = [f"{k},{1e7 * 2**k:g},{1e8 * j:g},{3 + 1 / (j + k):.4f},{j * 100}"
             for k in range(runs) for j in range(1, points + 1)]  # fmt: skip
    return "trial,params,tokens,loss,_step\n" + "\n".join(lines) + "\n"


def test_few_rows_a_model_are_as_often_runs(tmp_path: Path) -> None:
    path = table(tmp_path, history(runs=5, points=5))
    assert not [note for note in load_table(path).notes if note.startswith("WARNING")]


def test_cells_with_lists_are_text(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text('[{"tags": ["a", "b"], "N": 1e7, "D": 1e9, "loss": 3.0},'
                    ' {"tags": [], "N": 2e7, "D": 1e9, "loss": 2.5}]')  # fmt: skip
    assert load_table(path).points["loss"].tolist() == [3.0, 2.5]
    path.write_text('{"190M": {"paths": ["a.csv"], "keys": ["loss"]}}')
    with pytest.raises(AnalysisError, match="no loss column"):
        load_table(path)


def test_a_log_without_runs_is_noticed(tmp_path: Path) -> None:
    path = table(tmp_path, history())
    (warning,) = [note for note in load_table(path).notes if note.startswith("WARNING")]
    assert "'_step' looks like the steps of a log" in warning
    assert "--runs" in warning
    frame = pd.read_csv(path).drop(columns="_step")
    frame.to_csv(path, index=False)
    (warning,) = [note for note in load_table(path).notes if note.startswith("WARNING")]
    assert "5 model size(s) have 10 or more rows whose loss falls with tokens" in warning
    sweep = load_table(path, runs="trial")
    assert not [note for note in sweep.notes if note.startswith("WARNING")]
    assert sorted(set(sweep.points["run_id"])) == list("01234")


def test_the_last_row_of_each_run(tmp_path: Path) -> None:
    sweep = load_table(table(tmp_path, history()), last_per="trial", runs="trial")
    assert sweep.points["tokens"].tolist() == [1.2e9] * 5
    assert sweep.points.index.tolist() == [13, 25, 37, 49, 61]
    assert len(sweep.exclusions) == 55
    assert set(words(sweep.exclusions, "reason")) == {"not the last row of its trial"}


def test_the_best_row_of_each_cell(tmp_path: Path) -> None:
    text = "params,tokens,lr,loss\n1e7,1e9,1,4\n1e7,1e9,2,3.5\n1e7,2e9,1,3.2\n1e7,2e9,2,nan\n"
    for names in ("N,D", "params,tokens"):
        sweep = load_table(table(tmp_path, text), best_per=names)
        kept = sweep.points.dropna(subset=["loss"])
        assert kept["loss"].tolist() == [3.5, 3.2]


def test_conditions(tmp_path: Path) -> None:
    text = "arch,params,tokens,loss\ntnl,70M,1e9,4\ntnl,1.4B,1e10,3\nllama,1.4B,1e10,2.9\n"
    path = table(tmp_path, text)
    assert load_table(path, where=["arch == tnl"]).points["loss"].tolist() == [4, 3]
    assert load_table(path, where=["arch!=tnl"]).points["loss"].tolist() == [2.9]
    both = load_table(path, where=["params >= 1B", "arch = 'tnl'"])
    assert both.points["loss"].tolist() == [3]
    assert both.exclusions["reason"].tolist() == ["not params >= 1B", "not arch = 'tnl'"]
    for bad, message in (("arch", "give NAME OPERATOR VALUE"), ("x == 1", "no column 'x'"),
                         ("arch < tnl", "texts are compared")):  # fmt: skip
        with pytest.raises(AnalysisError, match=message):
            load_table(path, where=[bad])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-8-sig", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "run,params,tokens,loss\n" + "".join(f"Größe{n:g},{n:g},{d:g},{x}\n" for n, d, x in ROWS)
    data = text.encode(encoding)
    if encoding == "utf-16-le":
        data = b"\xff\xfe" + data
    (tmp_path / "t.csv").write_bytes(data)
    points = load_table(tmp_path / "t.csv").points
    assert points["loss"].tolist() == [x for _, _, x in ROWS]
    assert points["run_id"].tolist()[0] == "Größe1e+07"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress),
                                              (".xz", lzma.compress)])  # fmt: skip
def test_packed_files(tmp_path: Path, suffix: str, pack: object) -> None:
    path = tmp_path / f"t.csv{suffix}"
    path.write_bytes(pack(PLAIN.encode()))  # type: ignore[operator]
    assert len(load_table(path).points) == 4
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(AnalysisError, match="cannot be read as a table"):
        load_table(path)


def test_binary_formats_and_lines(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=["params", "tokens", "loss"]).assign(arch="NA")
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_feather(tmp_path / "t.feather")
    frame.to_json(tmp_path / "t.ndjson", orient="records", lines=True)
    frame.to_json(tmp_path / "t.json", orient="records")
    for name in ("t.parquet", "t.feather", "t.ndjson", "t.json"):
        points = load_table(tmp_path / name).points
        assert points["loss"].tolist() == [x for _, _, x in ROWS], name
        assert points["arch"].tolist() == ["NA"] * 4
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(AnalysisError, match="cannot be read as a table"):
        load_table(tmp_path / "bad.parquet")


def test_excel(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    pd.DataFrame(ROWS, columns=["params", "tokens", "loss"]).to_excel(
        tmp_path / "t.xlsx", index=False
    )
    assert load_table(tmp_path / "t.xlsx").points["loss"].tolist() == [x for _, _, x in ROWS]


def test_the_largest_sheet_of_a_workbook(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        pd.DataFrame({"note": ["see the other sheet"]}).to_excel(book, sheet_name="read me")
        pd.DataFrame(ROWS, columns=["params", "tokens", "loss"]).to_excel(book, sheet_name="runs")
    sweep = load_table(tmp_path / "t.xlsx")
    assert sweep.points["loss"].tolist() == [x for *_, x in ROWS]
    assert "sheet 'runs' is read, the largest; not read: 'read me'" in sweep.notes


def test_json_of_columns_and_data(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS, columns=["params", "tokens", "loss"])
    frame.to_json(tmp_path / "t.json", orient="split")
    assert load_table(tmp_path / "t.json").points["loss"].tolist() == [x for *_, x in ROWS]


def test_the_log_of_hugging_faces_trainer(tmp_path: Path) -> None:
    log = [{"loss": 4.0, "step": 10}, {"eval_loss": 3.9, "step": 10, "num_input_tokens_seen": 1e6},
           {"loss": 3.5, "step": 20}, {"eval_loss": 3.4, "step": 20, "num_input_tokens_seen": 2e6},
           {"train_runtime": 5.0, "step": 20, "total_flos": 1e15}]  # fmt: skip
    path = table(tmp_path, json.dumps({"log_history": log, "epoch": 1.0}), "trainer_state.json")
    sweep = load_table(path)
    assert sweep.points["loss"].tolist() == [3.9, 3.4]
    assert sweep.points["tokens"].tolist() == [1e6, 2e6]
    assert "2 of 5 entries of its log have an evaluation" in sweep.notes[0]


def test_a_chart_of_wandb_is_unfolded(tmp_path: Path) -> None:
    text = ('"tokens","a - val_loss","a - val_loss__MIN","a - val_loss__MAX","b - val_loss"\n'
            "1e6,4,4,4,\n2e6,3.5,3.5,3.5,3.8\n")  # fmt: skip
    points = load_table(table(tmp_path, text)).points
    assert points["run_id"].tolist() == ["a", "a", "b"]
    assert points["loss"].tolist() == [4, 3.5, 3.8]


def test_one_numbering_and_the_unit_in_the_first_lines(tmp_path: Path) -> None:
    """The outlier and the row that is left out carry the numbers that an editor shows."""
    n, d = np.repeat([1e7, 3e7, 1e8, 3e8], 4), np.tile([1e9, 3e9, 1e10, 3e10], 4)
    loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
    loss = loss * np.exp(0.002 * np.random.default_rng(0).standard_normal(16))
    loss[5] *= 1.3
    names = [f"run{i}" for i in range(16)]
    frame = pd.DataFrame({"run": names, "params": n, "tokens": d, "loss": loss}).astype(str)
    frame.loc[9, "loss"] = "bad"
    frame.to_csv(tmp_path / "t.csv", index=False)
    done = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), "--bootstrap", "0"])
    text = " ".join(done.output.split())
    assert done.exit_code == 0, text
    assert "run5: a loss" in text or "run5" in text
    assert "left out: run9, row 11: 'loss' (--loss): 'bad' is not a number" in text
    assert "15 rows; the unit of resampling: 15 runs, a row each" in text[:300]


def test_composite_clusters(tmp_path: Path) -> None:
    n, d = np.repeat([1e7, 3e7, 1e8, 3e8], 4), np.tile([1e9, 3e9, 1e10, 3e10], 4)
    loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
    frame = pd.DataFrame({"N": n, "D": d, "loss": loss, "size": n.astype(int), "seed": 0})
    frame.to_csv(tmp_path / "t.csv", index=False)
    done = CliRunner().invoke(
        app, ["fit", str(tmp_path / "t.csv"), "--bootstrap", "20", "--clusters", "size,seed"]
    )
    assert done.exit_code == 0, done.output
    assert "unit of resampling: 4 values of 'size,seed'" in " ".join(done.output.split())
    wrong = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), "--clusters", "size,x"])
    assert wrong.exit_code == 2


def test_repeated_data_have_their_own_column(tmp_path: Path) -> None:
    text = "params,tokens,loss,distinct\n1e7,1e9,4,5e8\n1e8,1e10,3,5e8\n"
    points = load_table(table(tmp_path, text), unique="distinct").points
    assert points["unique_tokens"].tolist() == [5e8, 5e8]


def test_plain_numbers_take_no_regular_expression(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes a million rows readable; experiments.benchmarks.table_sizes has the time."""
    seen: list[str] = []
    normal = cells._normal
    monkeypatch.setattr(cells, "_normal", lambda cell: seen.append(cell) or normal(cell))
    values = read_cells([*map(str, range(1, 1000)), "7M"], "n", count=True).values
    assert values[-1] == 7e6
    assert seen == ["7M"]


def test_weights_and_noise_are_read_as_the_other_columns_are(tmp_path: Path) -> None:
    cells = ["params;tokens;loss;err;w"]
    for n in (1e6, 2e6, 4e6, 8e6):
        for d in (1e8, 2e8, 4e8):
            loss = f"{1.7 + 400 / n**0.34 + 410 / d**0.28:.6f}".replace(".", ",")
            cells.append(f"{n:.0f};{d:.0f};{loss};0,004;{'many' if len(cells) == 5 else '1,5'}")
    path = table(tmp_path, "\n".join(cells) + "\n")
    points = load_table(path).points
    assert fit_law("chinchilla", points, noise="err").observations.weight.tolist() == (
        pytest.approx((points["loss"].to_numpy() ** 2 / (points["loss"] ** 2).mean()).tolist())
    )
    weighed = fit_law("chinchilla", points, weights="w")
    assert weighed.observations.exclusions["reason"].tolist() == ["w is not a number"]
    assert weighed.params["alpha"] == pytest.approx(0.34, rel=1e-3)
