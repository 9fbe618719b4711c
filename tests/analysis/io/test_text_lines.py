"""Row numbers are those an editor shows, whatever stands between the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.cli.commands import app
from analysis.io.tables import load_table

ROWS = ["N,D,loss", "1e7,1e9,4.1", "3e7,3e9,3.6", "1e8,1e10,3.1"]


def _numbers(tmp_path: Path, text: str, name: str = "t.csv") -> list[int]:
    (tmp_path / name).write_text(text)
    return load_table(tmp_path / name).points.index.tolist()


@pytest.mark.parametrize(
    ("lines", "numbers"),
    [
        (ROWS, [2, 3, 4]),
        (["", *ROWS[:2], "", "  ", *ROWS[2:]], [3, 6, 7]),
        (["# made by hand", *ROWS], [3, 4, 5]),
        (["# made by hand", "# N,D,loss", *ROWS[1:]], [3, 4, 5]),  # numpy.savetxt
        (['N,D,loss,note', '1e7,1e9,4.1,"two', 'lines"', "3e7,3e9,3.6,"], [2, 4]),
        (['N,D,loss,note', '"1e7",1e9,4.1,a', "", "3e7,3e9,3.6,"], [2, 4]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_carry_the_numbers_of_their_lines(
    tmp_path: Path, lines: list[str], numbers: list[int], end: str
) -> None:
    (tmp_path / "t.csv").write_bytes(end.join([*lines, ""]).encode())
    assert load_table(tmp_path / "t.csv").points.index.tolist() == numbers


def test_json_lines_count_blank_ones_too(tmp_path: Path) -> None:
    rows = [f'{{"N": {n}, "D": 1e9, "loss": 3}}' for n in (1e7, 2e7)]
    assert _numbers(tmp_path, f"\n{rows[0]}\n\n{rows[1]}\n", "t.jsonl") == [2, 4]


def test_one_numbering_in_a_whole_output(tmp_path: Path) -> None:
    """The row that failed and the one that diverged, in a file with blank lines."""
    grid = [(n, d) for n in (1e7, 3e7, 1e8, 3e8) for d in (1e9, 3e9, 1e10, 3e10)]
    lines = [f"r{i},{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28},finished"
             for i, (n, d) in enumerate(grid)]  # fmt: skip
    lines[3] = lines[3].replace("finished", "failed")
    lines[9] = "r9,1e8,3e9,9.5,finished"
    text = "\n".join(["run,N,D,loss,state", *lines[:2], "", *lines[2:6], "", *lines[6:], ""])
    (tmp_path / "t.csv").write_text(text)
    places = {name: 1 + text.split("\n").index(line)
              for name, line in (("r3", lines[3]), ("r9", lines[9]))}  # fmt: skip
    done = CliRunner().invoke(app, ["fit", str(tmp_path / "t.csv"), "--bootstrap", "0"])
    shown = " ".join(done.output.split())
    assert done.exit_code == 0, shown
    assert f"left out: r3, row {places['r3']}: state is failed" in shown
    assert f"(r9, row {places['r9']})" in shown
    assert (places["r3"], places["r9"]) == (6, 13)
