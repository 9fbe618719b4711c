"""The report of a sweep of linearizations: one self-contained page, tables and figures.

write(sweep_dir, out, scratch_dir) -> out/index.html
    1. linearization.read       milestones, teachers' losses, recovered shares
    2. linearization_law.fit    the law of each method, where one can be fitted
    3. frontier                 all models from scratch, those of `scratch_dir` as well
    4. out/law.json, out/tables/*.csv, out/figures/*.png, *.pdf, out/index.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError
from analysis.figures import hover, style
from analysis.figures import recovery_figures as figures
from analysis.io.frames import numbers, plain, rows, take, where, words
from analysis.io.records import load_sweep
from analysis.io.staging import staged
from analysis.judge.comparison import compare, layers
from analysis.judge.linearization_law import NAMES, Law, fit
from analysis.judge.recovery import (
    CONTINUED,
    LEVEL,
    LINEARIZED,
    SCRATCH,
    Recovery,
    equivalent,
    frontier,
    read,
    summarise,
)
from analysis.report.page import Page, bold, code


def write(sweep_dir: str | Path, out: str | Path, *, scratch_dir: str | Path | None = None) -> Path:
    """Writes the report and returns the path of its page.

    Args:
        sweep_dir: linearizations, and controls where there are any.
        out: directory for the page, tables and figures; created.
        scratch_dir: a sweep of models from scratch on the same data, for the frontier.

    Raises:
        AnalysisError: no linearized run, teachers of another corpus than the frontier's models, or
            `out` cannot be written.
    """
    recovery, out = read(sweep_dir), Path(out)
    scratch = _scratch(recovery, sweep_dir, scratch_dir)
    size = _largest(recovery)
    points = where(recovery.points, size=size)
    laws, failed = _laws(recovery)
    edge = frontier(scratch) if len(scratch) else None
    tables = {"points": recovery.points, "recovered": _recovered_table(recovery)}
    linear_groups = list(dict.fromkeys(words(where(points, kind=LINEARIZED), "group")))
    compared = {group: compare(recovery, group, size) for group in linear_groups}
    for group, table in compared.items():
        base = group.partition(" (")[0]
        tables[f"compared_{base}"] = table
        by_layer = layers(recovery, group, size)
        if len(by_layer):
            tables[f"layers_{base}"] = by_layer
    if laws:
        tables["law"] = _law_table(laws)
    drawn = [("recovered", figures.recovered(points), _RECOVERED.format(size=size))]
    for group, table in compared.items():
        base = group.partition(" (")[0]
        title = f"{_name(group)}, size {size}"
        drawn.append((f"compared_{base}", figures.compared(table, title), _COMPARED))
    linear = where(points, kind=LINEARIZED)
    if edge is not None and np.isfinite(numbers(linear, "teacher_flops")).all():
        tables["compute"] = _compute_table(linear, edge)
        drawn.append(("frontier", figures.on_frontier(linear, scratch, edge), _FRONTIER))
    if laws:
        drawn.append(("law", figures.laws(laws), _LAW))
    try:
        with staged(out) as folder:
            (folder / "tables").mkdir(parents=True, exist_ok=True)
            for name, table in tables.items():
                table.to_csv(folder / "tables" / f"{name}.csv", index=False)
            (folder / "law.json").write_text(
                json.dumps([_law_record(law) for law in laws], indent=1)
            )
            page = Page(f"Linearization: {recovery.name}")
            _compose(page, recovery, size, tables, laws, failed)
            page.section("Figures")
            for name, figure, caption in drawn:
                style.save(figure, folder / "figures" / name, title=name, caption=caption)
                files = [f"figures/{name}.{kind}" for kind in ("png", "pdf")]
                page.figure(hover.svg(figure, name), caption, wide=True, files=files)
            (folder / "index.html").write_text(page.render(), encoding="utf-8")
    except OSError as error:
        raise AnalysisError(f"the report cannot be written to {out}: {error.strerror}") from error
    return out / "index.html"


_RECOVERED = (
    "Validation loss and recovered share over the tokens of all stages, size {size}; mean over "
    "seeds, bands are 90 % t intervals. r is 1 at the teacher's loss; it is 0 for a method with a "
    "window at that window alone, untrained, for another right after surgery. Models from scratch "
    "are measured by the same two losses."
)
_COMPARED = (
    "A student at its largest budget beside the teacher, windows on the teacher's weights and its "
    "own parts; filled: trained, open: untrained. Bars: 90 % t intervals over seeds."
)
_FRONTIER = (
    "Loss against training compute. Filled: the compute of linearization alone; open: with that of "
    "the teacher's pretraining. Grey: every model from scratch on the same data, with the frontier "
    "that no other undercuts."
)
_LAW = (
    "Unrecovered share over uptraining tokens, one colour a size (parameters without "
    "embeddings), with the law and the 90 % interval of refits to runs drawn with replacement."
)


def _largest(recovery: Recovery) -> str:
    linear = recovery.of(LINEARIZED)
    return words(rows(linear, numbers(linear, "n_params") == linear["n_params"].max()), "size")[0]


def _scratch(
    recovery: Recovery, sweep_dir: str | Path, scratch_dir: str | Path | None
) -> pd.DataFrame:
    """Milestones from scratch of both sweeps, decayed ones: group, size, tokens, flops, loss."""
    columns = {n: n for n in ("size", "tokens", "flops", "loss")}
    own = take(recovery.of(SCRATCH), {"group": "group", **columns})
    if scratch_dir is None:
        return own
    other, mine = load_sweep(scratch_dir), load_sweep(sweep_dir)
    data = [
        {(r["data"] or {}).get("validation_sha256") for r in s.environments} for s in (other, mine)
    ]
    if data[0] != data[1]:
        raise AnalysisError(
            f"{scratch_dir}: its runs were validated on other text than those of {sweep_dir}; the "
            "losses cannot be compared. Give a sweep on the same corpus, tokenizer and sequence "
            "length."
        )
    found = [own, take(other.require_points(), {"arch": "group", **columns})]
    return pd.concat([f for f in found if len(f)], ignore_index=True)


def _laws(recovery: Recovery) -> tuple[list[Law], list[str]]:
    """The laws that can be fitted, and why others cannot."""
    laws: list[Law] = []
    failed: list[str] = []
    for group in sorted(set(words(recovery.of(LINEARIZED), "group"))):
        try:
            laws.append(fit(recovery, group))
        except AnalysisError as error:
            failed.append(str(error))
    return laws, failed


def _name(group: str) -> str:
    base, _, kind = group.partition(" (")
    return figures.label(base, kind.rstrip(")") or SCRATCH)


def _recovered_table(recovery: Recovery) -> pd.DataFrame:
    """Recovered shares of every group, size and budget, and what they count from."""
    share = summarise(recovery.points, "recovered")
    loss = summarise(recovery.points, "loss")
    surgery = summarise(recovery.points, "of_surgery")
    keys = ["group", "size", "n_params", "tokens"]
    both = loss.merge(share, on=keys, how="left", suffixes=("_loss", ""))
    both = both.merge(surgery, on=keys, how="left", suffixes=("", "_surgery"))
    columns = {"size": "size", "n_params": "parameters", "tokens": "tokens", "mean_loss": "loss",
               "mean": "recovered", "lo": "low", "hi": "high", "mean_surgery": "of surgery's gap",
               "seeds_loss": "seeds"}  # fmt: skip
    table = take(both, columns)
    table.insert(0, "runs", [_name(group) for group in words(both, "group")])
    return table


def without_share(points: pd.DataFrame) -> str:
    """A sentence on the controls that have no recovered share; "" where all have one."""
    open_ = rows(points, np.isnan(numbers(points, "recovered")))
    open_ = rows(open_, np.asarray(open_["kind"] != CONTINUED))
    names = [_name(group) for group in dict.fromkeys(words(open_, "group"))]
    if not names:
        return ""
    return (
        f" {', '.join(names)}: no share, because a share counts from a zero of its method, and of "
        "several variants of it each has its own; compare the losses."
    )


def _compute_table(linear: pd.DataFrame, edge: pd.DataFrame) -> pd.DataFrame:
    """What the frontier's models need for the same loss, over what linearization needs."""
    found: list[dict[str, Any]] = []
    for group in dict.fromkeys(words(linear, "group")):
        own = where(linear, group=group)
        budgets = sorted(set(numbers(own, "tokens")))
        pairs = figures.summarise_pair(own)
        needed = equivalent(edge, [loss for _, _, loss in pairs])
        for tokens, (near, far, loss), same in zip(budgets, pairs, needed, strict=True):
            found.append(
                {
                    "method": _name(group),
                    "tokens": tokens,
                    "loss": loss,
                    "FLOPs": near,
                    "with the teacher's": far,
                    "from scratch": same,
                    "multiplier": same / near,
                    "with teacher": same / far,
                }
            )
    return pd.DataFrame(found)


