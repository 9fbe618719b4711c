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
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.io import milestones
from analysis.io.jsonlines import Columns, read_records
from analysis.io.leaving_out import count_once, selectable, without_other_data
from analysis.io.looks import learn
from analysis.io.metrics_cache import Metrics
from analysis.io.sweep import Compute, Conventions, Parameters, Sweep
from analysis.io.sweep_files import Place, names_of_runs, open_sweep
from linscale.json_reader import (
    COUNT,
    BadRecord,
    Fields,
    as_number,
    find_object,
    is_name,
    read_object,
)
from linscale.layer_groups import group
from linscale.selection import chosen
from linscale.texts import clean, quote

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
    "stopped": "stopped early",
}
_ENVIRONMENT_KEYS = (
    "git_revision", "git_dirty_sha256", "python", "torch", "lightning", "triton", "platform", "cpu",
    "device", "hostname", "peak_flops", "data",
)  # fmt: skip


def load_sweep(
    directory: str | Path,
    *,
    conventions: Conventions | None = None,
    other_data: bool = False,
    only: str | None = None,
) -> Sweep:
    """Reads a sweep: its directory, or a zip file of it.

    Args:
        directory: of the sweep.
        conventions: how size, compute and loss are counted.
        other_data: keep runs whose data changed while they were trained, or are not those of the
            other runs (`analysis.io.data_identity`).
        only: which runs, as in `size=1B arch=llama` (`linscale.selection`); None: all.

    Raises:
        AnalysisError: neither is there, or it holds neither sweep.json nor any run.
        SelectionError: the selection leaves no run.
    """
    root = open_sweep(directory)
    how = conventions or Conventions()
    notes: list[str] = []
    try:
        plan = find_object(root / "sweep.json")
        planned, name = plan.words("runs"), plan.word("sweep", root.name)
    except BadRecord as error:
        planned, name = [], root.name
        notes.append(f"{error}; the runs are those whose folders are there")
    found = names_of_runs(root)
    if not planned and not found:
        raise AnalysisError(
            f"{root} holds neither a sweep.json nor a run with a config.json; {_instead(root)}"
        )
    reader = _Reader(root, how, notes)
    listed = list(dict.fromkeys([*planned, *found]))
    for run_id in listed if only is None else chosen(listed, only, partial(selectable, root)):
        reader.read(run_id)
    reader.metrics.save()
    sweep = reader.sweep(name)
    if not other_data:
        sweep = without_other_data(sweep, root)
    return count_once(sweep, root)  # of the runs that are left


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

    def __init__(self, root: Place, how: Conventions, notes: list[str]) -> None:
        self.root, self.how = root, how
        self.runs: list[dict[str, Any]] = []
        self.points: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []
        self.live: list[dict[str, Any]] = []
        self.exclusions: list[dict[str, Any]] = []
        self.notes = notes
        self.environments: dict[str, dict[str, Any]] = {}
        self.metrics = Metrics(root, numbers=_METRIC_NUMBERS, words=_METRIC_WORDS)

    def exclude(self, run_id: str, reason: str, tokens: float = math.nan) -> None:
        self.exclusions.append({"run_id": run_id, "tokens": tokens, "reason": reason})

    def read(self, run_id: str) -> None:
        if not is_name(run_id):
            return self.exclude(clean(run_id), "sweep.json lists it, and it is no name of a folder")
        path = self.root / run_id
        if not path.is_dir():
            return self.exclude(run_id, "not started: no run directory")
        try:
            config = read_object(path / "config.json")
            if config.values.get("schema", SCHEMA) != SCHEMA:
                return self.exclude(run_id, f"written in schema {quote(config.values['schema'])} "
                                    f"of run records; this version reads {SCHEMA}")  # fmt: skip
            accounting = read_object(path / "accounting.json")
            run = self._describe(run_id, config, accounting)
            expected = milestones.horizons(config)
            learn(run["arch"], accounting.values.get("architecture"))
            status = find_object(path / "status.json")
            state = status.word("state", "running")
            run |= {"state": state, "reason": status.word("reason", "")}
            run["updated"] = status.word("updated", "")
        except BadRecord as error:
            return self.exclude(run_id, str(error))
        environment = self._environment(run_id, path)
        run |= {k: environment[k] for k in ("git_revision", "device", "hostname", "torch")}
        parallel = config.part("parallel", {})
        run["devices"] = math.prod(parallel.whole(k, 1, default=1) for k in ("devices", "nodes"))
        columns, torn = self.metrics.read(run_id)
        if torn:
            self.notes.append(f"{run_id}: {torn} torn line(s) at the end of metrics.jsonl dropped")
        run |= _speed(columns)
        logged = columns["tokens"][np.isfinite(columns["tokens"])]
        run["tokens"] = float(logged.max()) if len(logged) else 0.0
        self.runs.append(run)
        keys = {k: run[k] for k in ("run_id", "arch", "size", "seed", "n_params")}
        columns["flops"] = path_flops(columns["tokens"], run, self.how.compute)
        if state != "done":
            self.live.append(keys | dict(columns))
            why = _UNFINISHED.get(state, f"in state {state!r}")
            return self.exclude(run_id, f"{why}: {run['reason']}" if run["reason"] else why)
        self._milestones(path, run, columns, expected)
        self.curves.append(keys | dict(columns))
        self._count(environment)
        return None

    def _describe(self, run_id: str, config: Fields, accounting: Fields) -> dict[str, Any]:
        """Identity, size and cost of a run, in every convention.

        Raises:
            BadRecord: a field is missing, or is not what it should be.
        """
        model, data, schedule = (config.part(name) for name in ("model", "data", "schedule"))
        per_token = accounting.part("flops_per_token")
        run: dict[str, Any] = {
            "run_id": run_id,
            "name": config.word("name", run_id),
            "arch": _group(model, config.part("linearize", {})),
            "size": config.word("size"),
            "seed": config.whole("seed", 0),
            "dim": model.whole("dim", 1),
            "layers": model.whole("layers", 1),
            **{f"n_{k}": accounting.number(f"n_{k}", above=0.0) for k in get_args(Parameters)},
            **{
                f"flops_per_token_{k}": per_token.part(k).number("total", above=0.0)
                for k in ("exact", "paper")
            },
            "sequence_length": data.whole("sequence_length", 1),
            "batch_tokens": data.whole("sequence_length", 1) * data.whole("batch_sequences", 1),
            "lr": config.part("optim").number("lr"),
            "schedule": schedule.word("kind"),
            "decay_fraction": schedule.number("decay_fraction", default=math.nan),
            "final_lr_ratio": schedule.number("final_lr_ratio", default=0.0),
            "horizons": _horizons(config.part("budget")),
            "tokens_total": config.part("budget").number("tokens", above=0.0),
            "corpus": data.word("corpus"),
            "tokenizer": data.word("tokenizer"),
        }
        run["stages"] = _stages(accounting.part("stages")) if accounting.has("stages") else None
        run["counting"] = self.how.compute
        run["n_params"] = run[f"n_{self.how.parameters}"]
        run["flops_per_token_6nd"] = 6.0 * run["n_params"]
        run["flops_per_token"] = run[f"flops_per_token_{self.how.compute}"]
        return run

    def _milestones(
        self, path: Place, run: dict[str, Any], columns: Columns, expected: list[int] | None
    ) -> None:
        records, torn = read_records(path / milestones.FILE)
        run_id = run["run_id"]
        if torn:
            self.notes.append(f"{run_id}: {torn} torn line(s) of milestones.jsonl dropped")
        if not records:
            return self.exclude(run_id, "finished, but milestones.jsonl is missing or empty")
        # A horizon recorded twice (killed between two writes) counts once, as last written.
        records = list({as_number(r.get("tokens")): r for r in records}.values())
        wrong = dict(milestones.problems(records, columns, expected, run["batch_tokens"]))
        for tokens in wrong.keys() - {as_number(r.get("tokens")) for r in records}:
            self.exclude(run_id, wrong[tokens], tokens)
        for record in records:
            tokens = as_number(record.get("tokens"))
            values = {k: as_number(record.get(f"{k}_loss")) for k in ("val", "train")}
            loss = values["val" if self.how.loss == "validation" else "train"]
            decayed = record.get("decayed", False)
            if not 0 < tokens <= COUNT:
                self.exclude(run_id, f"milestones.jsonl: tokens is {quote(record.get('tokens'))}, "
                             "not a number of tokens")  # fmt: skip
            elif not isinstance(decayed, bool):
                self.exclude(run_id, f"milestones.jsonl: decayed is {quote(decayed)}, not true or "
                             "false", tokens)  # fmt: skip
            elif not (math.isfinite(loss) and loss > 0):
                self.exclude(run_id, f"the {self.how.loss} loss is {loss}", tokens)
            elif tokens in wrong:
                self.exclude(run_id, wrong[tokens], tokens)
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
        std, blocks = as_number(record.get("val_loss_std")), as_number(record.get("val_blocks"))
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
            "bpb": as_number(record.get("val_bpb")),
            **flops,
            **{f"{k}_loss": v for k, v in values.items()},
            "decayed": decayed,
        }

    def _environment(self, run_id: str, path: Place) -> dict[str, Any]:
        """What is known of the machine and the data; a record that cannot be read is noted."""
        try:
            return _environment(find_object(path / "environment.json"))
        except BadRecord as error:
            self.notes.append(f"{run_id}: {error}; read without it")
            return _environment(Fields({}, "environment.json"))

    def _count(self, record: dict[str, Any]) -> None:
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
            live=_stack(self.live),
            exclusions=pd.DataFrame(self.exclusions, columns=["run_id", "tokens", "reason"]),
            conventions=self.how.describe(),
            notes=self.notes,
            environments=list(self.environments.values()),
        )


