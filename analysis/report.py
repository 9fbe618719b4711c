"""A sweep's report: one self-contained page, and the tables and figures behind it.

    write(sweep_dir, out) -> out/index.html
        1. records.load_sweep    runs, points, exclusions
        2. study.study           laws, intervals, hold-out, comparison
        3. out/fits.json, out/tables/*.csv, out/figures/*.png, *.pdf
        4. out/index.html        the same in words, tables and SVG; no request leaves the page

The same records give the same bytes, so a report can be rebuilt at any time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import figures, style
from analysis.choices import checklist, sensitivity
from analysis.errors import AnalysisError
from analysis.figures import hover
from analysis.figures.curves import frontier_mask
from analysis.frames import take, where, words
from analysis.narrative import cautions, law_rows, law_sentence, summary
from analysis.page import Page
from analysis.records import Conventions, load_sweep
from analysis.study import LEVEL, Progress, Study, study
from analysis.style import look


@dataclass(frozen=True)
class Drawn:
    """A figure of the report."""

    name: str
    figure: Figure
    caption: str
    wide: bool = False
    """Several panels: scrolls sideways on a phone instead of shrinking."""


def write(
    sweep_dir: str | Path,
    out: str | Path,
    *,
    conventions: Conventions | None = None,
    baseline: str = "llama",
    bootstrap: int = 2000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Writes the report of a sweep and returns the path of its page.

    Args:
        sweep_dir: what `linscale run` wrote.
        out: directory for the page, tables and figures; created.
        conventions: which N, C, loss and checkpoints; default: see `Conventions`.
        baseline: architecture that the others are compared with.
        bootstrap: refits of each law.
        seed: of the bootstrap.
        progress: told in words what is being done.

    Raises:
        AnalysisError: no usable run, no law, or `out` cannot be written.
    """
    out = Path(out)
    say = progress or (lambda _: None)
    sweep = load_sweep(sweep_dir, conventions=conventions)
    result = study(sweep, baseline=baseline, bootstrap=bootstrap, seed=seed, progress=progress)
    say("sensitivity")
    tables = _tables(result)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "tables").mkdir(exist_ok=True)
        for name, table in tables.items():
            table.to_csv(out / "tables" / f"{name}.csv", index=False)
        (out / "fits.json").write_text(json.dumps(_record(result), indent=1), encoding="utf-8")
        page = Page(f"Scaling laws of {sweep.name}")
        drawn = {d.name: d for d in _figures(result)}
        runs = sorted(set(words(result.points, "run_id")))
        for each in drawn.values():
            say(f"drawing {each.name}")
            style.save(
                each.figure,
                out / "figures" / each.name,
                title=f"{sweep.name}: {each.name}",
                caption=f"{each.caption} {_basis(result)}",
                runs=runs,
            )
        _compose(page, result, tables, drawn)
        path = out / "index.html"
        path.write_text(page.render(), encoding="utf-8")
    except OSError as error:
        raise AnalysisError(f"the report cannot be written to {out}: {error.strerror}") from error
    return path


def _basis(result: Study) -> str:
    """What every figure rests on."""
    points = result.points
    dates = sorted(d[:10] for d in words(result.sweep.runs, "updated") if d)
    return (
        f"n = {len(points)} checkpoints of {len(set(words(points, 'run_id')))} runs"
        f"{f', {dates[-1]}' if dates else ''}. {result.sweep.conventions}."
    )


