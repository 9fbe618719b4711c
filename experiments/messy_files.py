"""Tables as people keep them: small made-up files, each messy in its own way.

`MESSY` is what `experiments.messy_tables` reads and docs/messy_tables.md shows. All hold the same
four runs where nothing else is the matter: N from 1e7 to 3e8, D from 1e9 to 3e10, loss 4.1 to 2.8.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

N = ("1e7", "3e7", "1e8", "3e8")
D = ("1e9", "3e9", "1e10", "3e10")
LOSS = ("4.1", "3.6", "3.1", "2.8")


@dataclass(frozen=True)
class Messy:
    """One file."""

    about: str
    """What is messy."""
    data: bytes
    name: str = "runs.csv"
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of `load_table`."""


def rows(separator: Any = ",", **columns: Sequence[str]) -> str:
    """A table of columns by name, cells quoted where they hold the separator, a text."""

    def cell(text: str) -> str:
        return f'"{text}"' if separator in text else text

    lines = [separator.join(columns)]
    lines += [separator.join(cell(c) for c in row) for row in zip(*columns.values(), strict=True)]
    return "\n".join(lines) + "\n"


def _file(about: str, text: str, name: str = "runs.csv", **options: Any) -> Messy:
    return Messy(about, text.encode(), name, options)


def _cells(about: str, role: str, cells: Sequence[str]) -> Messy:
    """The four runs with other cells in one column."""
    found = {"params": N, "tokens": D, "loss": LOSS} | {role: tuple(cells)}
    return _file(about, rows(**found))


def _header(about: str, header: str, *parts: Sequence[str]) -> Messy:
    names = header.split(",")
    return _file(about, rows(**dict(zip(names, parts or (N, D, LOSS), strict=True))))


PLAIN = rows(params=N, tokens=D, loss=LOSS)
_FRAME = pd.DataFrame({"params": [1e7, 3e7, 1e8, 3e8], "tokens": [1e9, 3e9, 1e10, 3e10],
                       "loss": [4.1, 3.6, 3.1, 2.8]})  # fmt: skip
_STATES = ("finished", "failed", "crashed", "running")
_TRAINER = {
    "log_history": [
        {"loss": 4.0, "step": 10},
        *({"eval_loss": x, "step": s, "num_input_tokens_seen": s * 1e5}
          for x, s in ((3.9, 10), (3.4, 20), (3.1, 30), (3.0, 40))),
    ]
}  # fmt: skip


def _with(**columns: Sequence[str]) -> str:
    return rows(params=N, tokens=D, loss=LOSS, **columns)


def _as_bytes(write: Any) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _log() -> str:
    lines = [f"{n:g},{d * 1e8:g},{3 + 1 / (d + k):.4f},{d * 100}"
             for k, n in enumerate((1e7, 2e7, 4e7)) for d in range(1, 13)]  # fmt: skip
    return "params,tokens,loss,_step\n" + "\n".join(lines) + "\n"


def _schedule() -> str:
    """Three lengths of one size, each logged on its way at a rate that had not come down."""
    lines = [
        f"r{i},1e7,{d:g},{2 + 40 / d**0.14 + 0.1 * (1 - k / 4):.4f},{1 - k / 5:g}"
        for i, end in enumerate((1e9, 2e9, 4e9)) for k in (1, 2, 3, 4) for d in (end * k / 4,)
    ]  # fmt: skip
    return "run,N,D,loss,lr\n" + "\n".join(lines) + "\n"


def _sweep() -> str:
    lines = [f"{n},{d},{float(x) + 0.05 * k:.2f},{lr}"
             for n, d, x in zip(N, D, LOSS, strict=True)
             for k, lr in enumerate(("1e-3", "3e-3", "1e-2"))]  # fmt: skip
    return "params,tokens,loss,lr\n" + "\n".join(lines) + "\n"


