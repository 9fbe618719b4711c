"""Metrics to TensorBoard, Weights & Biases or MLflow as well, through Lightning's own loggers.

`loggers=tensorboard,wandb` on the command line, or in the run's configuration. The record's JSON
lines stay the truth: every line of metrics.jsonl is passed on when it is written, under the names
`train/loss`, `validation/loss` and so on (`decay/...` on the decay branches), at the step along the
path. A run that is killed and goes on may show the steps in between twice.

    tensorboard   <run>/tensorboard
    wandb         project = sweep, id = run id; WANDB_MODE=offline keeps it in <run>/wandb
    mlflow        experiment = sweep, run name = run id; MLFLOW_TRACKING_URI, or <sweep>/mlruns
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from linscale.errors import LinscaleError
from scaling.config.schedule import TRUNK
from scaling.record.record import RunRecord

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
}
"""Modules of which a logger needs one."""


def check_installed(names: Iterable[str]) -> None:
    """Raises LinscaleError for the first logger whose package is missing."""
    for name in names:
        if not any(map(importlib.util.find_spec, PACKAGES[name])):
            _refuse(name, name)


def _refuse(name: str, package: str) -> NoReturn:
    raise LinscaleError(
        f"loggers={name}: {package} is not installed; pip install {name}, or leave this logger out."
    )


@contextmanager
def attach(record: RunRecord) -> Iterator[None]:
    """Within the block, the loggers that the run's configuration names hear its metrics.

    Raises:
        LinscaleError: the package of one is not installed.
    """
    loggers = [_make(name, record) for name in record.config.loggers]
    record.listeners = [functools.partial(pass_on, logger) for logger in loggers]
    try:
        yield
    finally:
        record.listeners = []
        for logger in loggers:
            logger.finalize("success")  # flushes; how the run ended is in its record


def _make(name: str, record: RunRecord) -> Logger:
    from lightning.pytorch import loggers

    run, sweep = record.path, record.path.parent
    # MLflow prefers a database; files are what several workers can write to at once.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: loggers.TensorBoardLogger(run, name="tensorboard", version=""),
        "wandb": lambda: loggers.WandbLogger(
            project=sweep.name, id=run.name, name=run.name, save_dir=run, resume="allow"
        ),
        "mlflow": lambda: loggers.MLFlowLogger(
            experiment_name=sweep.name,
            run_name=run.name,
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"file:{sweep.resolve()}/mlruns"),
        ),
    }
    try:
        logger = makers[name]()
        logger.log_hyperparams(record.config.to_json())
    except ModuleNotFoundError as error:
        _refuse(name, error.name or name)
    return logger


def pass_on(logger: Logger, line: dict[str, Any]) -> None:
    """Give a line of metrics.jsonl to a logger."""
    group = line["split"] if line["segment"] == TRUNK or line["split"] != "train" else "decay"
    names = {"segment", "split", "step"}
    values = {
        f"{group}/{name}": float(value)
        for name, value in line.items()
        if name not in names and value is not None
    }
    logger.log_metrics(values, step=line["step"])
