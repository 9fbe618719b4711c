"""Run records to tidy data frames, with a reason for everything that was left out.

    runs/<sweep>/<run_id>/      written by training; or the same in <sweep>.zip
        config.json, accounting.json, environment.json, status.json
        metrics.jsonl           the log: one line per logged step
        milestones.jsonl        one line per horizon: what fits read
            |
    load_sweep(dir) -> Sweep
        1. every run that sweep.json plans, and every folder with a config.json
        2. runs that are not finished, and milestones that cannot be used, go to `exclusions`
        3. N, C and the loss are taken in the conventions asked for; all others stay as columns

A record may be cut off anywhere, because a run may be killed at any moment: torn lines are dropped
and counted in `notes`. Tables from elsewhere come in through `analysis.io.tables.load_table`, as
the same `Sweep`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.io import data_identity
from analysis.io.jsonlines import read_records
from analysis.io.looks import learn
from analysis.io.metrics_cache import Metrics
from analysis.io.sweep_files import Place, names_of_runs, open_sweep

Parameters = Literal["non_embedding", "paper", "total"]
Compute = Literal["exact", "paper", "6nd"]
Loss = Literal["validation", "train"]
Checkpoints = Literal["decayed", "all"]


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Which numbers stand for N, C and the loss. They move exponents more than noise does.

    Raises:
        AnalysisError: a value that is not one of the choices.
    """

    parameters: Parameters = "non_embedding"
    """N: `non_embedding` and `total` count the built model, `paper` as in arXiv 2406.16690."""
    compute: Compute = "exact"
    """C: `exact` counts every matrix product with causal attention, `paper` is Table 1 of
    arXiv 2406.16690, `6nd` is 6 N D with the N above."""
    loss: Loss = "validation"
    """`validation`: the fixed validation blocks; `train`: mean over the last steps."""
    checkpoints: Checkpoints = "decayed"
    """`decayed`: only checkpoints whose learning rate was brought down; `all`: any milestone."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("parameters", Parameters),
            ("compute", Compute),
            ("loss", Loss),
            ("checkpoints", Checkpoints),
        ):
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices:
                raise AnalysisError(
                    f"the {name} convention {value!r} is not known; choose {' or '.join(choices)}"
                )

    def describe(self) -> str:
        """One line for captions."""
        n = {"non_embedding": "non-embedding", "paper": "paper's", "total": "all"}[self.parameters]
        c = {"exact": "exact training FLOPs", "paper": "paper's FLOPs", "6nd": "C = 6ND"}
        return (
            f"N: {n} parameters; {c[self.compute]}; {self.loss} loss of {self.checkpoints} "
            "checkpoints"
        )


@dataclass(frozen=True)
class Sweep:
    """What was read: losses in nats per token, tokens and FLOPs as plain counts.

    Frames may be empty; `require_points` turns that into an error.
    """

    name: str
    """Sweep name, or file name."""
    runs: pd.DataFrame
    """One row per readable run, finished or not: run_id, arch, size, seed, state, n_params,
    tokens_per_second, wall_s, git_revision, device, ..."""
    points: pd.DataFrame
    """One row per usable milestone: run_id, arch, size, seed, n_params, tokens, flops, loss,
    loss_std, bpb, and every other convention (n_total, flops_paper, flops_6nd, val_loss, ...)."""
    curves: pd.DataFrame
    """One row per logged step of usable runs: run_id, arch, size, seed, n_params, segment, split,
    step, tokens, flops, loss, bpb, lr, grad_norm, tokens_per_second, mfu, wall."""
    exclusions: pd.DataFrame
    """run_id, tokens (NaN: the whole run) and the reason."""
    conventions: str
    """What N, C and the loss are, in one line; goes under every figure and table."""
    notes: list[str] = field(default_factory=list[str])
    """What was assumed or mended while reading."""
    environments: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Distinct environment records of the usable runs, with the number of runs of each."""

    def require_points(self) -> pd.DataFrame:
        """The points.

        Raises:
            AnalysisError: there are none; the message repeats the most frequent reasons.
        """
        if len(self.points):
            return self.points
        why = "nothing was found in it"
        if len(self.exclusions):
            counts = self.exclusions["reason"].value_counts().head(3)
            why = "; ".join(f"{reason} ({n}x)" for reason, n in counts.items())
        raise AnalysisError(
            f"{self.name} holds no usable point: {why}. Finish the sweep with `linscale run`, or "
            "look at `linscale status`."
        )


