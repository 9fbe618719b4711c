"""What a sweep will cost, before anything is trained: pure functions from configurations.

1. `tokens_for_flops`, `tokens_for_ratio`: token budgets for equal compute or for a number of
   tokens per parameter, with each architecture's own accounting.
2. `place`: a run on the devices of a cluster; `check_fits`: refuses what their memory cannot
   hold; `rung`: the row that `linscale plan` shows, and `plan`: the rows of a sweep.

Estimates are labelled as such; those of memory are explained in `scaling.plan.memory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NoReturn

from models.accounting import (
    Convention,
    non_embedding_parameters,
    parameters,
    train_flops_per_token,
)
from models.config import ConfigError, ModelConfig
from scaling.config.hyper_laws import Law
from scaling.config.run import RunConfig
from scaling.plan.costs import flops as training_flops
from scaling.plan.decide import decide_parallel, with_least_activations, with_precision
from scaling.plan.memory import USABLE, memory
from scaling.plan.speeds import Speed, Speeds
from scaling.system.devices import GIB, Device, device_for

FAST, SLOW = 0.5, 0.25
"""Shares of its peak that a device may reach, where no run has shown it."""


def tokens_for_flops(
    model: ModelConfig, sequence_length: int, flops: float, convention: Convention = "exact"
) -> int:
    """Tokens that `flops` of training compute buy with this model: D = C / (FLOPs per token)."""
    return math.floor(flops / train_flops_per_token(model, sequence_length, convention)["total"])


def tokens_for_ratio(model: ModelConfig, tokens_per_parameter: float) -> int:
    """Tokens for a number of tokens per non-embedding parameter (20: Hoffmann et al. 2022)."""
    return math.floor(tokens_per_parameter * non_embedding_parameters(model))


def isoflop_horizons(
    model: ModelConfig,
    sequence_length: int,
    budgets: Sequence[float],
    tokens_per_parameter: tuple[float, float] = (5.0, 100.0),
) -> tuple[int, ...]:
    """The token budgets of one model on the IsoFLOP profiles of several compute budgets.

    Args:
        model: candidate for the profiles.
        sequence_length: tokens in a training sequence.
        budgets: compute of the profiles in increasing order, FLOPs, `exact` convention.
        tokens_per_parameter: profiles where the model's budget falls outside this range (per
            non-embedding parameter) are left out.

    Returns:
        Tokens, in increasing order; empty when the model serves no profile.
    """
    low, high = tokens_per_parameter
    size = non_embedding_parameters(model)
    tokens = (tokens_for_flops(model, sequence_length, flops) for flops in budgets)
    return tuple(t for t in tokens if low <= t / size <= high)


def devices_needed(run: RunConfig, device: Device, limit: int = 4096) -> int:
    """The smallest power of two of devices whose memory holds the run, its states sharded.

    Raises:
        ConfigError: what one device holds of a micro-batch alone does not fit.
    """
    run = with_least_activations(with_precision(run, device.precision))
    devices = max(1, run.parallel.world_size)
    while devices <= limit:
        if memory(run, devices).total <= USABLE * device.memory_of_each(run):
            return devices
        devices *= 2
    _refuse(run, device, memory(run, limit).total)


def place(run: RunConfig, device: Device, nodes: int, per_node: int) -> RunConfig:
    """The run on a cluster, as `parallel` would say it.

    It gets as many whole nodes as share its batch evenly, or part of one node; micro-batches are
    made smaller where they would not divide a device's share. What is `auto` is decided as the run
    would decide it (`scaling.plan.decide`).

    Raises:
        ConfigError: it does not fit; the message names the fields that would make it fit.
    """
    if nodes < 1 or per_node < 1:
        raise ConfigError(f"nodes={nodes}, gpus-per-node={per_node}: must be at least 1 each.")
    batch, parallel = run.data.batch_sequences, run.parallel
    rows = batch * parallel.sequence  # parts of sequences, when devices share them
    whole = [n for n in range(nodes, 0, -1) if rows % (n * per_node) == 0]
    used = whole[0] if whole else 1
    devices = per_node if whole else max(n for n in range(1, per_node + 1) if rows % n == 0)
    share = rows // (used * devices)
    micro = parallel.micro_batch_sequences
    if micro is not None or parallel.activation_checkpointing != "auto":
        micro = math.gcd(share, micro or share)

    there = replace(parallel, nodes=used, devices=devices, micro_batch_sequences=micro)
    result = with_precision(replace(run, parallel=there), device.precision)
    result = decide_parallel(result, device.memory_of_each(result))
    check_fits(result, device)
    there = replace(result.parallel, native_precision=parallel.native_precision)
    return replace(result, parallel=there)  # the devices that it begins on may be others


def place_run(
    run: RunConfig, device: Device, nodes: int | None = None, per_node: int = 8
) -> RunConfig:
    """Where a run goes on a cluster: what `linscale plan` shows and `linscale run` asks SLURM for.

    Args:
        run: its `parallel` says on which devices; strategy `auto` leaves it open.
        device: each of the cluster's.
        nodes: as many of them as are useful (see `place`); None: the run's own devices, or where
            these cannot hold it, the fewest that do.
        per_node: devices of a node.

    Raises:
        ConfigError: it does not fit; the message names the fields that would make it fit.
    """
    if nodes is not None:
        return place(run, device, nodes, per_node)
    own = run.parallel
    needed = devices_needed(run, device) if own.strategy == "auto" else own.world_size
    if needed <= own.world_size:
        settled = with_precision(run, device.precision)
        check_fits(decide_parallel(settled, device.memory_of_each(run)), device)
        return run  # which decides `auto` itself
    share = run.data.batch_sequences * own.sequence
    while share % needed and needed < share:
        needed += 1
    used = -(-needed // per_node)
    return place(run, device, used, min(needed, per_node))


def check_fits(run: RunConfig, device: Device) -> None:
    """Refuse a run that its devices cannot hold.

    Raises:
        ConfigError: with the fields that would make it fit.
    """
    need = memory(run).total
    if need > USABLE * device.memory_of_each(run):
        _refuse(run, device, need)


def _refuse(run: RunConfig, device: Device, need: float) -> NoReturn:
    """Raise ConfigError for a run that does not fit, with the first change that would help."""
    parallel = run.parallel
    changes: list[dict[str, Any]] = [{}]
    if parallel.strategy != "fsdp" and parallel.world_size > 1:
        changes.append({"strategy": "fsdp"})
    if parallel.activation_checkpointing != "block":
        changes += [change | {"activation_checkpointing": "block"} for change in changes[:]]
    share = run.data.batch_sequences // parallel.data_ranks
    if (parallel.micro_batch_sequences or share) > 1:
        changes += [change | {"micro_batch_sequences": 1} for change in changes[:]]
    fitting = [
        change
        for change in sorted(changes[1:], key=len)
        if memory(replace(run, parallel=replace(parallel, **change))).total
        <= USABLE * device.memory_of_each(run)
    ]
    if fitting:
        knobs = " ".join(f"parallel.{name}={value}" for name, value in fitting[0].items())
        remedy = f"{knobs} makes it fit."
    else:
        remedy = (
            "take more devices with parallel.strategy=fsdp, parallel.activation_checkpointing="
            "block and parallel.micro_batch_sequences=1, or a shorter data.sequence_length."
        )
    micro = parallel.micro_batch_sequences or share
    raise ConfigError(
        f"{run.name}: needs about {need / GIB:.0f} GiB on each of {parallel.world_size} devices "
        f"(micro-batches of {micro} x {run.data.sequence_length} tokens) and {device.name} has "
        f"{device.memory / GIB:.0f} GiB; {remedy}"
    )


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row of a plan."""

    run_id: str
    arch: str
    """Architecture, or the pattern of a hybrid."""
    size: str
    seed: int
    params: int
    """Non-embedding parameters, `paper` convention."""
    params_exact: int
    """Non-embedding parameters of the built model."""
    params_total: int
    """All parameters."""
    params_by_group: dict[str, int]
    corpus: str
    tokenizer: str
    sequence_length: int
    """Tokens in a training sequence."""
    tokens: int
    """Budget rounded to whole steps."""
    horizons: list[int]
    """Tokens of each milestone."""
    steps: int
    """Optimizer steps of the longest path."""
    batch_tokens: int
    lr: float
    flops_per_token: float
    """Training FLOPs, `exact` convention."""
    flops_per_step_pf: float
    """PFLOPs a step, `paper` convention."""
    flops: float
    """Training FLOPs of all segments, decay branches included, `exact` convention."""
    devices: int
    """Devices that the estimate shards over."""
    memory_per_device: float
    """Estimated bytes."""
    nodes: int
    """Nodes of these devices."""
    strategy: str
    """How they share the work; `auto` is decided."""
    device_hours: float
    """Estimated hours of one device, all segments."""
    device_hours_low: float
    device_hours_high: float
    """Within which they may lie: at 50 and 25 % of the device's peak; where speeds were measured,
    at the fastest and the slowest tenth of the logged ones."""
    utilization: float
    """Share of the device's peak that the hours assume."""
    speed: Literal["assumed", "measured", "nearest size"]
    """Where that share is from."""
    wall_hours: float
    """Estimated hours on all its devices together."""
    disk: float
    """Bytes of its checkpoints when it has ended, and at most while it runs (`disk_bytes`)."""
    disk_peak: float
    state: str
    """State in the run record, `planned` when there is none."""
    law: Law
    """Which law has set learning rate and batch (`scaling.config.hyper_laws`)."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def trained_tokens(run: RunConfig) -> int:
    """Tokens of all segments: the trunk once, and every decay branch off it."""
    steps = run.steps
    if run.schedule.kind == "wsd":
        # The last horizon's decay is part of the longest path.
        steps += sum(run.decay_steps(h) for h in run.horizon_steps[:-1])
    return steps * run.tokens_per_step


def disk_bytes(run: RunConfig) -> tuple[float, float]:
    """Bytes of a run's checkpoints when it has ended, and at most while it runs.

    A milestone keeps the weights, 4 bytes a parameter in float32 and 2 in bf16
    (`budget.milestone_precision`). A point to resume from has the weights and both Adam moments, 12
    bytes: the last two of the trunk and the last of a decay branch are kept while a run goes on,
    and the next is written before one goes. Those that `budget.keep_every_tokens` asks for stay,
    and the last of a trunk that can be made longer (`budget.keep_trunk`).
    """
    total = sum(parameters(run.model).values())
    every = run.budget.keep_every_tokens
    for_good = run.steps * run.tokens_per_step // every if every else 0
    last = int(run.budget.keep_trunk and run.has_trunk)
    width = 2.0 if run.budget.milestone_precision == "bf16" else 4.0
    kept = width * total * len(run.horizon_steps) + 12.0 * total * (for_good + last)
    return kept, kept + 4 * 12.0 * total


def plan(
    runs: Iterable[RunConfig],
    device: Device | str = "",
    states: Mapping[str, str] | None = None,
    law: Law = "constant",
    speeds: Speeds | None = None,
) -> list[Rung]:
    """What each run will cost: what `linscale plan` shows.

    Args:
        runs: such as an experiment's `runs()`.
        device: or its name (`cpu`, `h100`); by default this machine for runs that are set to a
            CPU, and an h100 for others.
        states: run id -> state in the run record, where there is one.
        law: which has set learning rate and batch.
        speeds: measured ones, for the times; None: an assumed share of the device's peak.

    Raises:
        ConfigError: no such device, or a run does not fit it.
    """
    if isinstance(device, str):
        runs = list(runs)
        device = device_for(runs, device)
    known = states or {}
    return [rung(run, device, known.get(run.run_id, "planned"), law, speeds) for run in runs]


def rung(
    run: RunConfig,
    device: Device,
    state: str = "planned",
    law: Law = "constant",
    speeds: Speeds | None = None,
) -> Rung:
    """The plan of one run on one kind of device.

    A run whose strategy is left open, and which its own devices cannot hold, is planned for the
    fewest devices that hold it sharded.

    Args:
        run: learning rate and batch set.
        device: each of its devices.
        state: in the run record.
        law: which has set them.
        speeds: measured ones of such devices.

    Raises:
        ConfigError: it does not fit (see `check_fits`, `devices_needed`).
    """
    run = with_precision(run, device.precision)
    model, length = run.model, run.data.sequence_length
    groups = parameters(model)
    exact = train_flops_per_token(model, length)["total"]
    paper = train_flops_per_token(model, length, "paper")["total"]
    devices, strategy = run.parallel.world_size, "fsdp"
    if run.parallel.strategy == "auto":
        devices = devices_needed(run, device)
    if devices > run.parallel.world_size:
        decided = with_least_activations(run)
        held = memory(decided, devices)
    else:
        decided = decide_parallel(run, device.memory_of_each(run))
        check_fits(decided, device)
        held, strategy = memory(decided), decided.parallel.strategy
    flops = training_flops(run, trained_tokens(run))
    measured = None if speeds is None else speeds.of(model.group, exact)
    if measured is None:
        fastest, usual, slowest = (s * device.peak_flops for s in (FAST, device.efficiency, SLOW))
    else:
        fastest, usual, slowest = measured.high, measured.flops, measured.low
    high, hours, low = (flops / speed / 3600 for speed in (slowest, usual, fastest))
    disk, disk_peak = disk_bytes(run)
    return Rung(
        run_id=run.run_id,
        arch=model.group,
        size=run.size,
        seed=run.seed,
        params=non_embedding_parameters(model, "paper"),
        params_exact=non_embedding_parameters(model),
        params_total=sum(groups.values()),
        params_by_group=groups,
        corpus=run.data.corpus,
        tokenizer=run.data.tokenizer,
        sequence_length=length,
        tokens=run.steps * run.tokens_per_step,
        horizons=[h * run.tokens_per_step for h in run.horizon_steps],
        steps=run.steps,
        batch_tokens=run.tokens_per_step,
        lr=run.optim.lr,
        flops_per_token=exact,
        flops_per_step_pf=paper * run.tokens_per_step / 1e15,
        flops=flops,
        devices=devices,
        memory_per_device=held.total,
        nodes=run.parallel.nodes,
        strategy=strategy,
        device_hours=hours,
        device_hours_low=low,
        device_hours_high=high,
        utilization=usual / device.peak_flops,
        speed=_origin(measured),
        wall_hours=hours / devices,
        disk=disk,
        disk_peak=disk_peak,
        state=state,
        law=law,
    )


def _origin(measured: Speed | None) -> Literal["assumed", "measured", "nearest size"]:
    if measured is None:
        return "assumed"
    return "measured" if measured.within else "nearest size"
