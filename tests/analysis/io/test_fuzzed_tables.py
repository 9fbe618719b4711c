"""Tables in the notations that people use, whole and damaged: right values or words, nothing else.

A table is made from known numbers, which each column writes in a notation of its own. Whole, it is
read to those numbers or refused in words; damaged (flipped bits, cut, cells that were lost or
exchanged), it is read or refused, and in no case is there a traceback or a long wait.
"""

from __future__ import annotations

import csv
import gzip
import io
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from analysis.errors import AnalysisError
from analysis.fit.fitting import fit_law
from analysis.io.frames import numbers
from analysis.io.tables import load_table
from tests.support.damage import KINDS, damage
from tests.support.worlds import loss_of

SECONDS = 20.0
"""No file of a few rows takes as long, on a busy machine."""
Write = Callable[[float], str]


def _grouped(mark: str) -> Write:
    return lambda x: f"{round(x):,}".replace(",", mark)


def _power(sign: str) -> Write:
    def write(x: float) -> str:
        mantissa, exponent = f"{x:.3e}".split("e")
        return f"{mantissa}{sign}10^{int(exponent)}"

    return write


def _unit(x: float, names: tuple[tuple[float, str], ...], blank: str) -> str:
    factor, name = next((f, n) for f, n in names if x >= f or f == names[-1][0])
    return f"{x / factor:.10g}{blank}{name}"


LETTERS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
WORDS = ((1e12, "trillion"), (1e9, "billion"), (1e6, "million"), (1e3, "thousand"))
COUNTS: dict[str, Write] = {
    "whole": lambda x: f"{round(x)}",
    "float": lambda x: f"{x:.1f}",
    "exponent": lambda x: f"{x:.4e}",
    "Exponent": lambda x: f"{x:.3E}",
    "decimal comma": lambda x: f"{x:.3e}".replace(".", ","),
    "commas": _grouped(","),
    "dots": _grouped("."),
    "blanks": _grouped(" "),
    "narrow blanks": _grouped("\u202f"),
    "underscores": _grouped("_"),
    "apostrophes": _grouped("'"),
    "letters": lambda x: _unit(x, LETTERS, ""),
    "letters apart": lambda x: _unit(x, LETTERS, " "),
    "words": lambda x: _unit(x, WORDS, " "),
    "power": _power("×"),
    "power apart": _power(" x "),
}
LOSSES: dict[str, Write] = {
    "plain": lambda x: f"{x:.4f}",
    "short": lambda x: f"{x:.6g}",
    "exponent": lambda x: f"{x:.5e}",
    "decimal comma": lambda x: f"{x:.4f}".replace(".", ","),
    "with noise": lambda x: f"{x:.4f} ± 0.004",
    "padded": lambda x: f"  {x:.4f} ",
}
SEPARATORS = {",": ".csv", ";": ".csv", "\t": ".tsv", "|": ".txt"}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "latin-1")
ODD = ("nan", "inf", "-1", "0", "1e999", "#REF!", "=1+1", '"', "NULL", "\x00", "9" * 400, "½", "١٢",
       "--5", "1e", "0x10", "True", "1/2")  # fmt: skip
"""What stands in cells where nobody expects it."""
N_NAMES = ("N", "params", "n_params", "model_size", "parameter_count")
D_NAMES = ("D", "tokens", "train_tokens", "token_num", "tokens_seen")
LOSS_NAMES = ("loss", "val_loss", "final_loss", "eval_loss", "cross_entropy")


@dataclass(frozen=True)
class Made:
    """A file and what stands in it."""

    name: str
    data: bytes
    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    how: str


