"""Metrics to TensorBoard, Weights & Biases, MLflow or trackio as well, as Lightning's loggers.

`loggers=tensorboard,wandb` on the command line, or in the run's configuration. The record's JSON
lines stay the truth: every line of metrics.jsonl is passed on by a thread that reads the file
(`scaling.training.follower`), under the names `train/loss`, `validation/loss` and so on
(`decay/...` on the decay branches), at the step along the path.

    tensorboard   <run>/tensorboard
    wandb         project = sweep, id = run id; WANDB_MODE=offline keeps it in <run>/wandb
    trackio       project = sweep, run name = run id; a database of this machine
    mlflow        experiment = sweep, run name = run id; MLFLOW_TRACKING_URI, or <sweep>/mlruns

A server that cannot be reached, or dies, costs a line in the log and never the run: what it has not
got is sent when it is back, in a later session, or by `linscale log-to`. A run that is killed and
goes on stays one run there. Which process logs is decided by its rank in the run, whatever a
cluster's environment calls it.
"""

from __future__ import annotations

import importlib
import importlib.util
import netrc
import os
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.errors import LinscaleError
from scaling.config.schedule import TRUNK
from scaling.record.record import RunRecord

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""Modules of which a logger needs one."""
ANSWER_SECONDS = 5.0
"""How long a server may take to answer before a launch."""


def check_installed(names: Iterable[str]) -> None:
    """Raises LinscaleError for the first logger whose package is missing."""
    for name in names:
        if not any(map(importlib.util.find_spec, PACKAGES[name])):
            raise LinscaleError(
                f"loggers={name}: {name} is not installed; pip install {name}, or leave this "
                "logger out."
            )


def check_servers(names: Iterable[str], sweep_dir: Path) -> list[str]:
    """Ask before a launch whether the servers would take what is sent, and make MLflow's
    experiment, once for all runs.

    Returns:
        What to tell of servers that do not answer: it stops no run.

    Raises:
        LinscaleError: a server refuses the credentials, or there are none.
    """
    told: list[str] = []
    for name in names:
        if name == "wandb":
            _check_wandb()
        if name == "mlflow":
            told += _check_mlflow(sweep_dir)
    return told


def _check_wandb() -> None:
    """There must be a key, unless nothing is sent."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    known = bool(os.environ.get("WANDB_API_KEY"))
    with suppress(OSError, netrc.NetrcParseError):
        known = known or netrc.netrc().authenticators(host) is not None
    if not known:
        raise LinscaleError(
            f"loggers=wandb: no credentials for {host}; run `wandb login`, set WANDB_API_KEY, or "
            "WANDB_MODE=offline, or leave this logger out."
        )


def _check_mlflow(sweep_dir: Path) -> list[str]:
    address = mlflow_address(sweep_dir)
    if not address.startswith(("http://", "https://")):
        return []
    request = urllib.request.Request(
        f"{address.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1"
    )
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user is not None:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        request.add_header("Authorization", f"Basic {b64encode(pair.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS):
            pass
        _make_experiment(address, sweep_dir.name)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise LinscaleError(
                f"loggers=mlflow: {address} refuses the credentials (HTTP {error.code}); set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            ) from error
        return [f"loggers=mlflow: {address} answers HTTP {error.code}; runs go on without it"]
    except (OSError, ValueError) as error:
        return [
            f"loggers=mlflow: {address} cannot be reached ({error}); runs go on without it, and it "
            "gets their metrics when it is back"
        ]
    return []


def _make_experiment(address: str, name: str) -> None:
    """Runs that start at once would each find none and make one."""
    tracking = importlib.import_module("mlflow.tracking")
    exceptions = importlib.import_module("mlflow.exceptions")
    client = tracking.MlflowClient(address)
    with suppress(exceptions.MlflowException):  # another launch has just made it
        if client.get_experiment_by_name(name) is None:
            client.create_experiment(name)


def mlflow_address(sweep_dir: Path) -> str:
    """MLFLOW_TRACKING_URI, or a folder of the sweep."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"file:{sweep_dir.resolve()}/mlruns"


def make(name: str, record: RunRecord, run_id: str | None) -> Logger:
    """One of Lightning's loggers.

    Args:
        name: of `PACKAGES`.
        record: the run.
        run_id: by which MLflow knows it, if it does.
    """
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch import loggers

    from scaling.training.trackio_logger import TrackioLogger

    # Otherwise it is that of RANK or SLURM_PROCID, which may number something else than ranks.
    setattr(rank_zero_only, "rank", 0)  # noqa: B010
    run, sweep = record.path, record.path.parent
    # MLflow prefers a database; files are what several workers can write to at once.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    # What is lost is sent again here; in MLflow it would take minutes to give up.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    makers: dict[str, Callable[[], Logger]] = {
        "tensorboard": lambda: loggers.TensorBoardLogger(run, name="tensorboard", version=""),
        "wandb": lambda: loggers.WandbLogger(
            project=sweep.name, id=run.name, name=run.name, save_dir=run, resume="allow"
        ),
        "mlflow": lambda: loggers.MLFlowLogger(
            experiment_name=sweep.name,
            run_name=run.name,
            tracking_uri=mlflow_address(sweep),
            run_id=run_id,
        ),
        "trackio": lambda: TrackioLogger(sweep.name, run.name),
    }
    logger = makers[name]()
    if name == "mlflow" and run_id is not None:
        known: Any = logger
        known.experiment.update_run(run_id, "RUNNING")
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
