"""The models in a run's checkpoints folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from models.config import ConfigError
from scaling.config.run import RunConfig
from scaling.record.checkpoint_files import (
    MANIFEST,
    CheckpointError,
    read_checkpoint,
    read_manifest,
)

if TYPE_CHECKING:
    from models.language_model import LanguageModel


def load_model(checkpoint_path: Path | str) -> tuple[LanguageModel, RunConfig]:
    """The model of a checkpoint, on the CPU in evaluation mode, and the run that trained it.

    Args:
        checkpoint_path: a file in a run's checkpoints folder, beside its manifest.

    Raises:
        CheckpointError: missing, damaged, or not one of ours; the message says which.
    """
    from models.language_model import build

    path = Path(checkpoint_path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint.{_siblings(path)}")
    entry = read_manifest(path.parent / MANIFEST).files.get(path.name)
    if entry is None:
        raise CheckpointError(
            f"{path}: {path.parent / MANIFEST} does not name this file, so its content cannot be "
            "checked; point at a checkpoint inside a run's checkpoints folder, or copy that folder "
            "whole."
        )
    content = read_checkpoint(path, entry)
    try:
        config = RunConfig.from_json(content["config"])
        model = build(config.model)
        model.load_state_dict(content["model"])
    except (KeyError, ConfigError, RuntimeError) as error:
        refuse_misfit(path, error)
    return model.eval(), config


def refuse_misfit(path: Path, error: Exception) -> NoReturn:
    """Raise CheckpointError for a sound checkpoint that this version's model cannot take over."""
    details = " ".join(str(error).split())  # torch's own message runs over many lines
    details = details if len(details) < 240 else details[:240] + " ..."
    raise CheckpointError(
        f"{path}: does not fit the model that this version builds ({details}). Use the revision "
        "that began the run (environment.json names it), or delete the run to start it again."
    ) from error


def _siblings(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.pt")) if path.parent.is_dir() else []
    return f" Found beside it: {', '.join(names)}." if names else ""
