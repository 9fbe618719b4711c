"""What `parallel` leaves open (`auto`), decided by the memory of each device.

1. `strategy`: `single` on one device; on several `ddp` where each can hold the whole model, without
   doing more work again than a share of it would need, and else `fsdp`.
2. `activation_checkpointing`: with it the micro-batch, unless that is given. Of all pairs that fit
   the one with the least time for a token is taken, by a rule of thumb that no device has been
   asked about: a mode costs the work that it does again (`WORK`), and a micro-batch of few tokens
   leaves a device idle between its kernels (`IDLE_TOKENS`).

3. `precision`: by what the devices compute in (`with_precision`).

One function decides for a plan and for the run itself.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from scaling.config.run import RunConfig
from scaling.plan.memory import USABLE, memory

Mode = Literal["none", "selective", "block"]
WORK: dict[Mode, float] = {"none": 1.0, "selective": 1.05, "block": 4 / 3}
"""Work of a step over that of one forward and one backward pass, which is twice a forward pass:
`block` does every forward pass again, `selective` its element-wise operations."""
IDLE_TOKENS = 1024
"""Tokens that a device could have processed in the time it loses with each micro-batch."""
MOST_TOKENS = 64 * IDLE_TOKENS
"""Of a micro-batch that memory alone decides: beyond, hardly any time is left to win."""


@lru_cache(maxsize=8)
def decide_parallel(run: RunConfig, capacity: float) -> RunConfig:
    """The run with all that is `auto` decided: what a plan shows and what a run does.

    Args:
        run: what is not `auto` stays as it is.
        capacity: bytes of memory for each device.

    Returns:
        A run that fits, if any choice does; otherwise the one that needs least.
    """
    if run.parallel.strategy != "auto":
        return _with_activations(run, capacity)
    if run.parallel.world_size == 1:
        return _with_activations(_on(run, strategy="single"), capacity)
    whole = _with_activations(_on(run, strategy="ddp"), capacity)
    shared = _with_activations(_on(run, strategy="fsdp"), capacity)
    fits = memory(whole).total <= USABLE * capacity
    return whole if fits and _time(whole) <= _time(shared) else shared


def with_precision(run: RunConfig, native: str) -> RunConfig:
    """The run in the precision that its devices compute in, `fp32` or `bf16`, where it is open."""
    return _on(run, native_precision=native) if run.parallel.asked_precision is None else run


def with_least_activations(run: RunConfig) -> RunConfig:
    """The run with the mode and micro-batch that need least memory, where they are left open."""
    return _options(run)[-1]


def _with_activations(run: RunConfig, capacity: float) -> RunConfig:
    options = _options(run)
    fitting = [each for each in options if memory(each).total <= USABLE * capacity]
    return min(fitting, key=_time, default=options[-1])


def _options(run: RunConfig) -> list[RunConfig]:
    """What may be chosen, from the most memory to the least."""
    parallel = run.parallel
    if parallel.activation_checkpointing != "auto":
        return [run]
    share = run.data.batch_sequences // parallel.data_ranks
    most = max(1, MOST_TOKENS * parallel.sequence // run.data.sequence_length)
    micros = [n for n in range(min(share, most), 0, -1) if share % n == 0]
    if parallel.micro_batch_sequences is not None:
        micros = [parallel.micro_batch_sequences]
    return [
        _on(run, activation_checkpointing=mode, micro_batch_sequences=micro)
        for mode in WORK
        for micro in micros
    ]


def _time(run: RunConfig) -> float:
    """Of a token, over that of endless micro-batches without checkpointing; 1 if all is given."""
    parallel = run.parallel
    if parallel.micro_batch_sequences is None or parallel.activation_checkpointing == "auto":
        return 1.0
    tokens = parallel.micro_batch_sequences * run.data.sequence_length / parallel.sequence
    return WORK[parallel.activation_checkpointing] * (1 + IDLE_TOKENS / tokens)


def _on(run: RunConfig, **changes: Any) -> RunConfig:
    return replace(run, parallel=replace(run.parallel, **changes))
