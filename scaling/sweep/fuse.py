"""Several runs of one shape on one device at once, `linscale run --fuse N`.

    runs of equal model, data and `parallel` -> groups of at most N that fit the device together
    -> a group at a time in this process, a thread each (`scaling.training.together`)

Seeds, learning rates, schedules and budgets may differ. Each run is claimed, recorded and saved for
itself: one that fails leaves the others alone, and one that was fused goes on alone as well.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.sweep.worker import Outcome, TrainFunction, attempt


def shape(config: RunConfig) -> str:
    """What runs that are fused have in common."""
    values = config.to_json()
    return json.dumps([values[name] for name in ("model", "data", "parallel")], sort_keys=True)


def fused(config: RunConfig) -> RunConfig:
    """The run with a step that can be fused; its name stays.

    Raises:
        ConfigError: on a CPU, where nothing is gained, or where no graph can hold its step.
    """
    from scaling.plan.accelerator import accelerator

    if accelerator(config) == "cpu":
        raise ConfigError(
            f"--fuse: {config.name} trains on a CPU, where runs side by side in one process gain "
            "nothing (0.9 to 1.1 times the speed); leave --fuse out, and give --jobs instead."
        )
    return replace(config, parallel=replace(config.parallel, cuda_graph=True))


def groups(configs: Sequence[RunConfig], most: int) -> list[list[RunConfig]]:
    """Runs that are trained at once, in the order given."""
    alike: dict[str, list[RunConfig]] = {}
    for config in configs:
        alike.setdefault(shape(config), []).append(config)
    return [runs[at : at + most] for runs in alike.values() for at in range(0, len(runs), most)]


def attempt_together(
    configs: Sequence[RunConfig], sweep_dir: Path, train: TrainFunction, stop: threading.Event
) -> list[Outcome]:
    """`scaling.sweep.worker.attempt` for each of them, at once."""
    from scaling.system.randomness import isolated_random
    from scaling.training.parallel import process_settings
    from scaling.training.together import Together

    together = Together(len(configs))
    outcomes: dict[str, Outcome] = {}

    def run(config: RunConfig) -> None:
        with together.member():
            outcomes[config.run_id] = attempt(config, sweep_dir, train, stop)

    # Each session puts back what it found; around them all, that is what was there before.
    with process_settings(configs[0]), isolated_random(configs[0].seed):
        threads = [threading.Thread(target=run, args=(config,)) for config in configs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return [outcomes[config.run_id] for config in configs]
