"""What a user may choose about an evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from scaling.evaluation.results import EvaluationError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices shared by all tasks; each task records those that change its numbers.

    Raises:
        EvaluationError: a value is out of range.
    """

    batch_size: int = 16
    """Sequences that pass through a model at once; changes no number."""
    limit: int | None = None
    """First questions, documents or blocks of a task; None: all (32 validation documents)."""
    max_length: int | None = None
    """Tokens of context that the harness's tasks may use. None: those the model was trained on."""
    data: Path | None = None
    """Folder of local task files, NAME.jsonl; a task without one there is the harness's own."""
    text: tuple[Path, ...] = ()
    """Files for `sliding` and `document`, one document each. (): validation documents of the run;
    for `needle`, the haystack. (): the King James Bible."""
    window: int | None = None
    """`sliding`: inputs of a window. None: the length that the model was trained on."""
    stride: int | None = None
    """`sliding`: tokens between windows. None: half a window."""
    beyond: int = 4
    """`context`: how many training lengths a block is long."""
    lengths: tuple[int, ...] = ()
    """`needle`: lengths in tokens. (): 35 from 1,000 to 16,000."""
    depths: int = 35
    """`needle`: depths from the start to the end of the haystack."""
    depth_growth: float = 1.1
    """`needle`: weight of a depth relative to the one before (not stated in the paper)."""
    length_growth: float = 1.1
    """`needle`: weight of a length relative to the one before (not stated in the paper)."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "beyond", "depths"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("limit", "max_length", "window", "stride"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1")
        self._require("lengths", all(n >= 1 for n in self.lengths), "positive numbers of tokens")
        if self.data is not None and not self.data.is_dir():
            raise EvaluationError(
                f"--data {self.data}: no such directory; give a folder of NAME.jsonl files."
            )

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            option = name.replace("_", "-")
            raise EvaluationError(f"--{option} {getattr(self, name)}: must be {rule}.")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file as hex digits; raises EvaluationError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}).") from None