def _law_table(laws: list[Law]) -> pd.DataFrame:
    found: list[dict[str, Any]] = []
    for law in laws:
        for name in NAMES:
            low, high = law.interval(name)
            found.append({"method": _name(law.group), "parameter": name, "value": law.params[name],
                          "low": low, "high": high})  # fmt: skip
    return pd.DataFrame(found)


def _law_record(law: Law) -> dict[str, Any]:
    return {
        "group": law.group,
        "formula": "1 - r = a (D / 1e5)^-b (N / 1e5)^c",
        "params": law.params,
        "level": LEVEL,
        "intervals": {name: law.interval(name) for name in NAMES},
        "residual": law.residual,
        "holdout": law.holdout,
        "points": len(law.points),
        "warnings": list(law.warnings),
    }


def _compose(
    page: Page,
    recovery: Recovery,
    size: str,
    tables: dict[str, pd.DataFrame],
    laws: list[Law],
    failed: list[str],
) -> None:
    """Words and tables, in the order of the questions."""
    linear = where(recovery.points, kind=LINEARIZED, size=size)
    page.text(
        "A transformer's softmax attention is exchanged for linear attention, and part of what "
        "that costs is won back by training. r is the recovered share of a gap: for a method with "
        "a softmax window, between that window alone on the teacher's weights, without a linear "
        "part and without training, and the teacher; for a method without, between the model "
        "right after surgery and the teacher. The share of surgery's gap stands beside it: random "
        "feature maps open that gap, and a window alone closes most of it."
    )
    page.bullets(_sentences(recovery, size, tables))
    page.box("What keeps these numbers from being more than they are", _cautions(recovery, linear))
    page.section("How much is recovered")
    table = tables["recovered"]
    caption = (
        f"Size {size}. Intervals: 90 %, over seeds (Student's t); the validation text is the same "
        "for all, so that its own noise is not in them."
    )
    caption += without_share(recovery.points)
    page.table(where(table, size=size).drop(columns="size"), caption=caption)
    page.table(table, folded="All sizes")
    page.section("Beside windows alone")
    page.text(
        "What the linear part is worth shows beside the same attention without it: untrained, at "
        "the bytes of the student's state, and trained as the student was."
    )
    for name, table in tables.items():
        what, _, base = name.partition("_")
        if what == "compared":
            caption = f"{figures.label(base, LINEARIZED)} at its largest budget, size {size}. "
            caption += "Intervals: 90 %, over seeds. State: of one sequence of training length."
            page.table(table, caption=caption)
        if what == "layers":
            page.table(table, folded="Layer by layer: nats more without it")
    if "compute" in tables:
        page.section("What it costs")
        page.table(tables["compute"], caption=(
            "From scratch: compute at which the frontier of models trained from scratch reaches "
            "the same loss, by interpolation; none where it does not reach it. Multiplier: that "
            "over the compute of linearization alone, and with the teacher's."))  # fmt: skip
    page.section("A law of linearization")
    page.text(
        "1 - r = a (D / 1e5)^-b (N / 1e5)^c, over uptraining tokens D of all stages and "
        "parameters N without embeddings."
    )
    if laws:
        page.table(tables["law"], caption="Intervals: 90 %, refits to runs drawn with replacement.")
    for law in laws:
        text = f"{bold(_name(law.group))}: {len(law.points)} milestones, scatter a factor of "
        text += f"{np.exp(law.residual):.2f}."
        if np.isfinite(law.holdout):
            text += " The largest budget, predicted from the others, is off by a factor of "
            text += f"{np.exp(law.holdout):.2f}."
        page.text(text)
        page.box(f"{_name(law.group)}: before believing it", law.warnings)
    page.bullets(failed)


