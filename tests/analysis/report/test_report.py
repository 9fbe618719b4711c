"""The report of a sweep whose laws are known: numbers, words, files and page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize_scalar

from analysis.errors import AnalysisError, FitWarning
from analysis.io.evals import load_evals
from analysis.io.frames import where
from analysis.io.records import load_sweep
from analysis.judge.study import Study, study
from analysis.report.narrative import (
    cautions,
    compute_words,
    headline,
    law_sentence,
    rolling_rows,
    summary,
)
from analysis.report.page import bold
from analysis.report.report import write_report
from tests.support.make_runs import LAWS, TASKS, Problem, write_sweep

ARCHS = ("llama", "hgrn2", "cosformer2")
DIMS = (32, 64, 96, 128, 192)
PROBLEMS = {
    "hgrn2-d192-s1": Problem(state="diverged", reason="loss is NaN at step 412"),
    "llama-d32-s1": Problem(state="running", drop_horizons=1, torn=True),
}


@pytest.fixture(scope="module")
def sweep_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(
        tmp_path_factory.mktemp("runs") / "demo", archs=ARCHS, dims=DIMS, seeds=(0, 1),
        log_lines=30, noise=0.002, problems=PROBLEMS, tasks=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(sweep_dir: Path) -> Study:
    sweep = load_sweep(sweep_dir)
    return study(sweep, bootstrap=200, evals=load_evals(sweep_dir, sweep))


@pytest.fixture(scope="module")
def report(sweep_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sweep_dir, tmp_path_factory.mktemp("out") / "report", bootstrap=200).parent


@pytest.mark.parametrize("arch", ARCHS)
def test_known_laws_are_recovered(result: Study, arch: str) -> None:
    law, truth = result.laws[arch], LAWS[arch]
    for name in ("E", "alpha", "beta"):
        spread = float(law.draws_of(name).std())
        # 9 checks; 4 bootstrap standard errors, for intervals that rest on ten runs
        assert abs(law.params[name] - getattr(truth, name)) < 4 * spread
        assert 0 < spread < 0.15


def true_frontier(result: Study, arch: str, compute: float) -> float:
    """Lowest loss within a budget by brute force, from the law and the recorded FLOPs."""
    own = result.points[result.points["arch"] == arch]
    ratio = own["flops"] / own["tokens"]
    curve = np.polynomial.Polynomial.fit(np.log(own["n_params"]), np.log(ratio), 3)

    def loss(log_n: float) -> float:
        d = compute / np.exp(curve(log_n))
        return float(LAWS[arch].loss(np.exp(log_n), d))

    low, high = np.log(own["n_params"].min()), np.log(own["n_params"].max())
    return float(minimize_scalar(loss, bounds=(low, high), method="bounded").fun)


@pytest.mark.parametrize("arch", ARCHS)
def test_loss_bands_hold_the_true_frontier(result: Study, arch: str) -> None:
    bands = result.loss_bands()
    own = bands[(bands["group"] == arch) & bands["inside"]]
    middle = own[(own["x"] > 1e12) & (own["x"] < 1e14)]
    assert len(middle) > 5
    truth = np.array([true_frontier(result, arch, c) for c in middle["x"]])
    np.testing.assert_allclose(middle["y"], truth, rtol=0.01)
    assert (middle["lo"] <= middle["y"]).all()
    assert (middle["y"] <= middle["hi"]).all()


def test_multipliers_are_those_of_the_truth(result: Study) -> None:
    assert set(result.comparisons) == {"hgrn2", "cosformer2"}
    for arch, compared in result.comparisons.items():
        assert not compared.paired  # the baseline lacks a run
        frame = compared.frame
        row = frame.iloc[(np.log(frame["c_y"]) - np.log(1e13)).abs().argmin()]
        # The true loss of the baseline at that budget, and what the other needs for it
        target = true_frontier(result, "llama", row["c_y"])
        grid = np.geomspace(row["c_y"] / 3, row["c_y"] * 3, 400)
        losses = np.array([true_frontier(result, arch, c) for c in grid])
        needed = float(np.exp(np.interp(-target, -losses, np.log(grid))))
        assert row["multiplier"] == pytest.approx(row["c_y"] / needed, rel=0.08)
        assert row["lo"] < row["multiplier"] < row["hi"]


def test_complete_sweeps_are_compared_in_pairs(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", archs=("llama", "tnl"), dims=DIMS, log_lines=20)
    compared = study(load_sweep(root), bootstrap=200).comparisons["tnl"]
    assert compared.paired


def test_flops_per_token_follows_the_record(result: Study) -> None:
    own = result.points[result.points["arch"] == "llama"]
    n, cost = own["n_params"].to_numpy(), (own["flops"] / own["tokens"]).to_numpy()
    model = result.laws["llama"].compute_model
    assert model.source == "accounting"
    np.testing.assert_allclose(model(n), cost, rtol=0.005)
    far = model(np.array([1e9]))
    assert 6e9 < far[0] < 1e10  # 6N and 22 % of attention: sane far outside, not a runaway


def test_hold_out_never_sees_the_largest_size(result: Study) -> None:
    for arch in ARCHS:
        own = result.forecast[result.forecast["arch"] == arch]
        assert own["size"].unique().tolist() == ["d192"]
        assert (own["leap"] > 1).any()
        assert (np.abs(own["predicted"] / own["loss"] - 1) < 0.05).all()
        assert ((own["lo"] < own["predicted"]) & (own["predicted"] < own["hi"])).all()
        assert set(own["unit"]) == {"run"}


def test_rolling_hold_out_beats_the_pure_power_law(result: Study) -> None:
    for arch in ARCHS:
        own = where(result.rolling, arch=arch)
        assert own["cut"].nunique() >= 3
        assert (own["leap"] > 1).all(), "nothing that was fitted is forecast"
        # The truth has a floor, which a pure power law in C cannot follow
        assert np.abs(own["error"]).mean() < 0.5 * np.abs(own["pure"]).mean()
    shown = rolling_rows(result)
    assert set(shown["architecture"]) == {"LLaMA", "HGRN2", "cosFormer2"}


def test_exponents_are_shared_where_the_truth_shares_them(result: Study) -> None:
    assert result.shared is not None
    assert result.shared.aicc_shared < result.shared.aicc_free
    assert result.shared.exponents["alpha"] == pytest.approx(0.34, abs=0.06)
    assert len(result.shared.differences) == 6  # three pairs, two exponents
    assert "prefers shared exponents" in result.shared.verdict


def test_crossings_are_told_with_what_the_draws_allow(result: Study) -> None:
    for compared in result.comparisons.values():
        words = compared.crossing_words
        if not np.isfinite(compared.crossing.compute):
            assert "do not cross" in words
        elif compared.crossing.share < 0.9:
            assert "not settled" in words
        else:
            assert f"{compared.crossing.lo:.2g} to {compared.crossing.hi:.2g} FLOPs" in words


def test_tasks_follow_the_loss_in_two_steps(result: Study) -> None:
    assert result.tasks is not None
    assert set(result.tasks.fits) == {"arc_easy", "piqa"}
    assert "every model is at chance" in result.tasks.failures["boolq"]
    assert "law of task boolq" in result.failures
    for task, fit in result.tasks.fits.items():
        chance, midpoint, slope = TASKS[task]
        assert fit.chance == chance
        # 1,000 questions: accuracies to 0.016, over 112 checkpoints
        assert fit.params["midpoint"] == pytest.approx(midpoint, abs=0.08)
        assert fit.params["slope"] == pytest.approx(slope, rel=0.2)
    bands = result.accuracy_bands()
    assert set(zip(bands["group"], bands["task"], strict=True)) == {
        (g, t) for g in ARCHS for t in result.tasks.fits
    }
    for arch in ARCHS:
        best = result.optima[arch]
        for task in result.tasks.fits:
            chance, midpoint, slope = TASKS[task]
            own = where(bands, group=arch, task=task)
            inside = own["inside"].to_numpy(bool)
            loss = best["loss"].to_numpy()
            truth = chance + (1 - chance) / (1 + np.exp(slope * (loss - midpoint)))
            np.testing.assert_allclose(own["y"].to_numpy()[inside], truth[inside], atol=0.05)
            assert ((own["lo"] <= own["y"]) & (own["y"] <= own["hi"]))[inside].mean() > 0.95


def test_words_carry_intervals_and_limits(result: Study) -> None:
    found = " ".join(summary(result))
    assert "3 architectures (LLaMA, HGRN2, cosFormer2), 28 runs, 112 checkpoints" in found
    assert found.count("90%") >= 3
    limits = " ".join(cautions(result))
    assert "3.54M parameters, 20 times fewer" in limits
    assert "may be one of tuning" in limits
    assert "reads its training text 8.9 times" in limits
    assert "2 run(s) are left out" in limits


def test_files(report: Path) -> None:
    names = {p.stem for p in (report / "figures").glob("*.png")}
    assert names == {p.stem for p in (report / "figures").glob("*.pdf")}
    assert {
        "learning_curves",
        "frontier",
        "multipliers",
        "holdout",
        "rolling",
        "downstream",
        "accuracy",
    } <= names
    record = json.loads((report / "fits.json").read_text())
    assert set(record["laws"]) == set(ARCHS)
    assert record["conventions"].startswith("N: non-embedding parameters; exact")
    laws = pd.read_csv(report / "tables" / "laws.csv")
    for arch in ARCHS:
        own = laws[laws["arch"] == arch].set_index("parameter")["value"]
        assert own["alpha"] == record["laws"][arch]["parameters"]["alpha"]  # full precision
    assert len(pd.read_csv(report / "tables" / "points.csv")) == 112
    draws = pd.read_csv(report / "tables" / "draws.csv")
    assert len(draws) == 3 * 200
    reasons = " ".join(pd.read_csv(report / "tables" / "exclusions.csv")["reason"])
    assert "loss is NaN at step 412" in reasons
    assert "still running" in reasons
    choices = pd.read_csv(report / "tables" / "multiplier_choices.csv")
    assert {"as reported", "C = 6ND", "without the smallest size"} <= set(choices["choice"])
    questions = pd.read_csv(report / "tables" / "checklist.csv")
    data = questions[questions["question"] == "Which data and tokenizer?"]
    assert data["answer"].unique().tolist() == ["kjv, bytes"]


class Outline(HTMLParser):
    """Collects tags, their attributes and whether they are balanced."""

    VOID = ("meta", "link", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        found = dict(attrs)
        if tag == "a":
            self.links.append(found["href"] or "")
        elif tag in ("script", "img", "link", "iframe", "source", "image"):
            self.loads += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return (report / "index.html").read_text(encoding="utf-8")


def test_page_is_self_contained_and_well_formed(page: str, report: Path) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.stack == []
    assert len(outline.ids) == len(set(outline.ids))
    for target in outline.loads:  # an image inside the page is a data: URL
        assert target.startswith("data:")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    for link in outline.links:  # a page that is mailed has no neighbours
        assert link.startswith("#")
        assert link[1:] in outline.ids
    assert outline.count["figure"] == outline.count["svg"] == 14
    assert 'name="viewport"' in page
    assert len(page) < 3_000_000


def test_page_says_what_matters(page: str) -> None:
    for text in (
        "What may not be concluded", "they say nothing about which architecture wins",
        "N: non-embedding parameters; exact training FLOPs", "loss is NaN at step 412",
        "still running", "90% intervals", "Nothing here holds beyond about 3 times",
        "reporting checklist", "Do they share their exponents?", "The frontiers of HGRN2 and LLaMA",
        "Rolling hold-out", "arc_easy", "git_revision", "0123456789abcdef", "2.13.0",
    ):  # fmt: skip
        assert text in page
    for label in ("LLaMA", "HGRN2", "cosFormer2"):
        assert page.count(label) > 10
    hovers = re.findall(r"<title>(LLaMA d192: N 3\.54M, D [^<]*)</title>", page)
    assert len(hovers) >= 4
    for group in ARCHS:  # the switches act on classes that exist
        assert f'value="g-{group}"' in page
        assert f'class="g-{group}"' in page


@pytest.mark.slow
def test_a_second_report_is_the_same(sweep_dir: Path, report: Path, tmp_path: Path) -> None:
    again = write_report(sweep_dir, tmp_path / "again", bootstrap=200).parent
    files = sorted(p.relative_to(report) for p in report.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in files:
        assert (report / name).read_bytes() == (again / name).read_bytes(), name


def test_an_undetermined_law_does_not_head_a_report(result: Study) -> None:
    """E at zero, or rolling forecasts that a pure power law beats, follow the verdicts at once."""
    assert headline(result) is None
    assert law_sentence(result, "hgrn2").startswith(bold("HGRN2"))
    zero = FitWarning("no_irreducible", "E went to zero.")
    law = replace(result.laws["hgrn2"], warnings=[zero])
    without_floor = replace(result, laws={**result.laws, "hgrn2": law})
    said = summary(without_floor)
    care = next(i for i, text in enumerate(said) if text.startswith("The data do not determine"))
    assert said[care].startswith("The data do not determine the law of HGRN2")
    assert "E went to zero" in said[care]
    # Verdicts come before it: sure ones first, and no other without its mark.
    assert 0 < care == len(without_floor.comparisons)
    marked = [text.startswith("Not determined: ") for text in said[:care]]
    assert marked == sorted(marked)
    assert [("HGRN2" in text) for text in said[:care]] == marked
    assert bold("HGRN2") not in law_sentence(without_floor, "hgrn2")
    assert "not determined" in law_sentence(without_floor, "hgrn2")
    rolling = result.rolling.copy()
    rolling.loc[rolling["arch"] == "llama", "error"] = 0.5
    beaten = headline(replace(result, rolling=rolling))
    assert beaten is not None
    assert "a pure power law errs by" in beaten
    assert "LLaMA" in beaten
    assert "HGRN2" not in beaten


def test_one_hopeless_architecture_does_not_stop_the_rest(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", archs=("llama", "tnl"), dims=DIMS, log_lines=20)
    write_sweep(tmp_path / "t", archs=("hgrn2",), dims=(32,), log_lines=20)
    for run in (tmp_path / "t").glob("hgrn2*"):
        run.rename(root / run.name)
    result = study(load_sweep(root), baseline="hgrn2", bootstrap=200)
    assert result.groups == ["llama", "tnl"]
    assert "hgrn2" in " ".join(result.failures)
    assert result.baseline == "llama"
    assert "hgrn2 has no law" in result.failures["baseline"]


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    root = write_sweep(tmp_path / "s", archs=("llama",), dims=(32,), log_lines=20)
    with pytest.raises(AnalysisError, match=r"could be fitted: law of llama: 1 usable run"):
        write_report(root, tmp_path / "out")
    bad = write_sweep(
        tmp_path / "b", archs=("llama",), dims=(32,), log_lines=20,
        problems={"llama-d32-s0": Problem(state="failed", reason="disk full")},
    )  # fmt: skip
    with pytest.raises(AnalysisError, match=r"no usable point: failed: disk full \(1x\)"):
        write_report(bad, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_says_so(sweep_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match=r"cannot be written to .*file"):
        write_report(sweep_dir, tmp_path / "file" / "report", bootstrap=100)


def test_where_flops_per_token_come_from_is_said_once(result: Study) -> None:
    laws = {
        arch: replace(law, compute_model=replace(law.compute_model, scatter=scatter))
        for (arch, law), scatter in zip(result.laws.items(), (0.011, 0.005, 0.0), strict=True)
    }
    assert compute_words(replace(result, laws=laws)) == (
        "C = f(N) D, f from the accounting of the runs (rows scatter by up to 1.1% about it)"
    )
