"""The law in the middle of a forecast: one family of forms, with weak priors on its parameters.

    ln L = ln(E + exp(t + gamma ln(s e^(-alpha x / gamma) + (1 - s) e^(-beta z / gamma))))

x = ln N and z = ln D less their medians, s = logistic(w), E = Lmin logistic(phi) with Lmin the
lowest loss measured; alpha and beta are the exponents that each term alone would have. gamma = 1 is
the Chinchilla form. A law in one variable has the first term only. E and the exponents may be held
at given values: a pinned parameter is no longer free, and E = 0 is a law without a floor.

The priors are weak and the same for everybody: what they say is that losses of language models have
floors somewhere below what was measured, and exponents near those of published laws. They decide
where the data do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.errors import AnalysisError
from analysis.laws.power_sum import Array, Inner

_COORDINATES = ("phi", "t", "w", "ln_alpha", "ln_beta", "ln_gamma")
_PHI, _T, _W, _ALPHA, _BETA, _GAMMA = range(6)

PHI_PRIOR = (0.5, 0.5)
"""Mean and standard deviation of phi: E centres on .62 of the lowest loss."""
_EXPONENT_PRIOR = (math.log(0.30), 0.30)
_COMPUTE_PRIOR = (math.log(0.13), 0.60)
"""Of the one exponent in C: N and D each grow with a power of C, and their exponents vary."""
_GAMMA_PRIOR = (math.log(0.6), 0.4)
_SHARE_PRIOR = (0.0, 1.5)
_REDUCIBLE_PRIOR = (math.log(0.4), 1.5)
"""Of t, relative to the logarithm of the median loss."""


@dataclass(frozen=True)
class Form:
    """What a name stands for in this family."""

    columns: tuple[str, ...]
    """Roles it is a law of: ("n", "d"), or one of n, d and c."""
    floor: bool = True
    gamma: bool = False
    tied: bool = False
    """alpha = beta."""


FORMS: dict[str, Form] = {
    "chinchilla": Form(("n", "d")),
    "gamma": Form(("n", "d"), gamma=True),
    "chinchilla_tied": Form(("n", "d"), tied=True),
    "chinchilla_no_e": Form(("n", "d"), floor=False),
    **{f"power_{c}_e": Form((c,)) for c in "cnd"},
    **{f"power_{c}": Form((c,), floor=False) for c in "cnd"},
}
"""Forms that can be forecast with, by the names that `linscale fit --form` uses."""


@dataclass(frozen=True)
class MeanLaw:
    """One form with its pinned parameters, placed at the centre and the lowest loss of the data."""

    name: str
    form: Form
    pinned: Mapping[str, float]
    """Parameters that are held, by their natural names."""
    centres: Array
    """Medians (k,) of the logarithms of the columns."""
    lowest: float
    """Lowest measured loss: E lies below it."""
    middle: float
    """Median of the measured loss."""

    @staticmethod
    def place(
        name: str, pinned: Mapping[str, float], columns: Mapping[str, Array], loss: Array
    ) -> MeanLaw:
        """The law for these data: columns of N, D or C by role, and losses (n,).

        Raises:
            AnalysisError: a form or a pinned parameter that is not in the family, an E that is not
                below every measured loss, an exponent that is not positive.
        """
        form = find_form(name)
        two = len(form.columns) == 2 and not form.tied
        allowed = ["E", "alpha", *(["beta"] if two else []), *(["gamma"] if form.gamma else [])]
        lowest = float(loss.min())
        for parameter, value in pinned.items():
            if parameter not in allowed:
                raise AnalysisError(f"--fix {parameter}={value:g}: {name} lets {_listed(allowed)} "
                                    "be held")  # fmt: skip
            if parameter == "E" and not 0 <= value < lowest:
                raise AnalysisError(
                    f"--fix E={value:g}: E must lie between 0 and the lowest loss in the data, "
                    f"{lowest:.4g}"
                )
            if parameter != "E" and not (math.isfinite(value) and value > 0):
                raise AnalysisError(f"--fix {parameter}={value:g}: it must be positive")
        centres = np.array([float(np.median(np.log(columns[c]))) for c in form.columns])
        held = dict(pinned) if form.floor or "E" in pinned else {**pinned, "E": 0.0}
        return MeanLaw(name, form, held, centres, lowest, float(np.median(loss)))

    @property
    def free(self) -> list[int]:
        """Positions of the free coordinates among `_COORDINATES`."""
        two = len(self.form.columns) == 2
        absent = {
            _PHI: "E" in self.pinned,
            _T: False,
            _W: not two,
            _ALPHA: "alpha" in self.pinned,
            _BETA: not two or self.form.tied or "beta" in self.pinned,
            _GAMMA: not self.form.gamma or "gamma" in self.pinned,
        }
        return [i for i, gone in absent.items() if not gone]

    @property
    def names(self) -> list[str]:
        """Names of the free coordinates, in the order of theta."""
        return [_COORDINATES[i] for i in self.free]

    def prior(self) -> tuple[Array, Array]:
        """Mean and standard deviation (p,) of the normal prior of theta."""
        exponent = _COMPUTE_PRIOR if self.form.columns == ("c",) else _EXPONENT_PRIOR
        level = (math.log(self.middle) + _REDUCIBLE_PRIOR[0], _REDUCIBLE_PRIOR[1])
        every = [PHI_PRIOR, level, _SHARE_PRIOR, exponent, exponent, _GAMMA_PRIOR]
        chosen = np.array([every[i] for i in self.free])
        return chosen[:, 0], chosen[:, 1]

    def features(self, columns: Mapping[str, Array]) -> Array:
        """Centred logarithms (k, n)."""
        logs = np.stack([np.log(np.asarray(columns[c], dtype=float)) for c in self.form.columns])
        return logs - self.centres[:, None]

    def _all(self, theta: Array) -> Array:
        """Every coordinate (b, 6) from the free ones (b, p)."""
        whole = np.zeros((len(theta), len(_COORDINATES)))
        for i, name in ((_ALPHA, "alpha"), (_BETA, "beta"), (_GAMMA, "gamma")):
            if name in self.pinned:
                whole[:, i] = math.log(self.pinned[name])
        whole[:, self.free] = theta
        if self.form.tied:
            whole[:, _BETA] = whole[:, _ALPHA]
        return whole

    def _log_floor(self, whole: Array) -> Array:
        """ln E (b,); minus infinity without a floor."""
        if "E" in self.pinned:
            value = self.pinned["E"]
            return np.full(len(whole), math.log(value) if value > 0 else -np.inf)
        return math.log(self.lowest) - np.logaddexp(0.0, -whole[:, _PHI])

    def log_loss(self, theta: Array, x: Array) -> Array:
        """ln L (b, n) for theta (b, p) at x (k, n)."""
        whole = self._all(theta)
        reducible = self._reducible(whole, x)[0]
        return np.logaddexp(self._log_floor(whole)[:, None], reducible)

    def _reducible(self, whole: Array, x: Array) -> tuple[Array, Array, Array]:
        """ln of the reducible loss (b, n), the share of the first term in it, and gamma S."""
        level, alpha = whole[:, _T, None], np.exp(whole[:, _ALPHA, None])
        if len(x) == 1:
            inside = -alpha * x[0]
            return level + inside, np.ones_like(inside), inside
        w, beta, gamma = whole[:, _W, None], np.exp(whole[:, _BETA, None]), np.exp(
            whole[:, _GAMMA, None])  # fmt: skip
        first = -np.logaddexp(0.0, -w) - alpha * x[0] / gamma
        second = -np.logaddexp(0.0, w) - beta * x[1] / gamma
        total = np.logaddexp(first, second)
        return level + gamma * total, np.exp(first - total), gamma * total

    def evaluate(self, theta: Array, x: Array) -> tuple[Array, Array]:
        """ln L (n,) and its Jacobian (p, n) for one theta (p,) at x (k, n)."""
        whole = self._all(theta[None])
        reducible, first, inside = (v[0] for v in self._reducible(whole, x))
        floor = float(self._log_floor(whole)[0])
        value = np.logaddexp(floor, reducible)
        share = np.exp(reducible - value)  # of the loss that is reducible
        phi, _, w, alpha, beta, gamma = whole[0]
        alpha, beta, gamma = math.exp(alpha), math.exp(beta), math.exp(gamma)
        jacobian = np.zeros((len(_COORDINATES), x.shape[1]))
        jacobian[_PHI] = (1 - share) * _logistic(-phi)
        jacobian[_T] = share
        jacobian[_ALPHA] = -share * first * alpha * x[0]
        if len(x) == 2:
            jacobian[_W] = share * gamma * (first * _logistic(-w) - (1 - first) * _logistic(w))
            jacobian[_BETA] = -share * (1 - first) * beta * x[1]
            jacobian[_GAMMA] = share * (inside + first * alpha * x[0] + (1 - first) * beta * x[1])
            if self.form.tied:
                jacobian[_ALPHA] += jacobian[_BETA]
        return value, jacobian[self.free]

    def natural(self, theta: Array) -> dict[str, Array]:
        """Parameters by name, each (b,): E, A, alpha, and B, beta, a and b in two variables, gamma
        where the form has it. alpha and beta are those of each term alone (gamma times the inner
        exponents); A and B are of the inner sum, as `linscale fit` prints them."""
        whole = self._all(theta)
        named = {"E": np.exp(self._log_floor(whole))}
        alpha, gamma = np.exp(whole[:, _ALPHA]), np.exp(whole[:, _GAMMA])
        if len(self.form.columns) == 1:
            return named | {"A": np.exp(whole[:, _T] + alpha * self.centres[0]), "alpha": alpha}
        inner, beta = self.inner(theta), np.exp(whole[:, _BETA])
        named |= {"A": inner.A, "alpha": alpha, "B": inner.B, "beta": beta}
        named |= {"a": beta / (alpha + beta), "b": alpha / (alpha + beta)}
        return named | ({"gamma": gamma} if self.form.gamma else {})

    def inner(self, theta: Array) -> Inner:
        """The part in N and D that decides their best split, each (b,).

        Raises:
            AnalysisError: a law in one variable.
        """
        if len(self.form.columns) != 2:
            raise AnalysisError(f"{self.name} has no N and D to trade")
        whole = self._all(theta)
        w, gamma = whole[:, _W], np.exp(whole[:, _GAMMA])
        level = whole[:, _T] / gamma
        alpha, beta = np.exp(whole[:, _ALPHA]) / gamma, np.exp(whole[:, _BETA]) / gamma
        first = level - np.logaddexp(0.0, -w) + alpha * self.centres[0]
        second = level - np.logaddexp(0.0, w) + beta * self.centres[1]
        with np.errstate(over="ignore"):  # draws far out
            return Inner(np.exp(first), alpha, np.exp(second), beta)


def find_form(name: str) -> Form:
    """The form of that name.

    Raises:
        AnalysisError: it is not in the family; the message lists those that are.
    """
    if name not in FORMS:
        raise AnalysisError(f"form {name!r} cannot be forecast with: choose {_listed(list(FORMS))}")
    return FORMS[name]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}" if len(names) > 1 else names[0]


def _logistic(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-value)) if value > -700 else 0.0