def _sentences(recovery: Recovery, size: str, tables: dict[str, pd.DataFrame]) -> list[str]:
    """The result in words: every method at its largest budget, beside its control."""
    found: list[str] = []
    points = where(recovery.points, size=size)
    share = {(r["group"], r["tokens"]): r for r in plain(summarise(points, "recovered"))}
    surgery = {(r["group"], r["tokens"]): r for r in plain(summarise(points, "of_surgery"))}
    linear = where(points, kind=LINEARIZED)
    for group in dict.fromkeys(words(linear, "group")):
        own = where(linear, group=group)
        tokens = numbers(own, "tokens").max()
        row = share.get((group, tokens))
        if row is None:
            row = surgery[group, tokens]
            found.append(
                f"{bold(_name(group))}: its window alone was not measured; {_interval(row)} of "
                "surgery's gap."
            )
            continue
        part = tokens / numbers(own, "teacher_tokens").mean()
        text = f"{bold(_name(group))} recovers {_interval(row)} {_counted(own)} with "
        text += f"{tokens:,.0f} tokens"
        if np.isfinite(part):
            text += f", {part:.0%} of the teacher's"
        text += f", training {numbers(own, 'trained').max():.1%} of the parameters at once"
        if control := share.get((words(own, "base")[0], tokens)):
            text += f"; the same model from scratch, with as many tokens: {_interval(control)}"
        found.append(text + ".")
    if "compute" in tables:
        last = tables["compute"].groupby("method", sort=False).last().reset_index()
        for row in plain(last):
            if row["multiplier"] is None:
                found.append(f"{row['method']}: no model from scratch reaches its loss here.")
                continue
            found.append(
                f"{row['method']}: from scratch its loss costs {row['multiplier']:.1f} x the "
                f"compute of linearizing, and {row['with teacher']:.2f} x that of teacher and "
                "linearizing together."
            )
    return found


