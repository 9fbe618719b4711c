"""What reading gives, of run records or a table: a sweep, and what stands for N, C and the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pandas as pd

from analysis.errors import AnalysisError

Parameters = Literal["non_embedding", "paper", "total"]
Compute = Literal["exact", "paper", "6nd"]
Loss = Literal["validation", "train"]
Checkpoints = Literal["decayed", "all"]


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """Which numbers stand for N, C and the loss. They move exponents more than noise does.

    Raises:
        AnalysisError: a value that is not one of the choices.
    """

    parameters: Parameters = "non_embedding"
    """N: `non_embedding` and `total` count the built model, `paper` as in arXiv 2406.16690."""
    compute: Compute = "exact"
    """C: `exact` counts every matrix product with causal attention, `paper` is Table 1 of
    arXiv 2406.16690, `6nd` is 6 N D with the N above."""
    loss: Loss = "validation"
    """`validation`: the fixed validation blocks; `train`: mean over the last steps."""
    checkpoints: Checkpoints = "decayed"
    """`decayed`: only checkpoints whose learning rate was brought down; `all`: any milestone."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("parameters", Parameters),
            ("compute", Compute),
            ("loss", Loss),
            ("checkpoints", Checkpoints),
        ):
            value, choices = getattr(self, name), get_args(kind)
            if value not in choices:
                raise AnalysisError(
                    f"the {name} convention {value!r} is not known; choose {' or '.join(choices)}"
                )

    def describe(self) -> str:
        """One line for captions."""
        n = {"non_embedding": "non-embedding", "paper": "paper's", "total": "all"}[self.parameters]
        c = {"exact": "exact training FLOPs", "paper": "paper's FLOPs", "6nd": "C = 6ND"}
        return (
            f"N: {n} parameters; {c[self.compute]}; {self.loss} loss of {self.checkpoints} "
            "checkpoints"
        )


@dataclass(frozen=True)
class Sweep:
    """What was read: losses in nats per token, tokens and FLOPs as plain counts.

    Frames may be empty; `require_points` turns that into an error.
    """

    name: str
    """Sweep name, or file name."""
    runs: pd.DataFrame
    """One row per readable run, finished or not: run_id, arch, size, seed, state, n_params,
    tokens_per_second, wall_s, git_revision, device, ..."""
    points: pd.DataFrame
    """One row per usable milestone: run_id, arch, size, seed, n_params, tokens, flops, loss,
    loss_std, bpb, and every other convention (n_total, flops_paper, flops_6nd, val_loss, ...)."""
    curves: pd.DataFrame
    """One row per logged step of usable runs: run_id, arch, size, seed, n_params, segment, split,
    step, tokens, flops, loss, bpb, lr, grad_norm, tokens_per_second, mfu, wall."""
    exclusions: pd.DataFrame
    """run_id, tokens (NaN: the whole run) and the reason."""
    conventions: str
    """What N, C and the loss are, in one line; goes under every figure and table."""
    notes: list[str] = field(default_factory=list[str])
    """What was assumed or mended while reading."""
    environments: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """Distinct environment records of the usable runs, with the number of runs of each."""
    assumed_compute: bool = False
    """Whether `flops` of the points is 6 N D because a table has no compute."""
    live: pd.DataFrame = field(default_factory=pd.DataFrame)
    """As `curves`, of runs that have not ended in a result, as far as they are."""
    targets: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Of a table with several losses a run: by architecture, the groups with one loss each."""

    @property
    def compute_column(self) -> str:
        """Column of C; "" where `points` have 6 N D because nothing told it."""
        return "" if self.assumed_compute else "flops"

    @property
    def recorded(self) -> bool:
        """Whether these are run records; a table from elsewhere has none."""
        return len(self.runs) > 0

    @property
    def unit(self) -> str:
        """Column of what the bootstrap resamples: runs of one size and seed together in every
        architecture, where records say so, else runs."""
        return "size_seed" if "size_seed" in self.points else "run_id"

    def require_points(self) -> pd.DataFrame:
        """The points.

        Raises:
            AnalysisError: there are none; the message repeats the most frequent reasons.
        """
        if len(self.points):
            return self.points
        why = self.why_left_out() or "nothing was found in it"
        remedy = (
            "Look at these rows of the file."
            if "columns" in self.points.attrs  # a table's own
            else "Finish the sweep with `linscale run`, or look at `linscale status`."
        )
        raise AnalysisError(f"{self.name} holds no usable point: {why}. {remedy}")

    def why_left_out(self) -> str:
        """The most frequent reasons of what was left out, with their numbers; "" where all of it
        is used."""
        counts = self.exclusions["reason"].value_counts().head(3) if len(self.exclusions) else {}
        return "; ".join(f"{reason} ({n}x)" for reason, n in counts.items())