def _figures(result: Study) -> list[Drawn]:
    """Every figure that the records allow, in the order of the page."""
    sweep, points = result.sweep, result.points
    each = [where(points, arch=g) for g in result.groups]
    fitted = pd.concat([own.assign(used=frontier_mask(own)) for own in each], ignore_index=True)
    interval = f"Bands: {LEVEL:.0%} intervals, {result.bootstrap} bootstrap refits over runs."
    drawn = [
        Drawn(
            "frontier",
            figures.loss_compute(fitted, result.loss_bands()),
            "Lowest loss within a compute budget, from each architecture's law L(N, D) at its own "
            f"optimal size. Strong markers: checkpoints that none of the same architecture beats "
            f"with less compute. {interval}",
        ),
        Drawn(
            "learning_curves",
            figures.learning_curves(sweep.curves, points, result.envelope_bands()),
            "Training loss of every run, and validation loss at the end of each decay. Black: "
            "power law through the envelope of the decayed checkpoints, with its interval.",
            wide=True,
        ),
        Drawn(
            "contours",
            figures.contours(
                fitted,
                {g: _surface(result, g) for g in result.groups},
                pd.concat([
                    pd.DataFrame({"group": g, "n": result.optima[g]["n"],
                                  "d": result.optima[g]["d"]})
                    for g in result.groups
                ]),
            ),
            "The fitted law over model size and data, with the runs it was fitted to and the "
            "compute-optimal line under each architecture's own FLOPs.",
            wide=True,
        ),
        Drawn(
            "residuals",
            figures.residuals(result.residuals()),
            "What the law leaves: relative error of every checkpoint, and its quantiles against a "
            "normal distribution.",
            wide=True,
        ),
        Drawn(
            "exponents",
            figures.bootstrap_cloud(*result.exponent_draws()),
            f"Exponents of {result.bootstrap} bootstrap refits over runs; separate clumps mean "
            "that few runs were there to draw from.",
        ),
        Drawn(
            "optimum",
            figures.optimum(result.optimum_bands()),
            f"Compute-optimal size and data. {interval} Dotted: published laws, extrapolated far "
            "below the compute they were fitted to.",
            wide=True,
        ),
    ]  # fmt: skip
    if result.comparisons:
        drawn.insert(
            1,
            Drawn(
                "multipliers",
                figures.multipliers(result.multiplier_bands(), baseline=result.baseline),
                f"How many times an architecture's compute {look(result.baseline).label} needs "
                f"for the same loss. {interval} Within the compute that both have seen.",
            ),
        )
    if len(result.forecast):
        drawn.append(
            Drawn(
                "holdout",
                figures.holdout(result.forecast),
                "The largest size of each architecture, forecast by a law fitted to the smaller "
                f"ones. Bars: {LEVEL:.0%} prediction intervals for one further run.",
                wide=True,
            )
        )
    drawn += [
        Drawn(
            "collapse",
            figures.scaling_collapse(
                sweep.curves, {g: result.laws[g].params["E"] for g in result.groups}
            ),
            "Curves of all sizes on one another: a run that leaves the bundle is mistuned, or too "
            "short for its warm-up.",
            wide=True,
        ),
        Drawn(
            "throughput",
            figures.throughput(sweep.runs),
            "Median training speed over the log of each run, on the machine and with the load it "
            "had then.",
        ),
    ]
    return drawn


def _surface(result: Study, group: str) -> Any:
    law = result.laws[group]
    return lambda n, d: law.predict(n=n, d=d)


def _tables(result: Study) -> dict[str, pd.DataFrame]:
    """The tables that are saved, some of which the page shows."""
    draws = pd.concat(
        [
            pd.DataFrame({"arch": g, **{p: law.draws_of(p) for p in law.params}})
            for g, law in result.laws.items()
        ]
    )
    multipliers = [r.frame.assign(arch=g) for g, r in result.comparisons.items()]
    tables: dict[str, pd.DataFrame] = {
        "points": result.residuals().drop(columns="pair"),
        "runs": result.sweep.runs,
        "exclusions": result.sweep.exclusions,
        "laws": pd.concat([law.table(LEVEL).assign(arch=g) for g, law in result.laws.items()]),
        "envelopes": pd.concat(
            [fit.table(LEVEL).assign(arch=g) for g, fit in result.envelopes.items()]
            or [pd.DataFrame(columns=["arch"])]
        ),
        "optimum": pd.concat([f.assign(arch=g) for g, f in result.optima.items()]),
        "multipliers": pd.concat(multipliers) if multipliers else pd.DataFrame(columns=["arch"]),
        "holdout": result.forecast.drop(columns="pair", errors="ignore"),
        "sensitivity": sensitivity(result),
        "draws": draws,
    }
    for table in tables.values():
        if "arch" in table:
            table.insert(0, "arch", table.pop("arch"))
    return tables


