"""Every figure of the suite from real data, on one page.

python -m experiments.gallery [--data DIR] [--sweep SWEEP] [-o DIR]

SWEEP            run records (default: the quickstart's, which are part of the project)
DIR of --data    public data sets, each in its folder; where one is absent, its section stays as it
                 was
    chinchilla_epoch/svg_extracted_data.csv      Besiroglu et al. 2404.10102
    gemstones/wandb_dfs/*.jsonl                  McLeish et al. 2502.06857
    isoflop_collection/isoflops.csv              Llama 3 2407.21783, and others
    olmo_ladder/*.csv                            Bhagia et al. 2412.04403

-> DIR of -o: README.md and one small PNG a figure, with caption and run ids in its metadata; no
number of a public table is written
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import figures
from analysis.figures import style
from analysis.figures.plots import of_isoflop
from analysis.fit.approaches import three_approaches
from analysis.fit.downstream import fit_downstream
from analysis.fit.envelope import HULL, envelope
from analysis.fit.fitting import fit_law
from analysis.fit.isoflop import isoflop
from analysis.fit.law_fit import LawFit
from analysis.fit.within import frontier_within
from analysis.io.frames import numbers, rows, words
from analysis.io.records import load_sweep
from analysis.judge.form_selection import holdout
from analysis.judge.study import Study, study
from analysis.report.report_figures import basis, draw

DPI = 110
BOOTSTRAP = 2000
Entry = tuple[str, Figure, str]
"""File name, figure, caption."""


def sweep_entries(result: Study) -> Iterator[Entry]:
    """The figures of a report."""
    for each in draw(result):
        yield f"sweep_{each.name}", each.figure, f"{each.caption} {basis(result)}"


def chinchilla(folder: Path) -> Iterator[Entry]:
    """One law fitted to points of many sizes: everything approach 3 can show."""
    table = pd.read_csv(folder / "chinchilla_epoch" / "svg_extracted_data.csv")
    table = table.rename(columns={"Model Size": "n_params", "Training FLOP": "flops"})
    table["tokens"] = table["flops"] / (6 * table["n_params"])
    table = table.sort_values("loss").head(len(table) - 5).reset_index(drop=True)
    fit = fit_law("chinchilla", table, bootstrap=BOOTSTRAP)
    source = f"n = {len(table)} points of Chinchilla's Figure 4 (2404.10102), C = 6ND"
    yield "chinchilla_contours", fit.plot(name="Chinchilla"), f"Contours of the law: {source}."
    predicted = fit.predict(n=table["n_params"], d=table["tokens"])
    left = table.assign(arch="Chinchilla", predicted=predicted)
    yield "chinchilla_residuals", figures.residuals(left), f"What the law leaves: {source}."
    yield (
        "chinchilla_exponents",
        _cloud(fit),
        (f"Exponents of {BOOTSTRAP} bootstrap refits: {source}."),
    )
    yield "chinchilla_optimum", _optimum(fit), f"Compute-optimal size and data: {source}."
    rolled = holdout("chinchilla", table, steps=5).assign(arch="Chinchilla")
    yield "chinchilla_rolling", figures.rolling(rolled), f"Rolling hold-out over compute: {source}."
    both = three_approaches(table, bootstrap=400)
    yield (
        "chinchilla_approaches",
        both.plot(),
        (f"IsoFLOP profiles and parametric law on the same points: {source}."),
    )


def llama_3(folder: Path) -> Iterator[Entry]:
    """IsoFLOP valleys."""
    table = pd.read_csv(folder / "isoflop_collection" / "isoflops.csv")
    chosen = (table["dataset"] == "llama_3") | table["experiment"].str.contains("llama_3")
    table = rows(table, chosen & (table["condition"] == "raw_loss"))
    fit = isoflop(table, budget="budget", n="params", d="tokens", bootstrap=400)
    yield (
        "llama3_valleys",
        of_isoflop({"Llama 3": fit}),
        (
            f"IsoFLOP profiles of Llama 3, n = {len(table)} points of its figure (2407.21783): "
            f"D* = {fit.params['d_coefficient']:.3f} C^{fit.params['b']:.3f}."
        ),
    )


def gemstones(folder: Path) -> Iterator[Entry]:
    """The envelope of training curves."""
    path = folder / "gemstones" / "wandb_dfs" / "wandb_df_for_fitting_cool_end.jsonl"
    table = pd.read_json(path, lines=True).rename(
        columns={"params_active_precise": "n_params", "final_loss": "loss", "run_name": "run_id"}
    )
    table = rows(table, table["step"] > 0)
    table["flops"] = 6.0 * table["n_params"] * table["tokens"]
    fit = envelope(table, HULL, bootstrap=200)
    yield (
        "gemstones_envelope",
        fit.plot(name="Gemstones"),
        (
            f"Lower hull of n = {len(table)} cooled-down checkpoints of Gemstones (2502.06857) "
            "under C = 6ND, and the pure power law through it."
        ),
    )


def olmo(folder: Path) -> Iterator[Entry]:
    """Extrapolation to a size nobody fitted, and loss to accuracy."""
    table = pd.read_csv(folder / "olmo_ladder" / "ladder_c4.csv")
    table = table.rename(columns={"N": "n_params", "D": "tokens"})
    table = rows(table, table["xC"] > 0.5)
    table["flops"] = 6.0 * table["n_params"] * table["tokens"]
    seen, unseen = rows(table, table["size"] != "3B"), rows(table, table["size"] == "3B")
    fit = fit_law("chinchilla", seen, bootstrap=BOOTSTRAP)
    frame = fit.band(kind="run", extrapolate=True, n=unseen["n_params"], d=unseen["tokens"])
    frame = frame.rename(columns={"loss": "predicted"}).assign(
        arch="OLMo ladder", flops=numbers(unseen, "flops"), loss=numbers(unseen, "loss"),
        leap=numbers(unseen, "flops") / numbers(seen, "flops").max(),
    )  # fmt: skip
    yield (
        "olmo_holdout",
        figures.holdout(frame),
        (
            f"n = {len(unseen)} 3B models of OLMo's ladder (2412.04403) forecast by a law of its "
            f"{len(seen)} models up to 1B; C = 6ND. Bars: 90% prediction intervals for one "
            "further run."
        ),
    )
    parts: list[pd.DataFrame] = []
    laws: list[pd.DataFrame] = []
    tasks = {"hellaswag": 0.25, "arc_easy": 0.25}
    for task, chance in tasks.items():
        points = pd.concat([_evaluated(p, task) for p in _ladder(folder)], ignore_index=True)
        task_fit = fit_downstream(points, chance=chance, bootstrap=1000)
        x = np.linspace(points["loss"].min(), points["loss"].max(), 64)
        low, high = np.quantile(task_fit.predict_draws(x), [0.05, 0.95], axis=0)
        parts.append(points.assign(task=task, arch=points["size"]))
        laws.append(
            pd.DataFrame({"group": task, "x": x, "y": task_fit.predict(x), "lo": low, "hi": high})
        )
    yield (
        "olmo_downstream",
        figures.downstream(pd.concat(parts), pd.concat(laws), chance=tasks),
        (
            "Accuracy (normalised by length, five shots) of the last three evaluations of every "
            f"run of OLMo's ladder (2412.04403) against its loss on C4, n = "
            f"{len(parts[0])} a task, with one sigmoid a task. Bands: 90% intervals."
        ),
    )


def _ladder(folder: Path) -> list[Path]:
    return sorted((folder / "olmo_ladder").glob("*-*xC.csv"))


def _evaluated(path: Path, task: str) -> pd.DataFrame:
    """Loss and accuracy at the last three evaluations of a run."""
    table = pd.read_csv(path)
    names = {
        "eval/c4_en-validation/CrossEntropyLoss": "loss",
        f"eval/downstream/{task}_val_rc_5shot_len_norm": "accuracy",
    }
    table = table.rename(columns=names)[list(names.values())].dropna().tail(3)
    return table.assign(run_id=path.stem, size=path.stem.split("-")[0])


def _cloud(fit: LawFit) -> Figure:
    draws = {p: fit.draws_of(p) for p in ("alpha", "beta")}
    return figures.bootstrap_cloud(
        pd.DataFrame(draws).assign(group="Chinchilla"),
        pd.DataFrame([{"group": "Chinchilla", **fit.params}]),
    )


def _optimum(fit: LawFit) -> Figure:
    spent = fit.observations.compute
    compute = np.geomspace(spent.min(), spent.max() * 100, 60)
    best = fit.optimal(compute, extrapolate=True)
    bands = [
        pd.DataFrame({"group": "this fit", "quantity": q, "x": compute, "y": best[q],
                      "lo": best[f"{q}_lo"], "hi": best[f"{q}_hi"],
                      "inside": frontier_within(fit, compute)})
        for q in ("n", "d")
    ]  # fmt: skip
    published = ("Kaplan", "Chinchilla", "LLaMA (paper)", "TNL (paper)", "HGRN2 (paper)",
                 "cosFormer2 (paper)")  # fmt: skip
    return figures.optimum(pd.concat(bands, ignore_index=True), published=published)


SOURCES: dict[str, Callable[[Path], Iterator[Entry]]] = {
    "chinchilla_epoch": chinchilla,
    "isoflop_collection": llama_3,
    "gemstones": gemstones,
    "olmo_ladder": olmo,
}


def write(sweep: Path, data: Path | None, out: Path) -> Path:
    """Draws everything and returns the page; the section of absent data stays as it was."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "README.md"
    before = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.is_file() else []
    sections = {text.partition("\n")[0]: text.partition("\n")[2] for text in before}

    def show(title: str, entries: Iterator[Entry], runs: Sequence[str] = ()) -> None:
        lines: list[str] = []
        for name, figure, caption in entries:
            style.save(figure, out / name, title=name, caption=caption, runs=runs,
                       formats=("png",), dpi=DPI)  # fmt: skip
            lines += ["", f"![{name}]({name}.png)", "", caption]
            print(name, flush=True)
        sections[title] = "\n".join([*lines, ""])

    found = load_sweep(sweep)
    result = study(found, bootstrap=BOOTSTRAP)
    runs = sorted(set(words(result.points, "run_id")))
    show(f"A sweep of the project: {found.name}", sweep_entries(result), runs)
    for folder, entries in SOURCES.items():
        if data is not None and (data / folder).is_dir():
            show(f"Public data: {folder}", entries(data))
    page = ["# Gallery\n\nMade by `python -m experiments.gallery`; every point is measured.\n"]
    page += [f"## {title}\n{text}" for title, text in sections.items()]
    path.write_text("\n".join(page), encoding="utf-8")
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder of public data sets")
    parser.add_argument("--sweep", type=Path, default=Path("experiments/results/quickstart.zip"))
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("experiments/results/gallery"),
        help="where the page and its pictures go",
    )  # fmt: skip
    options = parser.parse_args()
    print(write(options.sweep, options.data, options.output))


if __name__ == "__main__":
    main()