SCHEMA = 1
"""Version of the run records that are understood."""
_METRIC_NUMBERS = (
    "step", "tokens", "flops", "wall", "loss", "bpb", "lr", "grad_norm", "tokens_per_second", "mfu",
)  # fmt: skip
_METRIC_WORDS = ("segment", "split")
_UNFINISHED = {
    "planned": "not started",
    "running": "still running",
    "preempted": "interrupted before its last horizon",
    "failed": "failed",
    "diverged": "diverged",
}
_ENVIRONMENT_KEYS = (
    "git_revision", "git_dirty_sha256", "python", "torch", "lightning", "triton", "platform", "cpu",
    "device", "hostname", "peak_flops", "data",
)  # fmt: skip


def load_sweep(
    directory: str | Path, *, conventions: Conventions | None = None, other_data: bool = False
) -> Sweep:
    """Reads a sweep: its directory, or a zip file of it.

    Args:
        directory: of the sweep.
        conventions: how size, compute and loss are counted.
        other_data: keep runs whose data changed while they were trained, or are not those of the
            other runs (`analysis.io.data_identity`).

    Raises:
        AnalysisError: neither is there, or it holds neither sweep.json nor any run.
    """
    root = open_sweep(directory)
    how = conventions or Conventions()
    plan = _json(root / "sweep.json")
    planned = [str(r) for r in plan.get("runs", [])] if isinstance(plan.get("runs"), list) else []
    found = names_of_runs(root)
    if not planned and not found:
        raise AnalysisError(
            f"{root} holds neither a sweep.json nor a run with a config.json; {_instead(root)}"
        )
    reader = _Reader(root, how)
    for run_id in dict.fromkeys([*planned, *found]):
        reader.read(run_id)
    reader.metrics.save()
    sweep = reader.sweep(str(plan.get("sweep") or root.name))
    return sweep if other_data else _without_other_data(sweep, root)


def _without_other_data(sweep: Sweep, root: Place) -> Sweep:
    """The sweep without the runs whose data are not those of the others, each with its reason."""
    reasons = data_identity.other_data(root, map(str, sweep.curves["run_id"].unique()))
    if not reasons:
        return sweep
    rows = [{"run_id": r, "tokens": math.nan, "reason": why} for r, why in reasons.items()]
    return replace(
        sweep,
        points=sweep.points[~sweep.points["run_id"].isin(reasons)].reset_index(drop=True),
        curves=sweep.curves[~sweep.curves["run_id"].isin(reasons)].reset_index(drop=True),
        exclusions=pd.concat([sweep.exclusions, pd.DataFrame(rows)], ignore_index=True),
    )


def _instead(root: Place) -> str:
    """What to give instead of a directory that is no sweep."""
    if isinstance(root, Path) and (root / "config.json").is_file():
        return f"it is one run: give its sweep, {root.resolve().parent}"
    folders = [each for each in root.iterdir() if (each / "sweep.json").is_file()]
    packed = [each for each in root.iterdir() if each.name.endswith(".zip")]
    sweeps = sorted(str(each) for each in (*folders, *packed))
    if sweeps:
        return f"give one of the sweeps in it: {', '.join(sweeps[:8])}"
    return "give the directory that `linscale run` wrote, such as runs/quickstart"


