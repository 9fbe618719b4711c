"""The learning-rate transfer experiment: what it varies, and how it reads an optimum."""

from __future__ import annotations

import math

import pytest

from experiments.lr_transfer import best_rate, figure, optima, runs
from models.config import ARCHS


def test_forms_are_the_same_at_the_base_and_differ_beyond() -> None:
    by_name = {run.name: run for run in runs(toy=True)}
    assert len(by_name) == 168
    for arch in ARCHS:
        for dim in (32, 64, 128):
            mup, plain = (by_name[f"{arch}-{form}-d{dim}-lr-6"] for form in ("mup", "standard"))
            assert mup.optim == plain.optim
            assert (mup.model.std == plain.model.std) == (dim == 32)
            assert mup.model.std == by_name[f"{arch}-mup-d32-lr-6"].model.std


def test_bottom_of_a_parabola_is_found() -> None:
    points = [(float(x), 2.0 + 0.1 * (x + 6.3) ** 2) for x in range(-9, -2)]
    assert best_rate(points) == pytest.approx(-6.3)
    assert best_rate(points[3:]) == -6.0  # at the edge: the lowest point itself
    diverged = [*points[:4], *((x, math.inf) for x, _ in points[4:])]
    assert best_rate(diverged) == -6.0


def test_figure_has_a_panel_for_each_form() -> None:
    rows = [
        {"arch": arch, "form": form, "dim": dim, "lr": 2.0**k, "val_loss": 2.0 + (k + 6) ** 2}
        for arch in ("llama", "tnl")
        for form in ("mup", "standard")
        for dim in (32, 64)
        for k in range(-8, -3)
    ]
    assert set(optima(rows).values()) == {-6.0}
    assert [ax.get_title(loc="left") for ax in figure(rows).axes] == [
        "LLaMA, muP",
        "LLaMA, without muP",
        "TNL, muP",
        "TNL, without muP",
    ]
