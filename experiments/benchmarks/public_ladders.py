"""Public suites of runs as ladders: tables of N, D, C and loss with the family each belongs to.

    public_ladders(folder) -> list[Ladder]

The sets are not part of the repository: `docs/forecast.md` says where they come from, and
LINSCALE_DATA, or the caller, names their folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.io.frames import groups, numbers, rows, where, words

ROOT = Path(__file__).resolve().parents[2]


def data_folder(asked: Path | None) -> Path:
    """The folder of the public sets: asked for, else LINSCALE_DATA, else beside the repository."""
    return asked or Path(os.environ.get("LINSCALE_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Ladder:
    """One set of runs."""

    family: str
    name: str
    points: pd.DataFrame
    """Columns n_params, tokens, flops, loss, run_id; or flops and loss alone."""

    @property
    def only_compute(self) -> bool:
        """Whether it holds frontier points in C alone."""
        return "n_params" not in self.points


def public_ladders(root: Path) -> list[Ladder]:
    """Every public set below a folder."""
    return [*_chinchilla(root), *_porian(root), *_gemstones(root), *_isoflops(root), *_olmo(root)]


def table_of(n: object, d: object, loss: object, run: object = None) -> pd.DataFrame:
    """A ladder's points, with C = 6 N D."""
    frame = pd.DataFrame({"n_params": n, "tokens": d, "loss": loss}).astype(float)
    frame["flops"] = 6.0 * frame["n_params"] * frame["tokens"]
    labels = [str(i) for i in range(len(frame))] if run is None else run
    return frame.assign(run_id=labels).reset_index(drop=True)


def _chinchilla(root: Path) -> Iterator[Ladder]:
    data = pd.read_csv(root / "chinchilla_epoch" / "svg_extracted_data.csv")
    n = data["Model Size"]
    yield Ladder("chinchilla", "chinchilla",
                 table_of(n, data["Training FLOP"] / (6 * n), data["loss"]))  # fmt: skip


def _porian(root: Path) -> Iterator[Ladder]:
    folder = root / "porian_formll"
    keys = ("file", "dataset", "hparams", "warmup", "decay", "param_count", "val")
    points = _keyed(pd.read_csv(folder / "isoflop_points_tidy.csv"), keys)
    for name in groups(points, "key"):
        own = where(points, key=name)
        family = f"porian {words(own, 'dataset')[0]}"
        yield Ladder(family, name, table_of(own["n"], own["t"], own["loss"]))
    pairs = _keyed(pd.read_csv(folder / "optimal_pairs_tidy.csv"), keys)
    for name in groups(pairs, "key"):
        own = where(pairs, key=name)
        family = f"porian {words(own, 'dataset')[0]} frontier"
        yield Ladder(family, f"{name} frontier", _frontier(own["flops"], own["loss"]))


def _keyed(frame: pd.DataFrame, keys: tuple[str, ...]) -> pd.DataFrame:
    """With a column `key` that joins the words of others."""
    return frame.assign(key=["_".join(row) for row in zip(*(words(frame, k) for k in keys),
                                                          strict=True)])  # fmt: skip


def _frontier(compute: object, loss: object) -> pd.DataFrame:
    return pd.DataFrame({"flops": compute, "loss": loss}).astype(float).reset_index(drop=True)


def _gemstones(root: Path) -> Iterator[Ladder]:
    for name in ("hot", "cool_end", "lr_ablation_hot", "hot_100b+"):
        path = root / "gemstones" / "wandb_dfs" / f"wandb_df_for_fitting_{name}.jsonl"
        data = pd.read_json(path, lines=True)
        data = rows(data, data["step"] > 0)
        family = "gemstones decayed" if "cool" in name else "gemstones"
        yield Ladder(family, f"gemstones {name}",
                     table_of(data["params_active_precise"], data["tokens"], data["final_loss"],
                            words(data, "run_name")))  # fmt: skip


def _isoflops(root: Path) -> Iterator[Ladder]:
    data = pd.read_csv(root / "isoflop_collection" / "isoflops.csv")
    data = _keyed(rows(data, data["condition"].fillna("raw_loss") == "raw_loss"),
                  ("source", "dataset"))  # fmt: skip
    for name in groups(data, "key"):
        own = where(data, key=name)
        family = name.split("_")[0]
        if family in ("epochai", "ml"):
            continue  # the points of chinchilla_epoch
        yield Ladder(family, name, table_of(own["params"], own["tokens"], own["loss"]))
        best = own.sort_values("loss").drop_duplicates("budget").sort_values("budget")
        yield Ladder(f"{family} frontier", f"{name} lowest of each budget",
                     _frontier(best["budget"], best["loss"]))  # fmt: skip


def _olmo(root: Path) -> Iterator[Ladder]:
    ladder = pd.read_csv(root / "olmo_ladder" / "ladder_c4.csv")
    for domain in ("c4_en", "dolma_books", "dolma_stack", "dolma_wiki", "dolma_pes2o"):
        column = f"eval/{domain}-validation/CrossEntropyLoss"
        loss = [_last(root / "olmo_ladder" / f"{r['size']}-{r['xC']:g}xC.csv", column)
                for r in ladder.to_dict("records")]  # fmt: skip
        yield Ladder("olmo", f"olmo {domain}", table_of(ladder["N"], ladder["D"], loss))


def _last(path: Path, column: str) -> float:
    frame = pd.read_csv(path).sort_values("_step")
    values = numbers(frame, column)
    return float(values[np.isfinite(values)][-1])