def make(rng: np.random.Generator) -> Made:
    """A table of 4 to 14 runs, three significant digits a count so that every notation is exact."""

    def pick(of: Sequence[str]) -> str:
        return of[int(rng.integers(len(of)))]

    rows = int(rng.integers(4, 15))
    n = np.array([float(f"{x:.2e}") for x in 10 ** rng.uniform(4.5, 10.5, rows)])
    d = np.array([float(f"{x:.2e}") for x in 10 ** rng.uniform(6.5, 12.5, rows)])
    loss = np.round(np.minimum(loss_of(n, d), 9.0), 4)
    style_n, style_d, style_loss = pick(list(COUNTS)), pick(list(COUNTS)), pick(list(LOSSES))
    separator, encoding = pick(list(SEPARATORS)), pick(ENCODINGS)
    columns = {
        pick(N_NAMES): [COUNTS[style_n](x) for x in n],
        pick(D_NAMES): [COUNTS[style_d](x) for x in d],
        pick(LOSS_NAMES): [LOSSES[style_loss](x) for x in loss],
    }
    extra = {
        "run": [f"run-{i}" for i in range(rows)],
        "seed": [str(int(x)) for x in rng.integers(0, 9, rows)],
        "lr": [f"{x:.1e}" for x in 10 ** rng.uniform(-4, -2, rows)],
        "notes": [pick(["", "ok, rerun", "größer", "a;b"]) for _ in range(rows)],
    }
    for name, cells in extra.items():
        if rng.random() < 0.3:
            columns[name] = cells
    names = list(columns)
    rng.shuffle(names)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=pick(["\n", "\r\n"]))
    writer.writerow(names)
    writer.writerows(zip(*(columns[name] for name in names), strict=True))
    data = text.getvalue().encode(encoding, errors="replace")
    name = "t" + SEPARATORS[separator]
    if rng.random() < 0.1:
        name, data = name + ".gz", gzip.compress(data, mtime=0)
    how = f"N {style_n}, D {style_d}, loss {style_loss}, {separator!r}, {encoding}"
    lost = encoding == "latin-1" and "narrow blanks" in (style_n, style_d)
    return make(rng) if lost else Made(name, data, n, d, loss, how)


def hurt(data: bytes, rng: np.random.Generator) -> bytes:
    """Damaged as files are, by machines and by hands."""
    kind, at = int(rng.integers(7)), int(rng.integers(len(data)))
    if kind < KINDS:
        return damage(data, int(kind), at, rng)
    if kind == 3:
        lines = data.split(b"\n")
        rng.shuffle(lines)
        return b"\n".join(lines)
    if kind == 4:
        return data[:at] + ODD[int(rng.integers(len(ODD)))].encode() + data[at:]
    if kind == 5:
        return data.replace(b",", b";", int(rng.integers(1, 9)))
    return data[: len(data) // 2] + data[at:]


def read(path: Path, how: str, *, fits: bool = False) -> str:
    """Load it, and fit a law; an error in words comes back as such, no other may."""
    start = time.monotonic()
    try:
        points = load_table(path).points
    except AnalysisError as error:
        words = str(error)
        assert 0 < len(words) < 2000
        assert "\x1b" not in words
        return words
    except Exception as error:
        error.add_note(how)
        raise
    assert time.monotonic() - start < SECONDS, how
    if fits:
        try:
            fit = fit_law("chinchilla", points)
            assert all(np.isfinite(value) for value in fit.params.values())
        except AnalysisError:
            pass
        except Exception as error:
            error.add_note(how)
            raise
    return ""


def fuzz(folder: Path, rounds: int, seed: int) -> Counter[str]:
    """So many tables, half of them damaged; what became of the whole ones."""
    found: Counter[str] = Counter()
    for number in range(rounds):
        rng = np.random.default_rng((seed, number))
        made = make(rng)
        how = f"seed {seed}, round {number}: {made.how}"
        path = folder / made.name
        if number % 2:
            path.write_bytes(hurt(made.data, rng))
            read(path, how, fits=True)
            continue
        path.write_bytes(made.data)
        words = read(path, how)
        if words:
            found["refused"] += 1
            found[words[:60]] += 1
            continue
        points = load_table(path).points
        for name, true in (("n_params", made.n), ("tokens", made.d), ("loss", made.loss)):
            np.testing.assert_allclose(numbers(points, name), true, rtol=2e-5, err_msg=how)
        found["read"] += 1
    return found


def test_tables_are_read_right_or_refused(tmp_path: Path) -> None:
    found = fuzz(tmp_path, 120, seed=0)
    assert found["read"] > 5 * found["refused"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_tables_are_read_right_or_refused(tmp_path: Path, seed: int) -> None:
    found = fuzz(tmp_path, 5000, seed=seed)
    assert found["read"] > 5 * found["refused"]