def _counted(own: pd.DataFrame) -> str:
    """What the shares of a group count from."""
    windows = numbers(own, "window_loss")
    return "beyond its window alone" if np.isfinite(windows).all() else "of surgery's gap"


def _interval(row: dict[str, Any]) -> str:
    if row["lo"] is None:
        return f"{row['mean']:.1%} (one seed)"
    return f"{row['mean']:.1%} [{row['lo']:.1%}, {row['hi']:.1%}]"


def _cautions(recovery: Recovery, linear: pd.DataFrame) -> list[str]:
    seeds = len(set(numbers(linear, "seed")))
    found = [
        f"Models of {numbers(linear, 'n_params').max():,.0f} parameters: nothing here says how "
        "linearization goes at the sizes that people use.",
        f"{seeds} seed(s) at the size shown; the teacher is one, so that its own luck is in no "
        "interval.",
        "A teacher that has not seen enough text goes on learning while it is linearized: r near "
        "or above 1 may be that, and the control that trains the teacher on shows how much.",
        "Hyper-parameters are those of the runs: where the rates of linearization were tuned on "
        "the teacher's size and those of the controls were not, the comparison leans towards "
        f"linearization. For {code('experiments/linearize_loop.py')} this is so: its rates (on "
        "seed 1 and "
        "these validation blocks) and its window were chosen, the controls have the teacher's.",
        *recovery.notes,
    ]
    return found
