"""The batched minimiser against SciPy, one problem at a time."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import least_squares, linprog

from analysis.fit.fitting import fit_law
from analysis.fit.robust import Robust
from analysis.fit.solver import minimise
from analysis.laws.registry import FORMS
from tests.support.worlds import suite


def _setup(seed: int = 0):
    data = suite(noise=0.01, seed=seed)
    law = FORMS["chinchilla"]
    columns = {"n": data["n_params"].to_numpy(), "d": data["tokens"].to_numpy()}
    x, centres = law.features(columns)
    loss = data["loss"].to_numpy()
    lower, upper = law.bounds(loss)
    return law, x, centres, loss, lower, upper


@pytest.mark.parametrize(
    ("name", "delta"), [("huber", 1e-3), ("huber", 1e-2), ("least_squares", 1)]
)
def test_objective_is_no_worse_than_scipy(name: str, delta: float) -> None:
    law, x, _, loss, lower, upper = _setup()
    robust = Robust(name, delta)  # type: ignore[arg-type]
    start = law.starts(x, loss, np.ones(len(loss)), 8)
    found = minimise(law, start, x, np.log(loss), np.ones(len(loss)), robust, lower, upper)
    best = found.value.min()
    oracle = np.inf
    for row in start:
        result = least_squares(
            lambda t: law.log_loss(t, x) - np.log(loss), row,
            loss="huber" if name == "huber" else "linear", f_scale=delta, x_scale="jac",
            xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=2000,
        )  # fmt: skip
        oracle = min(oracle, result.cost)
    assert best <= oracle * (1 + 1e-8)
    assert found.converged.all()
    assert np.mean(found.value <= best * (1 + 1e-6)) >= 0.5, "most starts end in the best optimum"


def test_batch_equals_one_by_one() -> None:
    law, x, _, loss, lower, upper = _setup()
    rng = np.random.default_rng(1)
    weight = rng.multinomial(len(loss), np.full(len(loss), 1 / len(loss)), 12).astype(float)
    start = np.tile(law.starts(x, loss, np.ones(len(loss)), 1)[0], (12, 1))
    robust = Robust("huber", 1e-3)
    together = minimise(law, start, x, np.log(loss), weight, robust, lower, upper)
    for i in range(12):
        alone = minimise(law, start[i : i + 1], x, np.log(loss), weight[i], robust, lower, upper)
        np.testing.assert_allclose(together.theta[i], alone.theta[0], rtol=1e-12)


def test_lad_of_a_line_equals_linear_programming() -> None:
    """log L = a - alpha log C is linear, so its least absolute deviation is a linear programme."""
    law = FORMS["power_c"]
    rng = np.random.default_rng(2)
    c = np.geomspace(1e17, 1e21, 30)
    loss = 30 * c**-0.05 * np.exp(0.01 * rng.standard_normal(30))
    x, _ = law.features({"c": c})
    lower, upper = law.bounds(loss)
    start = law.starts(x, loss, np.ones(30), 4)
    found = minimise(law, start, x, np.log(loss), np.ones(30), Robust("lad"), lower, upper)
    design = np.column_stack([np.ones(30), -x[0]])
    blocks = np.block([[design, -np.eye(30)], [-design, -np.eye(30)]])
    target = np.concatenate([np.log(loss), -np.log(loss)])
    cost = np.concatenate([np.zeros(2), np.ones(30)])
    oracle = linprog(cost, A_ub=blocks, b_ub=target, bounds=[(None, None)] * 2 + [(0, None)] * 30)
    assert found.value.min() == pytest.approx(oracle.fun, rel=1e-7)


def test_bounds_are_respected_and_active() -> None:
    data = suite(noise=0.002)
    fit = fit_law("chinchilla", data, bounds={"alpha": (0.40, 0.50)})
    assert fit.params["alpha"] == pytest.approx(0.40, abs=1e-12)
    assert "at_bound" in {w.code for w in fit.warnings}
    held = fit_law("chinchilla", data, bounds={"E": (1.5, 1.5)})
    assert held.params["E"] == pytest.approx(1.5, rel=1e-12)


def test_scale_of_weights_does_not_move_the_optimum() -> None:
    """A mean instead of a sum is one such scale: the answer must not depend on it."""
    law, x, _, loss, lower, upper = _setup()
    start = law.starts(x, loss, np.ones(len(loss)), 4)
    robust = Robust("huber", 1e-3)
    total = minimise(law, start, x, np.log(loss), np.ones(len(loss)), robust, lower, upper)
    mean = minimise(law, start, x, np.log(loss), np.full(len(loss), 1 / 250), robust, lower, upper)
    np.testing.assert_allclose(total.theta, mean.theta, rtol=1e-6)
