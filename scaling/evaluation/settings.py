"""What a user may choose about an evaluation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from scaling.evaluation.results import EvaluationError

Scorer = Literal["exact", "contains"]
"""How a needle's answer is recognised; see `scaling.evaluation.needle`."""


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
    """Tokens of context that the harness's tasks may use, and that a model with softmax attention
    can take in `needle`. None: those the model was trained on."""
    data: Path | None = None
    """Folder of local task files, NAME.jsonl; a task without one there is the harness's own."""
    text: tuple[Path, ...] = ()
    """Files for `sliding` and `document`, one document each. (): validation documents of the
    run."""
    haystack: tuple[Path, ...] = ()
    """`needle`: files of the haystack, one after the other. (): the King James Bible."""
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
    scorer: str = "exact"
    """`needle`: `exact` (the continuation begins with the answer) or `contains`."""
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
        for name in ("depth_growth", "length_growth"):
            self._require(name, getattr(self, name) >= 1, "at least 1 (1: all weigh the same)")
        self._require("scorer", self.scorer in get_args(Scorer), " or ".join(get_args(Scorer)))
        if self.data is not None and not self.data.is_dir():
            raise EvaluationError(
                f"--data {self.data}: no such directory; give a folder of NAME.jsonl files."
            )

    def to_json(self) -> dict[str, Any]:
        """As JSON types, with absolute paths: another process may stand elsewhere."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("text", "haystack"):
            values[name] = [str(path.resolve()) for path in values[name]]
        values["data"] = None if self.data is None else str(self.data.resolve())
        return values | {"lengths": list(self.lengths)}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Settings:
        """Inverse of `to_json`."""
        typed: dict[str, Any] = dict(values)
        for name in ("text", "haystack"):
            typed[name] = tuple(map(Path, values[name]))
        typed["data"] = None if values["data"] is None else Path(values["data"])
        typed["lengths"] = tuple(values["lengths"])
        return Settings(**typed)

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