_CELLS = [
    _cells("sizes with units", "params", ("10M", "30M", "100M", "0.3B")),
    _cells("tokens in words", "tokens", ("1 billion", "3 billion", "10 billion", "30 billion")),
    _cells("tokens with G", "tokens", ("1G", "3G", "10G", "30G")),
    _cells("a unit and a word", "params", ("1e7 params", "3e7 params", "1e8 params", "3e8 params")),
    _cells(
        "commas in thousands", "params", ("10,000,000", "30,000,000", "100,000,000", "300,000,000")
    ),
    _cells(
        "blanks in thousands", "params", ("10 000 000", "30 000 000", "100 000 000", "300 000 000")
    ),
    _cells("thin blanks", "params", ("10\u202f000\u202f000", "3e7", "1e8", "3e8")),
    _cells(
        "dots in thousands", "params", ("10.000.000", "30.000.000", "100.000.000", "300.000.000")
    ),
    _cells("underscores", "params", ("10_000_000", "30_000_000", "100_000_000", "300_000_000")),
    _cells("apostrophes", "params", ("10'000'000", "30'000'000", "100'000'000", "300'000'000")),
    _cells("powers of ten", "tokens", ("1×10^9", "3×10^9", "10^10", "3×10^10")),
    _cells("programmers' powers", "tokens", ("1*10**9", "3*10**9", "10**10", "3*10**10")),
    _cells("quoted losses with a comma", "loss", ("5,088", "4,917", "4,502", "4,101")),
    _cells("decimal commas", "loss", ("4,1", "3,6", "3,1", "2,8")),
    _cells("a comma and a dot among losses", "loss", ("4,100", "3.6", "3.1", "2.8")),
    _cells(
        "thousands and decimals in a column", "tokens", ("1,000,000,000", "3,5", "1e10", "3e10")
    ),
    _cells("dots as thousands and as decimals", "params", ("10.000.000", "1.5", "1e8", "3e8")),
    _cells("loss with its noise", "loss", ("4.1 ± 0.004", "3.6 ± 0.004", "3.1 ± 0.003", "2.8")),
    _cells("noise as +/-", "loss", ("4.1 +/- 0.004", "3.6 +/- 0.004", "3.1 +/- 0.003", "2.8")),
    _cells("losses with nats", "loss", ("4.1 nats", "3.6 nats", "3.1 nats", "2.8 nats")),
    _cells("perplexities as loss", "loss", ("60.3", "36.6", "22.2", "16.4")),
    _cells("one perplexity", "loss", ("4.1", "3.6", "22.2", "2.8")),
    _cells("perplexities on both sides of 15", "loss", ("30", "17", "12", "9")),
    _file(
        "a column called perplexity", rows(params=N, tokens=D, perplexity=("60", "37", "22", "16"))
    ),
    _cells("raised powers of ten", "tokens", ("1·10⁹", "3·10⁹", "10¹⁰", "3×10¹⁰")),
    _cells("a loss of NaN", "loss", ("4.1", "nan", "3.1", "2.8")),
    _cells("an infinite loss", "loss", ("4.1", "inf", "3.1", "2.8")),
    _cells("empty cells", "loss", ("4.1", "", "3.1", "2.8")),
    _cells("dashes for missing", "loss", ("4.1", "-", "3.1", "2.8")),
    _cells("#N/A of a spreadsheet", "loss", ("4.1", "#N/A", "3.1", "2.8")),
    _cells("words for a number", "params", ("1e7", "small", "1e8", "3e8")),
    _cells("about", "params", ("~1e7", "3e7", "1e8", "3e8")),
    _cells("a question mark", "params", ("1e7?", "3e7", "1e8", "3e8")),
    _cells("a range", "params", ("1e7-2e7", "3e7", "1e8", "3e8")),
    _cells("two units", "params", ("10M M", "3e7", "1e8", "3e8")),
    _cells("groups of two digits", "params", ("1,00,00,000", "3e7", "1e8", "3e8")),
    _cells("typographic minus", "loss", ("\u22124.1", "3.6", "3.1", "2.8")),
]
_COLUMNS = [
    _header("units in the header", "Params (M),tokens_b,loss", ("10", "30", "100", "300"),
            ("1", "3", "10", "30"), LOSS),
    _header("brackets in the header", "N [params],D [tokens],loss [nats]"),
    _header("units in header and cells", "params_m,tokens,loss", ("10M", "30M", "100M", "300M"), D,
            LOSS),
    _header("prefixes of a tracker", "config.model.n_params,summary.total_tokens,eval/loss"),
    _header("names of MLflow", "params.parameter_count,params.token_num,metrics.cd_val_loss"),
    _header("names of Hugging Face", "num_parameters,num_input_tokens_seen,eval_loss"),
    _header("capitals", "PARAMS,Tokens,Val_Loss"),
    _header("n and N", "N,n,D,loss", N, ("4", "4", "4", "4"), D, LOSS),
    _header("names nobody knows", "breadth,corpus_size,score"),
    _file("a name given wrongly", PLAIN, params="parms"),
    _file("a factor given", rows(size=("10", "30", "100", "300"), tokens=D, loss=LOSS),
          params="size*1e6"),
    _file("a corpus named data", _with(data=("c4",) * 4)),
    _file("a budget in words", _with(budget=("large",) * 4)),
    _file("compute in PF-days", rows(compute_pf_days=("0.1", "1", "10", "100"), loss=LOSS)),
    _header("compute alone", "C,loss", ("1e17", "1e18", "1e19", "1e20"), LOSS),
    _header("no loss", "params,tokens", N, D),
    _header("loss alone", "name,loss", ("a", "b", "c", "d"), LOSS),
    _header("training and validation loss", "params,tokens,train_loss,val_loss", N, D, LOSS,
            ("4.2", "3.7", "3.2", "2.9")),
    _file("two columns of one name", "params,tokens,loss,loss\n1e7,1e9,4.1,4.2\n3e7,3e9,3.6,3.7\n"),
]  # fmt: skip
_ROWS = [
    _file("states of runs", _with(state=_STATES)),
    _file("states with capitals", _with(State=tuple(s.upper() for s in _STATES))),
    _file("the status of a job", _with(job_status=("COMPLETED", "TIMEOUT", "COMPLETED", "OOM"))),
    _file("yes and no of diverged", _with(diverged=("False", "True", "False", "False"))),
    _file("yes and no of finished", _with(finished=("1", "1", "0", "1"))),
    _file("a status of another kind", _with(status=("open", "closed", "open", "open"))),
    _file("a run twice", PLAIN + f"{N[3]},{D[3]},{LOSS[3]}\n"),
    _file("a log without a column of runs", _log()),
    _file("a sweep over learning rates", _sweep()),
    _file("the best of such a sweep", _sweep(), best_per="N,D"),
    _file("repeated epochs", _with(epochs=("1", "2", "4", "8"))),
    _file("active and total parameters", rows(total_params=("4e7", "12e7", "4e8", "12e8"),
                                              active_params=N, tokens=D, loss=LOSS)),
    _file("a group called NA", _with(arch=("NA", "NA ", " NA", ""))),
    _file("blanks around cells", PLAIN.replace(",", " , ")),
    _file("empty lines", PLAIN.replace("\n", "\n\n")),
    _file("empty lines and a failed run",
          _with(state=("finished", "failed", "finished", "finished")).replace("\n", "\n\n")),
    _file("comments above", "# made by hand\n# on a Monday\n" + PLAIN),
    _file("a header as NumPy writes it", "# " + PLAIN),
    _file("checkpoints of runs under a schedule", _schedule()),
    _file("a header alone", "params,tokens,loss\n"),
    _file("nothing", ""),
    _file("more fields than names", "params,tokens,loss\n1e7,1e9,4.1,x\n3e7,3e9,3.6,y\n"),
    _file("a comma at the end of lines", PLAIN.replace("\n", ",\n").replace("loss,", "loss", 1)),
]  # fmt: skip
_FORMATS = [
    _file("semicolons and decimal commas",
          rows(";", params=("500,000", "1,250,000"), tokens=("1e9", "3e9"), loss=("3,5", "3,25"))),
    _file("tabs", PLAIN.replace(",", "\t"), "runs.tsv"),
    _file("bars", PLAIN.replace(",", "|")),
    Messy("UTF-16 of a spreadsheet", PLAIN.encode("utf-16")),
    Messy("a byte order mark", PLAIN.encode("utf-8-sig")),
    Messy("Latin-1", _with(name=("größe",) * 4).encode("latin-1")),
    Messy("gzip", gzip.compress(PLAIN.encode(), mtime=0), "runs.csv.gz"),
    Messy("bzip2", bz2.compress(PLAIN.encode()), "runs.csv.bz2"),
    Messy("xz", lzma.compress(PLAIN.encode()), "runs.csv.xz"),
    Messy("a gzip file cut off", gzip.compress(PLAIN.encode(), mtime=0)[:-9], "runs.csv.gz"),
    Messy("parquet", _as_bytes(_FRAME.to_parquet), "runs.parquet"),
    Messy("feather", _as_bytes(_FRAME.to_feather), "runs.feather"),
    Messy("a text called parquet", PLAIN.encode(), "runs.parquet"),
    _file("JSON lines", str(_FRAME.to_json(orient="records", lines=True)), "runs.ndjson"),
    _file("JSON with a number for a record", "[1, 2]", "runs.json"),
    _file("trainer_state.json", json.dumps(_TRAINER), "trainer_state.json"),
    _file("JSON of columns and data", json.dumps(
        {"columns": ["params", "tokens", "loss"],
         "data": [[*map(float, row)] for row in zip(N, D, LOSS, strict=True)]}), "runs.json"),
    _file("a chart of W&B", '"tokens","a - val_loss","a - val_loss__MIN","b - val_loss"\n'
          "1e6,4,4,\n2e6,3.5,3.5,3.8\n"),
]  # fmt: skip
MESSY = {"Cells": _CELLS, "Columns": _COLUMNS, "Rows": _ROWS, "Formats": _FORMATS}
"""Files by what is messy in them."""
