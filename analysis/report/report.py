"""A report of a sweep or a table: one self-contained page, and the tables and figures behind it.

    write_report(sweep_dir, out) -> out/index.html
        1. records.load_sweep    runs, points, exclusions; a table's are given
        2. study.study           laws, intervals, hold-out, comparison
        3. out/fits.json, out/tables/*.csv, out/figures/*.png, *.pdf
        4. out/runs/*.html       a page for every run
        5. out/index.html        the same in words, tables and SVG; no request leaves the page

The same records give the same bytes, so a report can be rebuilt at any time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import AnalysisError, alike, worth_reading
from analysis.figures import hover, presets
from analysis.figures.style import FORMATS, check_formats, save
from analysis.io.evals import load_evals
from analysis.io.frames import finite, plain, take, where, words
from analysis.io.looks import look
from analysis.io.records import load_sweep
from analysis.io.staging import staged
from analysis.io.sweep import Conventions, Sweep
from analysis.judge.choices import checklist_table, multiplier_table, sensitivity_table
from analysis.judge.study import Progress, Study, study
from analysis.report.forecast_section import Sealed, add_health
from analysis.report.narrative import (
    cautions,
    compute_words,
    facts,
    headline,
    law_rows,
    law_sentence,
    rolling_rows,
    summary,
    tasks_table,
    verdicts,
)
from analysis.report.page import Page, code
from analysis.report.report_figures import Drawn, basis, draw
from analysis.report.run_pages import write_runs
from analysis.report.task_report import add_to, evaluations
from analysis.report.what_if_section import add_what_ifs
from analysis.units import LEVEL


def write_report(
    sweep_dir: str | Path,
    out: str | Path,
    *,
    given: Sweep | None = None,
    conventions: Conventions | None = None,
    other_data: bool = False,
    only: str | None = None,
    baseline: str | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
    seals: Sequence[Path] = (),
    style: str = "house",
    formats: Sequence[str] = FORMATS[:2],
    told: Callable[[Sweep], object] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes the report of a sweep and returns the path of its page.

    Args:
        sweep_dir: what `linscale run` wrote, or a zip file of it.
        out: directory for the page, tables and figures; created.
        given: what `load_table` read, for a report of a table; `sweep_dir` is then not read.
        conventions: which N, C, loss and checkpoints; default: see `Conventions`.
        other_data: keep runs whose data are not those of the others (`load_sweep`).
        only: which runs, as in `arch=llama|tnl seed=0` (`linscale.selection`).
        baseline: architecture that the others are compared with.
        bootstrap: refits of each law.
        seed: of the bootstrap.
        seals: files of sealed forecasts, to be shown with what came of them.
        style: where the files of figures will be printed (`analysis.figures.presets`); the page
            keeps its own.
        formats: of those files: png, pdf, svg.
        told: given the sweep as it was used, with what was left out.
        progress: told in words what is being done.

    Raises:
        AnalysisError: no usable run, no law, an unknown style or format, or `out` cannot be
            written.
    """
    out = Path(out)
    presets.preset(style)
    check_formats(formats)
    say = progress or (lambda _: None)
    sweep = given or load_sweep(
        sweep_dir, conventions=conventions, other_data=other_data, only=only
    )
    evals = None if given else load_evals(sweep_dir, sweep)
    result = study(
        sweep, baseline=baseline, bootstrap=bootstrap, seed=seed, evals=evals, progress=progress,
    )  # fmt: skip
    sweep = result.sweep
    if told is not None:
        told(sweep)
    sealed = Sealed(seals, sweep) if seals else None
    found = None if given else evaluations(sweep_dir, sweep, loss=False)
    say("sensitivity")
    tables = _tables(result)
    try:
        with staged(out) as folder:
            (folder / "tables").mkdir(exist_ok=True)
            for name, table in tables.items():
                table.to_csv(folder / "tables" / f"{name}.csv", index=False)
            (folder / "fits.json").write_text(
                json.dumps(_record(result), indent=1), encoding="utf-8"
            )
            page = Page(f"Scaling laws of {sweep.name}")
            drawn = _drawn(result, sealed)
            if sealed is not None:
                scored = folder / "tables" / "forecasts.csv"
                sealed.scores.table.to_csv(scored, index=False)
            runs = sorted(set(words(result.points, "run_id")))
            with presets.use(style):
                printed, evaluated = drawn, found
                if style != "house":  # once more, at the venue's width
                    printed = _drawn(result, sealed)
                    evaluated = found and evaluations(sweep_dir, sweep, loss=False)
                for each in printed.values():
                    say(f"drawing {each.name}")
                    save(
                        each.figure,
                        folder / "figures" / each.name,
                        title=f"{sweep.name}: {each.name}",
                        caption=f"{each.caption} {basis(result)}",
                        runs=runs,
                        formats=formats,
                    )
                if evaluated is not None and len(evaluated.evals):
                    evaluated.save(folder / "evaluations", formats)
            pages = {} if given else write_runs(sweep, sweep_dir, folder, say)
            _compose(page, result, tables, drawn, pages, sealed, formats)
            if found is not None:
                add_to(page, found, "evaluations", formats)
            (folder / "index.html").write_text(page.render(), encoding="utf-8")
    except OSError as error:
        raise AnalysisError(f"the report cannot be written to {out}: {error.strerror}") from error
    return out / "index.html"