class _Reader:
    """Collects the rows of a sweep, run by run."""

    def __init__(self, root: Place, how: Conventions) -> None:
        self.root, self.how = root, how
        self.runs: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []
        self.exclusions: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.environments: dict[str, dict[str, Any]] = {}
        self.metrics = Metrics(root, numbers=_METRIC_NUMBERS, words=_METRIC_WORDS)

    def exclude(self, run_id: str, reason: str, tokens: float = math.nan) -> None:
        self.exclusions.append({"run_id": run_id, "tokens": tokens, "reason": reason})

    def read(self, run_id: str) -> None:
        path = self.root / run_id
        if not path.is_dir():
            return self.exclude(run_id, "not started: no run directory")
        config, accounting = _json(path / "config.json"), _json(path / "accounting.json")
        for name, record in (("config.json", config), ("accounting.json", accounting)):
            if not record:
                return self.exclude(run_id, f"{name} is missing or unreadable")
        if config.get("schema", SCHEMA) != SCHEMA:
            return self.exclude(run_id, f"written in schema {config['schema']!r} of run records; "
                                f"this version reads {SCHEMA}")  # fmt: skip
        try:
            run = self._describe(run_id, config, accounting)
            learn(run["arch"], accounting.get("architecture"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return self.exclude(run_id, f"the record lacks or garbles the field {error}")
        status, environment = _json(path / "status.json"), _json(path / "environment.json")
        state = str(status.get("state", "running"))
        run |= {"state": state, "reason": str(status.get("reason") or "")}
        run["updated"] = str(status.get("updated") or "")
        run |= {k: environment.get(k) for k in ("git_revision", "device", "hostname", "torch")}
        columns, torn = self.metrics.read(run_id)
        if torn:
            self.notes.append(f"{run_id}: {torn} torn line(s) at the end of metrics.jsonl dropped")
        run |= _speed(columns)
        run["tokens"] = float(np.nanmax(columns["tokens"])) if len(columns["tokens"]) else 0.0
        self.runs.append(run)
        if state != "done":
            why = _UNFINISHED.get(state, f"in state {state!r}")
            return self.exclude(run_id, f"{why}: {run['reason']}" if run["reason"] else why)
        self._milestones(path, run)
        keys = {k: run[k] for k in ("run_id", "arch", "size", "seed", "n_params")}
        columns["flops"] = path_flops(columns["tokens"], run, self.how.compute)
        self.curves.append(keys | dict(columns))
        self._environment({k: environment.get(k) for k in _ENVIRONMENT_KEYS})
        return None

    def _describe(
        self, run_id: str, config: dict[str, Any], accounting: dict[str, Any]
    ) -> dict[str, Any]:
        """Identity, size and cost of a run, in every convention."""
        model, data, schedule = config["model"], config["data"], config["schedule"]
        per_token = accounting["flops_per_token"]
        run: dict[str, Any] = {
            "run_id": run_id,
            "name": str(config.get("name", run_id)),
            "arch": _group(model, config.get("linearize") or {}),
            "size": str(config["size"]),
            "seed": int(config["seed"]),
            "dim": int(model["dim"]),
            "layers": int(model["layers"]),
            "n_total": float(accounting["n_total"]),
            "n_non_embedding": float(accounting["n_non_embedding"]),
            "n_paper": float(accounting["n_paper"]),
            "flops_per_token_exact": float(per_token["exact"]["total"]),
            "flops_per_token_paper": float(per_token["paper"]["total"]),
            "sequence_length": int(data["sequence_length"]),
            "batch_tokens": int(data["sequence_length"]) * int(data["batch_sequences"]),
            "lr": float(config["optim"]["lr"]),
            "schedule": str(schedule["kind"]),
            "tokens_total": float(config["budget"]["tokens"]),
            "corpus": str(data["corpus"]),
            "tokenizer": str(data["tokenizer"]),
        }
        run["stages"] = accounting.get("stages")
        run["counting"] = self.how.compute
        run["n_params"] = run[f"n_{self.how.parameters}"]
        run["flops_per_token_6nd"] = 6.0 * run["n_params"]
        run["flops_per_token"] = run[f"flops_per_token_{self.how.compute}"]
        for key in ("n_params", "flops_per_token"):
            if not (math.isfinite(run[key]) and run[key] > 0):
                raise ValueError(f"{key} = {run[key]!r}, which must be a positive number")
        return run

    def _milestones(self, path: Place, run: dict[str, Any]) -> None:
        records, torn = read_records(path / "milestones.jsonl")
        run_id = run["run_id"]
        if torn:
            self.notes.append(f"{run_id}: {torn} torn line(s) of milestones.jsonl dropped")
        if not records:
            return self.exclude(run_id, "finished, but milestones.jsonl is missing or empty")
        # A horizon recorded twice (killed between two writes) counts once, as last written.
        for record in {_number(r.get("tokens")): r for r in records}.values():
            tokens = _number(record.get("tokens"))
            values = {k: _number(record.get(f"{k}_loss")) for k in ("val", "train")}
            loss = values["val" if self.how.loss == "validation" else "train"]
            decayed = bool(record.get("decayed"))
            if not tokens > 0:
                self.exclude(run_id, "a milestone without a token count")
            elif not (math.isfinite(loss) and loss > 0):
                self.exclude(run_id, f"the {self.how.loss} loss is {loss}", tokens)
            elif self.how.checkpoints == "decayed" and not decayed:
                self.exclude(run_id, "the learning rate was not decayed at this point", tokens)
            else:
                self.points.append(self._point(run, record, tokens, loss, values, decayed))
        return None

    def _point(
        self, run: dict[str, Any], record: dict[str, Any], tokens: float, loss: float,
        values: dict[str, float], decayed: bool,
    ) -> dict[str, Any]:  # fmt: skip
        keep = ("run_id", "arch", "size", "seed", "n_params", "n_total", "n_non_embedding",
                "n_paper")  # fmt: skip
        flops = {f"flops_{c}": float(path_flops(tokens, run, c)) for c in get_args(Compute)}
        std, blocks = _number(record.get("val_loss_std")), _number(record.get("val_blocks"))
        return {
            **{k: run[k] for k in keep},
            # Runs of one size and seed share data and its order: draws over this label pair
            # architectures.
            "size_seed": f"{run['size']} seed {run['seed']}",
            "tokens": tokens,
            "flops": flops[f"flops_{self.how.compute}"],
            "loss": loss,
            "loss_std": std,
            "loss_stderr": std / math.sqrt(blocks) if blocks > 0 else math.nan,
            "bpb": _number(record.get("val_bpb")),
            **flops,
            **{f"{k}_loss": v for k, v in values.items()},
            "decayed": decayed,
        }

    def _environment(self, record: dict[str, Any]) -> None:
        key = json.dumps(record, sort_keys=True)
        self.environments.setdefault(key, record | {"runs": 0})["runs"] += 1

    def sweep(self, name: str) -> Sweep:
        empty_points = ("run_id", "arch", "size", "seed", "n_params", "tokens", "flops", "loss")
        points = pd.DataFrame(self.points, columns=None if self.points else list(empty_points))
        by = ["arch", "n_params", "seed", "tokens"]
        if len(points):
            points = points.sort_values(by, ignore_index=True)
        return Sweep(
            name=name,
            runs=pd.DataFrame(self.runs),
            points=points,
            curves=_stack(self.curves),
            exclusions=pd.DataFrame(self.exclusions, columns=["run_id", "tokens", "reason"]),
            conventions=self.how.describe(),
            notes=self.notes,
            environments=list(self.environments.values()),
        )


def _group(model: dict[str, Any], linearize: dict[str, Any]) -> str:
    """The architecture, and whether its weights are a transformer's."""
    arch = str(model["arch"])
    if not linearize.get("teacher"):
        return arch
    return f"{arch} ({'continued' if arch == 'llama' else 'linearized'})"


def path_flops(tokens: Any, run: dict[str, Any], compute: Compute) -> Any:
    """FLOPs of a run's first tokens: attention transfer and LoRA cost less than training."""
    stages = run["stages"]
    if stages is None or compute == "6nd":
        return tokens * run[f"flops_per_token_{compute}"]
    transfer = np.minimum(tokens, stages["transfer_tokens"])
    first, rest = (stages[k][compute] for k in ("transfer_flops_per_token", "flops_per_token"))
    return transfer * first + (tokens - transfer) * rest


def _stack(parts: list[dict[str, Any]]) -> pd.DataFrame:
    """Column-wise concatenation: far faster than one data frame per run."""
    keys = ("run_id", "arch", "size", "seed", "n_params")
    if not parts:
        return pd.DataFrame(columns=[*keys, *_METRIC_WORDS, *_METRIC_NUMBERS])
    lengths = [len(p["step"]) for p in parts]
    columns = {}
    for key in keys:
        # Names repeat thousands of times: categories are small and quick to group by.
        codes = np.repeat(np.arange(len(parts)), lengths)
        values = pd.Series([p[key] for p in parts])
        column = values.take(codes).reset_index(drop=True)
        columns[key] = column.astype("category") if key in ("run_id", "arch", "size") else column
    for key in (*_METRIC_WORDS, *_METRIC_NUMBERS):
        columns[key] = np.concatenate([p[key] for p in parts])
    return pd.DataFrame(columns)


def _speed(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Median throughput over the log; the first lines hold start-up and are left out."""
    train = columns["split"] == "train"
    out = {}
    for key in ("tokens_per_second", "mfu"):
        values = columns[key][train][3:]
        values = values[np.isfinite(values)]
        out[key] = float(np.median(values)) if len(values) else math.nan
    wall = columns["wall"][np.isfinite(columns["wall"])]
    return out | {"wall_s": float(wall.max()) if len(wall) else math.nan}


def _json(path: Place) -> dict[str, Any]:
    """A JSON object, or {} when the file is absent, torn or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return math.nan
