"""Anybody's tables: which column is taken for what, in which unit, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.io.tables import load_table
from analysis.units import PFLOP_S_DAY

N = np.repeat([1e7, 3e7, 1e8, 3e8], 4)
D = np.tile([1e9, 3e9, 1e10, 3e10], 4)
LOSS = 1.7 + 400 / N**0.34 + 410 / D**0.28


def save(path: Path, **columns: object) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("names", "factors"),
    [
        (("params", "tokens", "flops"), (1, 1, 1)),
        (("N", "D", "C"), (1, 1, 1)),
        (("Model Size", "training_tokens", "Training FLOP"), (1, 1, 1)),
        (("params_m", "tokens_b", "compute_pf_days"), (1e6, 1e9, PFLOP_S_DAY)),
        (("Parameters (M)", "Tokens [B]", "c"), (1e6, 1e9, 1)),
    ],
)
def test_columns_are_guessed_with_their_unit(
    tmp_path: Path, names: tuple[str, str, str], factors: tuple[float, float, float]
) -> None:
    true = (N, D, 6 * N * D)
    columns = {k: v / f for k, v, f in zip(names, true, factors, strict=True)}
    sweep = load_table(save(tmp_path / "t.csv", **columns, final_loss=LOSS))
    for key, values in zip(("n_params", "tokens", "flops"), true, strict=True):
        np.testing.assert_allclose(sweep.points[key], values, rtol=1e-12)
    for name, factor in zip(names, factors, strict=True):
        assert repr(name) in sweep.conventions
        if factor != 1:
            assert f"{name!r} x {factor:g} (guessed)" in sweep.conventions
    assert sweep.points["arch"].unique().tolist() == ["all"]


def test_named_columns_and_factors_win(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", size=N / 1e6, tok=D / 1e9, val_loss=9.0, mine=LOSS, arch="x")
    sweep = load_table(path, loss="mine", params="size*1e6", tokens="tok*1e9")
    np.testing.assert_allclose(sweep.points["n_params"], N)
    np.testing.assert_allclose(sweep.points["tokens"], D)
    np.testing.assert_array_equal(sweep.points["loss"], LOSS)
    assert "(guessed)" not in sweep.conventions
    assert sweep.points["arch"].unique().tolist() == ["x"]
    assert any("'arch' (guessed)" in note for note in sweep.notes)
    assert load_table(path, params="size", group="").points["arch"].unique().tolist() == ["all"]


def test_capital_n_is_the_model_size(tmp_path: Path) -> None:
    sweep = load_table(save(tmp_path / "t.csv", n=np.arange(16), N=N, D=D, loss=LOSS))
    np.testing.assert_array_equal(sweep.points["n_params"], N)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    names = [f"r{i}" for i in range(16)]
    frame = pd.DataFrame({"params": N, "tokens": D, "loss": LOSS, "run": names})
    path = tmp_path / f"t{suffix}"
    match suffix:
        case ".json":
            frame.to_json(path, orient="records", double_precision=15)
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True, double_precision=15)
        case _:
            frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    points = load_table(path).points
    np.testing.assert_allclose(points["loss"], LOSS, rtol=1e-12)
    assert points["run_id"].tolist() == names


def test_a_table_can_be_fitted_and_bad_rows_say_why(tmp_path: Path) -> None:
    loss: list[object] = [*LOSS]
    loss[3], loss[5] = "diverged", -1.0
    sweep = load_table(save(tmp_path / "t.csv", params=N, tokens=D, loss=loss))
    assert sweep.points["run_id"].tolist()[:2] == ["row 2", "row 3"]  # as a spreadsheet counts
    fit = fit_law("chinchilla", sweep.points)
    assert fit.params["alpha"] == pytest.approx(0.34, rel=1e-5)
    assert sorted(fit.observations.exclusions["row"].tolist()) == [3, 5]


def test_errors_name_the_column_and_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path / "t.csv", params=N, tokens=D, final_loss=LOSS)
    with pytest.raises(AnalysisError, match=r"no column 'final_los'.*did you mean 'final_loss'\?"):
        load_table(path, loss="final_los")
    with pytest.raises(AnalysisError, match=r"factor in 'tokens\*x' must be a positive number"):
        load_table(path, tokens="tokens*x")
    with pytest.raises(AnalysisError, match=r"factor in 'tokens\*-1'"):
        load_table(path, tokens="tokens*-1")
    with pytest.raises(AnalysisError, match=r"no loss column among .*--loss"):
        load_table(save(tmp_path / "u.csv", params=N, tokens=D, y=LOSS))
    with pytest.raises(AnalysisError, match=r"no column for parameters, tokens or compute"):
        load_table(save(tmp_path / "v.csv", a=N, loss=LOSS))
    with pytest.raises(AnalysisError, match=r"does not exist; give a CSV"):
        load_table(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(AnalysisError, match=r"empty.csv is empty"):
        load_table(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("params,tokens,loss\n")
    with pytest.raises(AnalysisError, match=r"has no rows"):
        load_table(tmp_path / "header.csv")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n1,2,3,4\n")
    with pytest.raises(AnalysisError, match=r"cannot be read as a table"):
        load_table(tmp_path / "ragged.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(AnalysisError, match=r"binary.csv is not UTF-8 text; save it as a CSV"):
        load_table(tmp_path / "binary.csv")


def test_public_tables_are_understood(shared_data: Path) -> None:
    chinchilla = load_table(shared_data / "chinchilla_epoch" / "svg_extracted_data.csv")
    assert len(chinchilla.points) == 245
    assert "'Model Size'" in chinchilla.conventions
    assert "'Training FLOP'" in chinchilla.conventions
    olmo = load_table(shared_data / "olmo_ladder" / "ladder_c4.csv")
    assert olmo.points["n_params"].max() > 1e9


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "messy.csv"
    path.write_text(text)
    return path


def test_units_in_cells_are_read_and_said(tmp_path: Path) -> None:
    path = written(tmp_path, "Model Size,Tokens (B),Final Loss\n70M,5,3.1\n1.4B,20,2.5\nbig,1,2\n")
    sweep = load_table(path)
    np.testing.assert_array_equal(sweep.points["n_params"], [70e6, 1.4e9, np.nan])
    np.testing.assert_array_equal(sweep.points["tokens"], [5e9, 20e9, 1e9])
    assert "'Model Size': 70M read as 7e+07" in sweep.notes
    assert "'Tokens (B)' x 1e+09 (guessed)" in sweep.conventions


def test_thousands_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, 'params,tokens,loss\n"70,000,000",5e9,3.1\n"1,400",6e9,2.5\n')
    np.testing.assert_array_equal(load_table(path).points["n_params"], [70e6, 1400])


def test_units_in_cells_and_in_the_name_are_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "params,tokens_b,loss\n1e8,5B,3.1\n")
    with pytest.raises(AnalysisError, match=r"units in its cells \('5B'\) and in its name"):
        load_table(path)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_and_decimal_commas(tmp_path: Path, separator: str) -> None:
    rows = [("params", "tokens", "loss"), ("7e7", "5e9", "3,125"), ("1e9", "2,5e9", "2,5")]
    path = written(tmp_path, "\n".join(separator.join(row) for row in rows) + "\n")
    sweep = load_table(path)
    np.testing.assert_array_equal(sweep.points["loss"], [3.125, 2.5])
    np.testing.assert_array_equal(sweep.points["tokens"], [5e9, 2.5e9])
    assert f"columns are separated by {separator!r}" in sweep.notes
    assert "'loss': a comma marks decimals" in sweep.notes


def test_a_loss_has_no_unit(tmp_path: Path) -> None:
    path = written(tmp_path, "params,tokens,loss\n1e8,5e9,3.1M\n1e9,5e9,2.5\n")
    np.testing.assert_array_equal(load_table(path).points["loss"], [np.nan, 2.5])


def test_a_row_given_twice_counts_once_and_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, "params,tokens,loss\n1e8,5e9,3.1\n1e9,5e9,2.5\n1e8,5e9,3.1\n")
    sweep = load_table(path)
    assert len(sweep.points) == 2
    assert sweep.exclusions.to_dict("records")[0]["run_id"] == "row 4"
    assert sweep.exclusions["reason"].tolist() == ["identical to an earlier row"]


LINES = [f"{n:g},{d:g},{loss!r}" for n, d, loss in zip(N, D, LOSS.tolist(), strict=True)]


def test_a_separator_at_the_end_of_lines_shifts_no_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("N,D,loss\n" + "".join(f"{line},\n" for line in LINES))
    points = load_table(path).points
    np.testing.assert_allclose(points["n_params"], N)
    np.testing.assert_array_equal(points["loss"], LOSS)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", "".join(["N,D,loss\n", *(f"{line},7\n" for line in LINES)]).encode(),
         "rows have more fields than the header has names"),
        ("t.csv", b"N,D,loss\n1,2,3\n1,2,3,4\n", "Expected 3 fields in line 3, saw 4"),
        ("t.csv", b"", "t.csv is empty"),
        ("t.csv", "N,D,loss\n".encode("utf-16"), "not UTF-8 text; save it as a CSV in UTF-8"),
        ("t.csv", "".join(f"{line}\n" for line in LINES).encode(),
         "first line of the file holds the names"),
        ("t.xlsx", b"PK", "is not text: save the table as CSV"),
        ("t.json", b"5", "cannot be read as a table"),
    ],
)  # fmt: skip
def test_files_that_are_no_table(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AnalysisError, match=message):
        load_table(tmp_path / name)


def test_empty_cells_are_neither_a_group_nor_a_run(tmp_path: Path) -> None:
    group = ["x"] * 15 + [None]
    runs = [None, None, *(f"r{i}" for i in range(14))]
    sweep = load_table(save(tmp_path / "t.csv", N=N, D=D, loss=LOSS, arch=group, run=runs))
    assert sweep.points["arch"].unique().tolist() == ["x"]
    assert sweep.exclusions["reason"].tolist() == ["no value in 'arch', which tells laws apart"]
    assert sweep.points["run_id"].tolist()[:3] == ["row 2", "row 3", "r0"]
    assert "rows of one run, resampled together = 'run' (guessed)" in sweep.notes
