"""What a page can ask, against fits made afresh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.fit.fitting import fit_law
from analysis.fit.within import frontier_within
from analysis.io.frames import numbers, rows, where, words
from analysis.io.records import load_sweep
from analysis.judge.study import Study, study
from analysis.judge.what_if import C_COUNTED, E_HELD, N_COUNTED, REPORTED, RUN_OUT, what_ifs
from analysis.report.what_if_section import tabulated
from tests.support.make_runs import write_sweep


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Study:
    root = tmp_path_factory.mktemp("runs") / "s"
    write_sweep(root, archs=("llama", "hgrn2"), dims=(32, 64, 96, 128), seeds=(0, 1), log_lines=10)
    return study(load_sweep(root), bootstrap=60)


@pytest.fixture(scope="module")
def table(result: Study) -> pd.DataFrame:
    return what_ifs(result)


def rows_of(table: pd.DataFrame, arch: str, choice: str, setting: str) -> pd.DataFrame:
    return where(table, arch=arch, choice=choice, setting=setting)


def test_as_reported_is_the_report(result: Study, table: pd.DataFrame) -> None:
    for arch, law in result.laws.items():
        own = rows_of(table, arch, REPORTED, "")
        best = law.optimal(result.compute, extrapolate=True)
        for mine, theirs in (("n", "n"), ("d", "d"), ("loss", "loss"), ("lo", "loss_lo"),
                             ("hi", "loss_hi")):  # fmt: skip
            np.testing.assert_allclose(own[mine], best[theirs], rtol=1e-12)
        np.testing.assert_array_equal(own["inside"], frontier_within(law, result.compute))


def test_each_choice_is_a_fit_with_that_choice(result: Study, table: pd.DataFrame) -> None:
    own = where(result.points, arch="hgrn2")
    usual: dict[str, Any] = {"clusters": result.sweep.unit, "accounting": True, "c": "flops"}
    held = list(dict.fromkeys(words(where(table, choice=E_HELD), "setting")))
    assert len(held) >= 5
    run = words(where(table, choice=RUN_OUT, arch="hgrn2"), "setting")[0]
    others = rows(own, np.asarray(words(own, result.sweep.unit)) != run)
    cases = {
        (E_HELD, held[1]): fit_law("chinchilla", own, fix={"E": float(held[1])}, **usual),
        (N_COUNTED, "all"): fit_law("chinchilla", own, n="n_total", **usual),
        (C_COUNTED, "6ND"): fit_law("chinchilla", own, **{**usual, "c": "flops_6nd"}),
        (RUN_OUT, run): fit_law("chinchilla", others, **usual),
    }
    for (choice, setting), law in cases.items():
        found = rows_of(table, "hgrn2", choice, setting)
        best = law.optimal(result.compute, extrapolate=True)
        for name in ("n", "d", "loss"):
            np.testing.assert_allclose(found[name], best[name], rtol=2e-3, err_msg=choice)
        assert np.isnan(numbers(found, "lo")).all()


def test_the_page_interpolates_to_the_law(result: Study, table: pd.DataFrame) -> None:
    """Between two budgets of the grid, where the page knows nothing but its neighbours."""
    known = tabulated(table)
    between = np.sqrt(result.compute[:-1] * result.compute[1:])
    for arch, law in result.laws.items():
        row = known["choices"][REPORTED][""][arch]
        best = law.optimal(between, extrapolate=True)
        for name in ("n", "d"):
            read = 10 ** np.interp(np.log10(between), known["c"], row[name])
            np.testing.assert_allclose(read, best[name], rtol=2e-3)
        for mine, theirs in (("loss", "loss"), ("lo", "loss_lo"), ("hi", "loss_hi")):
            read = np.interp(np.log10(between), known["c"], row[mine])
            np.testing.assert_allclose(read, best[theirs], rtol=2e-3)