def _drawn(result: Study, sealed: Sealed | None) -> dict[str, Drawn]:
    """Every figure by its name, in the style in force."""
    drawn = [*draw(result), *([sealed.drawn] if sealed is not None else [])]
    return {each.name: each for each in drawn}


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
        "points": result.residuals().drop(columns="size_seed", errors="ignore"),
        "runs": result.sweep.runs,
        "exclusions": result.sweep.exclusions,
        "laws": pd.concat([law.table(LEVEL).assign(arch=g) for g, law in result.laws.items()]),
        "envelopes": pd.concat(
            [fit.table(LEVEL).assign(arch=g) for g, fit in result.envelopes.items()]
            or [pd.DataFrame(columns=["arch"])]
        ),
        "optimum": pd.concat([f.assign(arch=g) for g, f in result.optima.items()]),
        "multipliers": pd.concat(multipliers) if multipliers else pd.DataFrame(columns=["arch"]),
        "holdout": result.forecast.drop(columns="size_seed", errors="ignore"),
        "rolling_holdout": result.rolling,
        "exponent_differences": result.shared.differences if result.shared else pd.DataFrame(),
        "accuracies": result.tasks.measured if result.tasks else pd.DataFrame(),
        "tasks": tasks_table(result.tasks),
        "multiplier_choices": multiplier_table(result),
        "sensitivity": sensitivity_table(result),
        "checklist": checklist_table(result),
        "draws": draws,
    }
    tables = {name: table for name, table in tables.items() if len(table.columns)}
    for table in tables.values():
        if "arch" in table:
            table.insert(0, "arch", table.pop("arch"))
    return tables


def _record(result: Study) -> dict[str, Any]:
    """fits.json: every result at full precision, without points and draws (see tables/)."""
    sweep = result.sweep

    def light(text: str) -> dict[str, Any]:
        return {k: v for k, v in json.loads(text).items() if k not in ("draws", "points")}

    return finite(
        {
            "schema": 1,
            "sweep": sweep.name,
            "conventions": sweep.conventions,
            "level": LEVEL,
            "bootstrap": result.bootstrap,
            "seed": result.seed,
            "baseline": result.baseline,
            "laws": {g: light(law.to_json()) for g, law in result.laws.items()},
            "envelopes": {g: light(fit.to_json()) for g, fit in result.envelopes.items()},
            "shared_exponents": result.shared.as_dict() if result.shared else None,
            "tasks": {
                task: light(fit.to_json())
                for task, fit in (result.tasks.fits if result.tasks else {}).items()
            },
            "comparisons": {g: json.loads(r.to_json()) for g, r in result.comparisons.items()},
            "summary": summary(result),
            "cautions": cautions(result),
            "exclusions": plain(sweep.exclusions),
            "failures": result.failures,
            "notes": sweep.notes,
            "environments": sweep.environments,
        }
    )


