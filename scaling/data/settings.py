"""What preparing a corpus needs to know of a run: the part of its configuration about data.

`scaling.config.parts.DataConfig` is one. The packages that make data are written against this
protocol and not against the configuration, because the configuration asks the kinds of corpora
(`scaling.data.corpora`) for their rules: imports then run one way.
"""

from __future__ import annotations

import os
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol


class DataSettings(Protocol):
    """A frozen dataclass with these fields; `dataclasses.replace` works on it."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def corpus(self) -> str:
        """Kind and place of the text."""
        ...

    @property
    def tokenizer(self) -> str:
        """How text becomes tokens."""
        ...

    @property
    def text_field(self) -> str:
        """Field that holds the text, where documents have fields."""
        ...

    @property
    def max_bad_records(self) -> int:
        """Most records that may be passed over because they cannot be read."""
        ...

    @property
    def document_mask(self) -> bool:
        """Whether the documents of a sequence do not see each other."""
        ...

    @property
    def sequence_length(self) -> int:
        """Tokens of a training sequence T."""
        ...

    @property
    def validation_fraction(self) -> float:
        """Share of the documents that is held out."""
        ...

    @property
    def validation_blocks(self) -> int:
        """Most sequences of the fixed validation list."""
        ...


@dataclass(frozen=True, kw_only=True)
class Work:
    """How data are prepared; the result does not depend on it."""

    cache: Path
    """Folder of the prepared corpora."""
    progress: bool = False
    """Show a progress bar on standard error."""
    workers: int | None = None
    """Processes that tokenise; None for one on each core where it is worth it."""


def default_cache() -> Path:
    """LINSCALE_CACHE, or `data_cache` in the working directory."""
    return Path(os.environ.get("LINSCALE_CACHE") or "data_cache")
