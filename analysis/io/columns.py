"""Which column of a table is what: named by the caller, or guessed from its name and its cells.

    choose(frame, {"loss": None, "n_params": "size*1e6", ...}) -> {"loss": Column, ...}

`NAME*FACTOR` scales a column; a unit in the name (tokens_b, PF-days) is applied by itself. A guess
needs a known name and cells that are mostly numbers. Names are compared in lower case with
punctuation as `_`, also without what trackers put before them (`config.`, `metrics.`, `eval/`).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.errors import AnalysisError
from analysis.io.cells import Cells, read_cells
from analysis.units import PFLOP_S_DAY
from linscale.texts import quote

NAMES = {
    "loss": (
        "loss", "loss_nats", "val_loss", "validation_loss", "valid_loss", "final_loss",
        "final_val_loss", "eval_loss", "test_loss", "cd_val_loss", "val_loss_epoch", "raw_loss",
        "cross_entropy", "xent", "ce_loss", "lm_loss", "nll", "train_loss", "training_loss",
        "final_train_loss", "train_ce_loss", "train_loss_epoch", "smooth_loss", "smoothed_loss",
    ),
    "n_params": (
        "active_params", "params_active", "n_active", "active_parameters", "n_params_active",
        "params_active_precise",
        "n_params", "params", "parameters", "n", "model_size", "num_params", "size_params",
        "n_non_embedding", "non_embedding_params", "param_count", "parameter_count", "nparams",
        "n_parameters", "num_parameters", "model_params", "model_n_params", "model_num_params",
        "total_params", "params_total", "model_parameters", "num_params_non_embedding",
        "model_num_parameters", "trainable_params", "n_opt", "n_star", "optimal_params",
        "optimal_n",
    ),
    "tokens": (
        "tokens", "d", "n_tokens", "n_tok", "toks", "train_tokens", "training_tokens",
        "num_tokens", "tokens_seen",
        "total_tokens", "token_num", "token_count", "tokens_total", "consumed_tokens",
        "tokens_trained", "tokens_consumed", "num_input_tokens_seen", "throughput_total_tokens",
        "train_total_tokens", "dataset_size", "d_opt", "d_star", "optimal_tokens", "optimal_d",
        "data",
    ),
    "flops": (
        "flops", "c", "compute", "training_flop", "training_flops", "train_flops", "flop",
        "total_flops", "total_flos", "flops_total", "train_flops_total", "budget",
    ),
    "total_params": (
        "total_params", "params_total", "n_total", "total_parameters", "n_params_total", "n_params",
        "params", "parameters", "num_params", "parameter_count",
    ),
    "bits": ("bits", "weight_bits", "precision_bits", "bits_per_weight", "precision"),
    "share": ("share", "source_share", "mixture_share", "fraction_of_source"),
    "unique_tokens": ("unique_tokens", "u", "num_unique_tokens", "unique_data"),
    "group": ("arch", "architecture", "group", "model_family", "family", "model_type"),
    "run_id": ("run_id", "run", "run_name", "experiment_id", "run_uuid", "id", "name"),
    "state": ("state", "run_state", "run_status", "status"),
    "step": ("step", "global_step", "trainer_global_step", "iteration", "iter", "iterations",
             "steps", "epoch"),
}  # fmt: skip
"""Names that a column may go by, best first."""
COUNTS = ("n_params", "tokens", "flops", "unique_tokens", "total_params")
"""What may carry a unit."""
PLAIN = ("bits", "share")
"""Further numbers."""
OPTIONS = {
    "loss": "--loss", "n_params": "--params", "tokens": "--tokens", "flops": "--compute",
    "unique_tokens": "--unique", "group": "--group", "run_id": "--runs",
    "total_params": "--total", "bits": "--bits", "share": "--share",
}  # fmt: skip
LABELS = {
    "loss": "loss", "n_params": "N (parameters)", "tokens": "D (tokens)", "flops": "C (FLOPs)",
    "unique_tokens": "U (unique tokens)", "group": "group", "run_id": "runs",
    "total_params": "total parameters", "bits": "bits of the weights", "share": "share of a source",
}  # fmt: skip
_SUFFIXES = {
    "_k": 1e3, "_b": 1e9, "_bn": 1e9, "_billion": 1e9, "_billions": 1e9, "_m": 1e6,
    "_million": 1e6, "_millions": 1e6, "_t": 1e12, "_trillion": 1e12, "_pflops_days": PFLOP_S_DAY,
    "_pf_days": PFLOP_S_DAY, "_pflop_s_days": PFLOP_S_DAY, "_pfdays": PFLOP_S_DAY,
    "_b_tokens": 1e9, "_b_params": 1e9, "_m_tokens": 1e6, "_m_params": 1e6, "_t_tokens": 1e12,
    "_params": 1.0, "_tokens": 1.0, "_flops": 1.0, "_nats": 1.0, "_in_nats": 1.0,
}  # fmt: skip
_LOSSES = ("loss", "val_loss", "eval_loss", "ce_loss", "crossentropyloss", "cross_entropy_loss",
           "cross_entropy", "nll")  # fmt: skip
"""Last parts of a path that name a loss."""
_LONG = 6
"""Letters from which a name counts without what joins its words, too: ModelSize, trainTokens."""
_BEFORE = re.compile(
    r"^(?:_|(?:config|configs|metrics?|summary|params?|tags?|attributes?|eval|hparams?)[./: ]+)+"
)


@dataclass(frozen=True)
class Column:
    """A column that was chosen."""

    name: str
    factor: float = 1.0
    guessed: bool = False

    def describe(self, key: str) -> str:
        """What it is, its factor and whether it was guessed, in a few words."""
        scale = "" if self.factor == 1 else f" x {self.factor:g}"
        guess = " (guessed)" if self.guessed else ""
        label = "N (active parameters)" if key == "n_params" and _of_experts(self) else LABELS[key]
        return f"{label} = {self.name!r}{scale}{guess}"


def choose(
    frame: pd.DataFrame, asked: Mapping[str, str | None], notes: list[str]
) -> tuple[dict[str, Column], dict[str, str]]:
    """Columns by role: those asked for, then guesses among the others ("" is no column); and by
    role, why a column whose name would do was not taken.

    Raises:
        AnalysisError: a column asked for does not exist; the nearest is suggested.
    """
    columns = {key: given(frame, text, key) for key, text in asked.items() if text}
    taken = {column.name for column in columns.values()}
    rejected: dict[str, str] = {}
    for key, text in asked.items():
        if key == "total_params" and not text and not _of_experts(columns.get("n_params")):
            continue  # without active parameters there is one count alone
        if text is not None:
            continue
        before = len(notes)
        if found := guess(frame, key, taken, notes):
            columns[key] = found
            taken.add(found.name)
        elif len(notes) > before:
            rejected[key] = "; ".join(notes[before:])
    return columns, rejected


def _of_experts(n_column: Column | None) -> bool:
    return n_column is not None and "active" in simplify(n_column.name)


def given(frame: pd.DataFrame, request: str, key: str) -> Column:
    """The column that the caller named, as NAME or NAME*FACTOR.

    Raises:
        AnalysisError: it does not exist, or the factor is no positive number.
    """
    name, star, factor_text = request.rpartition("*")
    if not star or request in frame.columns:
        name, factor_text = request, ""
    if name not in frame.columns:
        near = difflib.get_close_matches(name, [str(c) for c in frame.columns], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise AnalysisError(
            f"there is no column {name!r} for the {LABELS[key]}{hint} Columns: {listed(frame)}"
        )
    if not factor_text:
        simple = simplify(name)
        suffix = next((f for s, f in _SUFFIXES.items() if simple.endswith(s)), 1.0)
        return Column(name, suffix if key in COUNTS else 1.0)
    try:
        factor = float(factor_text)
    except ValueError:
        factor = math.nan
    if not (math.isfinite(factor) and factor > 0):
        raise AnalysisError(
            f"the factor in {request!r} must be a positive number, as in {name}*1e9"
        )
    return Column(name, factor)


def guess(frame: pd.DataFrame, key: str, taken: set[str], notes: list[str]) -> Column | None:
    """The column that has the best known name for a role, and cells that go with it."""
    # Of "n" and "N" the capital is the model size, so capitals come last and win.
    names = sorted((str(c) for c in frame.columns if c not in taken), reverse=True)
    simple = {bare(c): c for c in names} | {simplify(c): c for c in names}
    found: list[Column] = []
    for suffix, factor in {"": 1.0, **(_SUFFIXES if key in (*COUNTS, "loss") else {})}.items():
        if key == "loss" and factor != 1.0:
            continue
        found += [
            Column(simple[name + suffix], factor, guessed=True)
            for name in NAMES[key]
            if name + suffix in simple
        ]
    if not found:
        joined = {simplify(c).replace("_", ""): c for c in names}
        found = [Column(joined[short], guessed=True) for name in NAMES[key]
                 if len(short := name.replace("_", "")) >= _LONG and short in joined]  # fmt: skip
    if key == "loss" and not found and len(ends := loss_like(frame)) == 1:
        found = [Column(ends[0], guessed=True)]
    for column in found:
        if key not in (*COUNTS, *PLAIN, "loss") or _numeric(frame, column, key):
            return column
        cell = next((c for c in frame[column.name] if str(c).strip()), "")
        notes.append(f"{column.name!r} was not taken for {LABELS[key]}: its cells are no numbers "
                     f"({quote(str(cell))})")  # fmt: skip
    return None


def loss_like(frame: pd.DataFrame) -> list[str]:
    """Columns whose name ends like a loss, as the losses of a task or a corpus do
    (eval/c4_en-validation/CrossEntropyLoss)."""
    return [str(c) for c in frame.columns
            if simplify(re.split(r"[/.:]", str(c))[-1]) in _LOSSES]  # fmt: skip


def cells_of(frame: pd.DataFrame, column: Column, key: str) -> Cells:
    """A column as numbers, scaled.

    Raises:
        AnalysisError: units both in the cells (70M) and in the column's name or factor, or a comma
            or dot that means two things.
    """
    cells = read_cells(frame[column.name], column.name, count=key in COUNTS)
    if cells.unit and column.factor != 1:
        raise AnalysisError(
            f"column {column.name!r} has units in its cells ({cells.unit!r}) and in its name or "
            f"factor (x {column.factor:g}): keep one of them"
        )
    cells.values = cells.values * column.factor
    cells.noise = cells.noise * column.factor
    return cells


def _numeric(frame: pd.DataFrame, column: Column, key: str) -> bool:
    some = frame[column.name].iloc[:: 1 + len(frame) // 2000]
    try:
        return read_cells(some, column.name, count=key in COUNTS).mostly_numbers
    except AnalysisError:  # numbers, written in two ways: said where they are read
        return True


def simplify(name: str) -> str:
    """A name in lower case with punctuation as `_`."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def bare(name: str) -> str:
    """The simple name without what a tracker put before it."""
    return simplify(_BEFORE.sub("", name.lower()))


def listed(frame: pd.DataFrame) -> str:
    """The user's own column names, for messages: of a table that was read, those of its file."""
    names = [str(c) for c in frame.attrs.get("columns", frame.columns)]
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