def _compose(
    page: Page,
    result: Study,
    tables: dict[str, pd.DataFrame],
    drawn: dict[str, Drawn],
    run_pages: dict[str, str],
    sealed: Sealed | None,
    formats: Sequence[str],
) -> None:
    sweep = result.sweep

    def show(*names: str) -> None:
        for name in names:
            if name in drawn:
                each = drawn[name]
                files = [f"figures/{name}.{kind}" for kind in formats]
                svg = hover.svg(each.figure, name)
                page.figure(svg, each.caption, wide=each.wide, files=files)

    page.lead(verdicts(result))
    if (care := headline(result)) is not None:
        page.box("Read with care", [care])
    page.bullets(facts(result))
    page.text(basis(result), soft=True)
    page.box("What may not be concluded", cautions(result))
    page.switches(result.groups)
    add_what_ifs(page, result)
    page.section("Loss against compute")
    show("frontier", "learning_curves")
    page.section("Comparison")
    show("multipliers")
    if result.comparisons:
        page.bullets(f"{r.verdict} {r.crossing_words}" for r in result.comparisons.values())
    if result.shared is not None:
        page.heading("Do they share their exponents?")
        page.text(result.shared.verdict)
        page.table(result.shared.words(), folded="Differences of exponents, pair by pair")
    if sealed is not None:
        page.section("Sealed forecasts")
        page.bullets(sealed.words)
        show("forecasts")
    page.section("Laws")
    page.bullets(law_sentence(result, g) for g in result.groups)
    page.table(
        law_rows(result),
        caption=f"L = E + A/N^α + B/D^β; in brackets {LEVEL:.0%} intervals from "
        f"{result.bootstrap} bootstrap refits over runs; a: mean "
        f"exponent of N*(C) over the compute of the runs, under {compute_words(result)}. A "
        "belongs to α and B to β: they cannot be read apart. Envelope: pure power law through the "
        f"lowest checkpoints at each C. Full precision in {code('fits.json')}.",
    )
    show("contours", "optimum", "valleys", "exponents")
    if len(best := result.shares.best(LEVEL)):
        page.heading("Share of softmax layers")
        show("shares")
        page.table(
            best,
            caption=f"Share of lowest loss at each budget with its {LEVEL:.0%} interval, and the "
            "shares trained that cannot be told from the best of them.",
        )
    page.section("Checks")
    show("holdout", "rolling")
    if len(result.rolling):
        page.table(
            rolling_rows(result),
            caption="Rolling hold-out: mean of predicted / measured - 1 and of its size over all "
            "cuts, by how far the forecast leaps; the last two for a pure power law in compute and "
            "for repeating the lowest loss seen.",
        )
    show("residuals", "collapse")
    if result.comparisons:
        page.heading("What the choices change")
        page.table(
            tables["multiplier_choices"],
            caption=f"Compute multipliers over {look(result.baseline).label} at the lowest loss "
            "within the data of both, from the same checkpoints under other choices; point "
            "estimates. Where a row leaves the interval above, the choice matters more than noise.",
        )
    for group in result.groups:
        columns = {"choice": "choice", "setting": "setting", "points": "points", "E": "E",
                   "alpha": "α", "beta": "β", "a": "a", "shift": "shift of a / s.e."}  # fmt: skip
        page.table(
            take(where(tables["sensitivity"], arch=group), columns),
            folded=f"{look(group).label}: its law under other choices",
        )
    warnings = [f"{look(g).label}: {w}" for g, law in result.laws.items()
                for w in worth_reading(law.warnings)]  # fmt: skip
    if warnings:
        page.heading("Warnings of the fits")
        page.bullets(warnings)
    if result.tasks is not None:
        page.section("Tasks")
        show("downstream", "accuracy")
        page.table(
            tasks_table(result.tasks),
            caption="Accuracy = chance + (1 - chance) / (1 + exp(slope (loss - midpoint))); in "
            f"brackets {LEVEL:.0%} intervals over runs.",
        )
    if sweep.recorded:
        page.section("Throughput")
        show("throughput")
    page.section("Records")
    add_health(page, sweep)
    _records(page, result, run_pages)
    page.section("Method and environment")
    for group in result.groups:
        answers = where(tables["checklist"], arch=group).drop(columns="arch")
        page.table(answers, folded=f"{look(group).label}: reporting checklist")
    for record in sweep.environments:
        data = record.get("data") or {}
        flat = {k: v for k, v in record.items() if k != "data"} | {
            f"data: {k}": v for k, v in data.items()
        }
        rows = pd.DataFrame({"field": list(flat), "value": [str(v) for v in flat.values()]})
        page.table(rows, folded=f"Environment of {record['runs']} runs")


def _records(page: Page, result: Study, run_pages: dict[str, str]) -> None:
    """Tables of points, runs and exclusions; runs have pages beside the report."""
    sweep = result.sweep

    if len(sweep.exclusions):
        page.text(f"{len(sweep.exclusions)} left out, each with its reason:")
        page.table(sweep.exclusions)
    else:
        page.text("Nothing was left out.")
    if result.failures:
        page.bullets(f"not computed: {what}: {why}" for what, why in alike(result.failures))
    if sweep.notes:
        page.bullets(sweep.notes)
    names = {"arch": "arch", "size": "size", "seed": "seed", "n_params": "N",
             "tokens": "D (tokens)", "flops": "C (FLOPs)", "loss": "loss",
             "loss_stderr": "± (blocks)", "bpb": "bits/byte", "predicted": "law"}  # fmt: skip
    points = pd.concat([where(result.residuals(), arch=g) for g in result.groups])
    own = {"run_id": "run", **names}
    names = names if sweep.recorded else {k: v for k, v in own.items() if k in points}
    page.table(
        take(points, names), folded=f"All {len(points)} checkpoints",
        caption="±: standard error over validation blocks, which is not the noise between runs."
        if "loss_stderr" in names else "",
    )  # fmt: skip
    if not sweep.recorded:
        return
    columns = {"run_id": "run", "state": "state", "n_params": "N", "tokens": "tokens",
               "tokens_per_second": "tokens/s", "mfu": "MFU", "lr": "lr", "device": "device",
               "git_revision": "revision"}  # fmt: skip
    page.table(
        take(sweep.runs, columns),
        folded=f"All {len(sweep.runs)} runs",
        caption="Each run has a page of its own in the folder runs beside this file."
        if run_pages else "",
    )  # fmt: skip
