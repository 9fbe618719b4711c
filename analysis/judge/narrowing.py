"""What a sweep is to determine, and how wide the intervals of it are.

    parse_target("width(a)<0.05") -> Target
    Question(targets, compute).measure(fits) -> [Width]
        1. a target is one width for each architecture, or for each but the baseline: a multiplier
        2. the width of its 90 % interval comes from the bootstrap of the laws, as in a report
        3. its gradient in the parameters of every law comes from the same function of them, for
           the design of further runs

Widths are upper end less lower end: of an exponent, of E, of a loss in nats. What is a ratio
(multipliers, n@C, d@C, A and B) has ln(upper / lower): 0.1 is about 10 %.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.fit.law_fit import LawFit
from analysis.fit.uncertainty import quantiles
from analysis.judge.compare import baseline_of, ratio_draws
from analysis.judge.design import Quantity, gradient_of, quantity
from analysis.judge.frontier import compute_for_loss
from analysis.units import LEVEL, Array

MULTIPLIER = "multiplier"
_TARGET = re.compile(r"width\(\s*([^()\[\]]+?)\s*(?:\[\s*([^\]]+?)\s*\])?\s*\)\s*<\s*(\S+)")
_RATIOS = ("A", "B")


@dataclass(frozen=True)
class Target:
    """One thing to determine, and how well."""

    quantity: str
    """A parameter, a, b, loss@C, loss@N,D, n@C, d@C (`analysis.judge.design.quantity`), or
    `multiplier` (of every architecture over the baseline, at the compute of the dearest runs that
    all have among the candidates) or `multiplier@C`."""
    arch: str | None
    """The architecture that is meant; None: all."""
    width: float
    """Of the 90 % interval, below which the target is reached."""

    @property
    def text(self) -> str:
        """As the command line takes it."""
        return f"width({self.quantity}{f'[{self.arch}]' if self.arch else ''})<{self.width:g}"

    @property
    def is_multiplier(self) -> bool:
        """Whether it compares architectures."""
        return self.quantity.partition("@")[0] == MULTIPLIER

    @property
    def place(self) -> float | None:
        """C of `multiplier@C`."""
        return float(self.quantity.partition("@")[2]) if "@" in self.quantity else None


def parse_target(text: str) -> Target:
    """A target as the command line takes it: `width(a)<0.05`, `width(loss@1e18[tnl])<0.02`.

    Raises:
        AnalysisError: not of that form, or the width is no positive number.
    """
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise AnalysisError(
            f"--target {text!r}: write width(QUANTITY)<NUMBER, as 'width(a)<0.05', "
            "'width(multiplier)<0.1' or 'width(loss@1e18[tnl])<0.02', in quotes"
        )
    name, arch, number = match.groups()
    try:
        width = float(number)
    except ValueError:
        width = math.nan
    if not 0 < width < math.inf:
        raise AnalysisError(f"--target {text!r}: {number!r} is not a width: a positive number")
    target = Target(name, arch, width)
    if target.is_multiplier and "@" in name:
        try:
            good = 0 < float(name.partition("@")[2]) < math.inf
        except ValueError:
            good = False
        if not good:
            raise AnalysisError(
                f"--target {text!r}: {name}: C of multiplier@C is a number of FLOPs"
            )
    return target


@dataclass(frozen=True)
class Width:
    """One width that a target is about."""

    name: str
    """For example `a of tnl`."""
    now: float
    """Of the 90 % interval of the bootstrap; infinite where it has no end."""
    goal: float
    gradients: Mapping[str, Array]
    """By architecture, of the quantity (or its logarithm) in the parameters of that law (p,)."""

    @property
    def reached(self) -> bool:
        """Whether it is narrow enough."""
        return self.now < self.goal

    def as_dict(self) -> dict[str, Any]:
        """JSON types."""
        return {"of": self.name, "width": self.now if math.isfinite(self.now) else None,
                "goal": self.goal}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """Targets of a sweep of some architectures."""

    targets: Sequence[Target]
    archs: Sequence[str]
    compute: float
    """FLOPs at which `multiplier` without a place is taken."""
    baseline: str | None = None
    """Architecture that others are compared with; None: llama, else the first."""

    def check(self) -> None:
        """Raises AnalysisError for an architecture that the experiment does not have, or one alone
        that is to be compared."""
        for target in self.targets:
            if target.arch is not None and target.arch not in self.archs:
                raise AnalysisError(
                    f"--target {target.text}: the experiment has no {target.arch}; it has "
                    f"{', '.join(self.archs)}"
                )
            if target.is_multiplier and len(self.archs) < 2:
                raise AnalysisError(
                    f"--target {target.text}: a multiplier compares architectures, and the "
                    f"experiment has {self.archs[0]} alone"
                )
            if target.is_multiplier and target.arch == baseline_of(self.archs, self.baseline):
                raise AnalysisError(
                    f"--target {target.text}: {target.arch} is what the others are compared with; "
                    "name another one"
                )

    def measure(self, fits: Mapping[str, LawFit]) -> list[Width]:
        """All widths, from fits of all architectures; infinite where these have no draws.

        Raises:
            AnalysisError: a quantity that the law does not have.
        """
        found: list[Width] = []
        for target in self.targets:
            archs = [target.arch] if target.arch else list(self.archs)
            if target.is_multiplier:
                base = baseline_of(self.archs, self.baseline)
                found += [self._multiplier(target, fits, a, base) for a in archs if a != base]
            else:
                found += [_single(target, fits[arch], arch) for arch in archs]
        return found

    def _multiplier(
        self, target: Target, fits: Mapping[str, LawFit], arch: str, base: str
    ) -> Width:
        x, y = fits[arch], fits[base]
        place = self.compute if target.place is None else target.place
        losses = y.frontier(np.array([place]))
        now = math.inf
        if x.draws is not None and y.draws is not None:
            ratios = ratio_draws(x, y, losses)[:, 0]
            tail = (1 - LEVEL) / 2
            low, high = np.quantile(ratios, [tail, 1 - tail], method="nearest")
            with np.errstate(divide="ignore", invalid="ignore"):
                now = float(np.log(high) - np.log(low))

        gradients = {name: _of_compute(fit, losses, place) for name, fit in ((arch, x), (base, y))}
        name = f"multiplier of {arch} over {base} at {place:.3g} FLOPs"
        return Width(name, now if math.isfinite(now) else math.inf, target.width, gradients)


def _of_compute(fit: LawFit, losses: Array, place: float) -> Array:
    """Gradient of ln C for a loss; of a law that never comes down to it, for the loss that it
    reaches itself with `place` FLOPs: what must be known first."""

    def spent(at: Array) -> Quantity:
        return lambda values: np.log(compute_for_loss(fit, at, at=values)[:, 0])

    with np.errstate(invalid="ignore"):  # endless less endless
        gradient = gradient_of(fit, spent(losses))
    if np.isfinite(gradient).all():
        return gradient
    return gradient_of(fit, spent(fit.frontier(np.array([place]))))


def _single(target: Target, fit: LawFit, arch: str) -> Width:
    """Width and gradient of what one law alone says."""
    ask = quantity(fit, target.quantity)
    gradient = gradient_of(fit, ask)
    draws = np.empty(0) if fit.draws is None else ask(fit.draws.values)
    if target.quantity in _RATIOS:
        draws, gradient = np.log(draws), gradient / ask(fit.values[None])[0]
    now = math.inf
    if len(draws):
        low, high = quantiles(draws[:, None], LEVEL)
        now = float(high[0] - low[0])
    return Width(f"{target.quantity} of {arch}", now if math.isfinite(now) else math.inf,
                 target.width, {arch: gradient})  # fmt: skip
