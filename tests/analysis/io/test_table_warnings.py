"""What rows show by themselves: repeated data, experts, sweeps, several columns of one name."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.errors import AnalysisError
from analysis.io.tables import load_table


def _notes(tmp_path: Path, text: str) -> tuple[list[str], dict[str, list[float]]]:
    (tmp_path / "t.csv").write_text(text)
    sweep = load_table(tmp_path / "t.csv")
    return sweep.notes, {str(c): sweep.points[c].tolist() for c in sweep.points}


def test_epochs_above_one_are_repeated_data(tmp_path: Path) -> None:
    notes, points = _notes(tmp_path, "N,D,epochs,loss\n1e7,1e9,1,4\n1e7,4e9,4,3.5\n1e8,8e9,8,3\n")
    assert points["unique_tokens"] == [1e9, 1e9, 1e9]
    (note,) = [n for n in notes if "data_constrained" in n]
    assert note.startswith("2 row(s) read their data up to 8 times; unique tokens = D / 'epochs'")
    notes, _ = _notes(tmp_path, "N,D,unique_tokens,loss\n1e7,1e9,1e9,4\n1e7,4e9,1e9,3.5\n")
    assert any(n.startswith("1 row(s) read their data up to 4 times") for n in notes)
    notes, points = _notes(tmp_path, "N,D,epochs,loss\n1e7,1e9,1,4\n1e8,4e9,1,3.5\n")
    assert "unique_tokens" not in points
    assert not any("data_constrained" in n for n in notes)


def test_a_mixture_of_experts_is_said(tmp_path: Path) -> None:
    notes, _ = _notes(tmp_path, "total_params,active_params,tokens,loss\n4e7,1e7,1e9,4\n"
                                "4e8,5e7,4e9,3\n")  # fmt: skip
    (note,) = [n for n in notes if "mixture of experts" in n]
    assert "total parameters are up to 8 times the active ones, which are N" in note
    assert "--form experts" in note
    dense, _ = _notes(tmp_path, "total_params,active_params,tokens,loss\n1e7,1e7,1e9,4\n"
                                "1e8,1e8,4e9,3\n")  # fmt: skip
    assert not any("experts" in n for n in dense)


@pytest.mark.parametrize("name", ["lr", "optim.learning_rate", "global batch size"])
def test_settings_that_are_swept(tmp_path: Path, name: str) -> None:
    rows = "".join(f"{n},1e9,{lr},{3 + i / 10}\n" for n in (1e7, 1e8)
                   for i, lr in enumerate((1, 2, 3)))  # fmt: skip
    notes, _ = _notes(tmp_path, f"N,D,{name},loss\n{rows}")
    swept = [n for n in notes if "a sweep" in n]
    assert bool(swept) == (not name.startswith("optim."))  # a nested name is somebody's own


def test_one_rate_a_size_is_no_sweep(tmp_path: Path) -> None:
    notes, _ = _notes(tmp_path, "N,D,lr,loss\n1e7,1e9,1e-3,4\n1e8,1e9,3e-4,3\n1e8,2e9,3e-4,2.9\n")
    assert not any("a sweep" in n for n in notes)


def test_two_columns_of_one_name_are_said(tmp_path: Path) -> None:
    notes, points = _notes(tmp_path, "N,D,loss,loss\n1e7,1e9,4,5\n1e8,1e9,3,4\n")
    assert "2 columns are called 'loss': the first is taken" in notes
    assert points["loss"] == [4.0, 3.0]


def test_losses_of_corpora_are_found_and_listed_where_there_are_several(tmp_path: Path) -> None:
    one = "params,tokens,eval/c4_en-validation/CrossEntropyLoss\n1e7,1e9,4\n1e8,4e9,3\n"
    _, points = _notes(tmp_path, one)
    assert points["loss"] == [4.0, 3.0]
    two = one.replace("\n", ",eval/wiki/CrossEntropyLoss\n", 1).replace("9,4\n", "9,4,5\n")
    with pytest.raises(AnalysisError, match="it may be one of eval/c4_en-validation/CrossEntropy"):
        _notes(tmp_path, two.replace("9,3\n", "9,3,4\n"))