def _record(result: Study) -> dict[str, Any]:
    """fits.json: every result at full precision, without points and draws (see tables/)."""
    sweep = result.sweep

    def light(text: str) -> dict[str, Any]:
        return {k: v for k, v in json.loads(text).items() if k not in ("draws", "points")}

    return {
        "schema": 1,
        "sweep": sweep.name,
        "conventions": sweep.conventions,
        "level": LEVEL,
        "bootstrap": result.bootstrap,
        "seed": result.seed,
        "baseline": result.baseline,
        "laws": {g: light(law.to_json()) for g, law in result.laws.items()},
        "envelopes": {g: light(fit.to_json()) for g, fit in result.envelopes.items()},
        "comparisons": {g: json.loads(r.to_json()) for g, r in result.comparisons.items()},
        "summary": summary(result),
        "cautions": cautions(result),
        "exclusions": _plain(sweep.exclusions),
        "failures": result.failures,
        "notes": sweep.notes,
        "environments": sweep.environments,
    }


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None for what is not a number, as JSON wants it."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _compose(
    page: Page, result: Study, tables: dict[str, pd.DataFrame], drawn: dict[str, Drawn]
) -> None:
    sweep = result.sweep

    def show(*names: str) -> None:
        for name in names:
            if name in drawn:
                each = drawn[name]
                files = {f: f"figures/{name}.{f.lower()}" for f in ("PNG", "PDF")}
                svg = hover.svg(each.figure, name)
                page.figure(svg, each.caption, wide=each.wide, files=files)

    page.text(_basis(result), soft=True)
    page.bullets(summary(result))
    page.box("What may not be concluded", cautions(result))
    page.switches(result.groups)
    page.section("Loss against compute")
    show("frontier", "learning_curves")
    page.section("Comparison")
    show("multipliers")
    if result.comparisons:
        page.bullets(r.verdict for r in result.comparisons.values())
    page.section("Laws")
    page.bullets(law_sentence(result, g) for g in result.groups)
    page.table(
        law_rows(result),
        caption=f"L = E + A/N^α + B/D^β; in brackets {LEVEL:.0%} intervals from "
        f"{result.bootstrap} bootstrap refits over runs; a: exponent of N*(C) under C = 6ND. A "
        "belongs to α and B to β: they cannot be read apart. Envelope: pure power law through the "
        "lowest checkpoints at each C. Full precision in `fits.json`.",
    )
    show("contours", "optimum", "exponents")
    page.section("Checks")
    show("holdout", "residuals", "collapse")
    page.heading("What the choices change")
    page.table(
        tables["sensitivity"],
        caption="The same checkpoints, fitted under other choices; point estimates. Where a row "
        "moves an answer by more than its interval, the choice matters more than the noise.",
    )
    warnings = [f"{look(g).label}: {w}" for g, law in result.laws.items() for w in law.warnings]
    if warnings:
        page.heading("Warnings of the fits")
        page.bullets(warnings)
    page.section("Throughput")
    show("throughput")
    page.section("Records")
    _records(page, result)
    page.section("Method and environment")
    page.table(checklist(result))
    for record in sweep.environments:
        data = record.get("data") or {}
        flat = {k: v for k, v in record.items() if k != "data"} | {
            f"data: {k}": v for k, v in data.items()
        }
        rows = pd.DataFrame({"field": list(flat), "value": [str(v) for v in flat.values()]})
        page.table(rows, folded=f"Environment of {record['runs']} runs")


def _records(page: Page, result: Study) -> None:
    """Tables of points, runs and exclusions."""
    sweep = result.sweep
    if len(sweep.exclusions):
        page.text(f"{len(sweep.exclusions)} left out, each with its reason:")
        page.table(sweep.exclusions)
    else:
        page.text("Nothing was left out.")
    if result.failures:
        page.bullets(f"not computed: {what}: {why}" for what, why in result.failures.items())
    if sweep.notes:
        page.bullets(sweep.notes)
    names = {"arch": "arch", "size": "size", "seed": "seed", "n_params": "N",
             "tokens": "D (tokens)", "flops": "C (FLOPs)", "loss": "loss",
             "loss_stderr": "± (blocks)", "bpb": "bits/byte", "predicted": "law"}  # fmt: skip
    points = pd.concat([where(result.residuals(), arch=g) for g in result.groups])
    page.table(
        take(points, names), folded=f"All {len(points)} checkpoints",
        caption="±: standard error over validation blocks, which is not the noise between runs.",
    )  # fmt: skip
    columns = {"run_id": "run", "state": "state", "n_params": "N", "tokens": "tokens",
               "tokens_per_second": "tokens/s", "mfu": "MFU", "lr": "lr", "device": "device",
               "git_revision": "revision"}  # fmt: skip
    page.table(
        take(sweep.runs, columns),
        folded=f"All {len(sweep.runs)} runs",
    )
