"""Covariances: the thin form against the whole one, and prediction against the textbook formula."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.forecast import gaussian_process
from analysis.forecast.gaussian_process import Dense, Kernel, LowRank, Smooth, pivoted, same

KERNELS = [Kernel("matern32", (6.0, 6.0)), Kernel("rbf", (3.0, 5.0))]


def _points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-4, 4, (2, count))


def test_kernels_by_hand() -> None:
    """At distance 6 of length 6 a Matern-3/2 is (1 + sqrt 3) exp(-sqrt 3), an RBF exp(-1/2)."""
    left, right = np.array([[0.0], [0.0]]), np.array([[6.0], [0.0]])
    matern = Kernel("matern32", (6.0, 1.0))(left, right)[0, 0]
    assert matern == pytest.approx((1 + 3**0.5) * np.exp(-(3**0.5)), rel=1e-14)
    assert Kernel("rbf", (6.0, 1.0))(left, right)[0, 0] == pytest.approx(np.exp(-0.5), rel=1e-14)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("rho", "r"), [(0.0, 1.0), (4.0, 0.0), (8.0, 10.0)])
def test_solves_and_determinants(kernel: Kernel, rho: float, r: float) -> None:
    x, rng = _points(90), np.random.default_rng(1)
    noise, groups = rng.uniform(1, 3, 90), rng.integers(0, 12, 90)
    whole = np.diag(noise) + rho**2 * kernel(x, x) + r * (groups[:, None] == groups)
    right = rng.standard_normal((90, 3))
    _, thin = pivoted(kernel, x)
    for found in (
        Dense(noise, kernel(x, x), rho, groups, r), LowRank(noise, thin, rho, groups, r)
    ):  # fmt: skip
        loose = 1e-9 if isinstance(found, Dense) else 2e-3  # the thin factor leaves 1e-5 out
        assert found.logdet == pytest.approx(np.linalg.slogdet(whole)[1], abs=90 * loose)
        np.testing.assert_allclose(found.solve(right), np.linalg.solve(whole, right), atol=loose)


def test_a_new_row_is_in_no_group() -> None:
    known, new = np.array([0, 1, 1]), np.array([1, -1])
    assert same(new, known).tolist() == [[0, 1, 1], [0, 0, 0]]


def test_many_rows_interpolate_as_few_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """k* C^-1 y of the thin form is that of the whole one."""
    x, targets = _points(200), _points(7, seed=5)
    y = np.sin(x[0]) + 0.3 * x[1]
    kernel, none = KERNELS[1], np.full(200, -1)

    def prediction() -> np.ndarray:
        smooth = Smooth(kernel, x)
        covariance = smooth.covariance(np.ones(200), 16.0, none, 0.0)
        return 256.0 * smooth.between(targets) @ covariance.solve(y[:, None])[:, 0]

    whole = prediction()
    monkeypatch.setattr(gaussian_process, "DENSE_UP_TO", 10)
    np.testing.assert_allclose(prediction(), whole, atol=2e-3)
    expected = 256 * kernel(targets, x) @ np.linalg.solve(np.eye(200) + 256 * kernel(x, x), y)
    np.testing.assert_allclose(whole, expected, atol=1e-8)