def _horizons(budget: Fields) -> tuple[float, ...]:
    """Tokens of each milestone, the end of the run among them."""
    values = budget.values.get("horizons")
    listed = [as_number(v) for v in values] if isinstance(values, list) else []
    known = {v for v in listed if 0 < v <= COUNT}
    return tuple(sorted({*known, budget.number("tokens", above=0.0)}))


def _environment(record: Fields) -> dict[str, Any]:
    words = [key for key in _ENVIRONMENT_KEYS if key not in ("peak_flops", "data")]
    found: dict[str, Any] = {k: record.word(k) if record.has(k) else None for k in words}
    peak = record.number("peak_flops", above=0.0) if record.has("peak_flops") else None
    data = record.part("data") if record.has("data") else None
    facts = data and {
        clean(key): clean(value) if isinstance(value, str) else value
        for key, value in data.values.items()
        if isinstance(value, str) or value is None or math.isfinite(as_number(value))
    }
    return found | {"peak_flops": peak, "data": facts}


def _stages(record: Fields) -> dict[str, Any]:
    """Tokens of attention transfer, and FLOPs a token of it (0 without one) and of what follows."""
    tokens = record.number("transfer_tokens", above=-1.0)
    least = {"transfer_flops_per_token": 0.0 if tokens else -1.0, "flops_per_token": 0.0}
    costs = {
        name: {k: record.part(name).number(k, above=low) for k in ("exact", "paper")}
        for name, low in least.items()
    }
    return {"transfer_tokens": tokens, **costs}


def _group(model: Fields, linearize: Fields) -> str:
    """The architecture, and whether its weights are a transformer's: linearized, trained on whole
    (`continued`) or as a student is (`trained alike`), or with a window alone."""
    arch = group(model.word("arch"), model.word("mixers", ""))
    if not linearize.word("teacher", ""):
        return arch
    if arch == "llama":
        low_rank = linearize.whole("lora_rank", 0, default=0)
        return f"{arch} ({'trained alike' if low_rank else 'continued'})"
    options = model.part("options", model.part("lolcats", {}).values)
    if arch == "lolcats" and options.word("feature_map", "") == "none":
        sinks = options.whole("sink_tokens", 0, default=0)
        return f"{arch} (window of {options.whole('window', 1)}{' + sink' if sinks else ''})"
    return f"{arch} (linearized)"


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
