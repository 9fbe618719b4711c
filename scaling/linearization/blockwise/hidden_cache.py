"""The teacher's hidden states before each group, on disk.

    OUT/tokens.safetensors                       tokens (batches, B, T), int32, in the order learned
    OUT/activations/before-LL/batch-NNNNN.safetensors      x (B, T, d) before layer LL
    OUT/activations/before-LL/manifest.json      written last: the folder is complete

A batch is one file, renamed into place when it is whole; a run that was stopped goes on with the
first that is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from linscale.errors import LinscaleError
from models.interop.gguf import folder_of
from models.layers import Span, make_span
from scaling.data.prepare import prepare
from scaling.data.prepared import PreparedData
from scaling.data.tokenizers import load_json_tokenizer
from scaling.linearization.blockwise.teacher_layers import dtype_of, teacher_layers
from scaling.linearization.blockwise.transfer_config import Blockwise
from scaling.record.record import TOKENIZER
from scaling.system.claims import exclusive
from scaling.system.files import replacing, write_json

MANIFEST = "manifest.json"
_PROBE = 'In the beginning, 1234 words: a naïve café\'s "probe".\n\n  (end)'


def span_of(tokens: Tensor) -> Span:
    """Positions of a batch: each row is one sequence."""
    return make_span(tokens, None, None, False)


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file that is whole or not there."""
    with replacing(path) as file:
        file.write(safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}))


def read_tensors(path: Path, remedy: str) -> dict[str, Tensor]:
    """The content of a safetensors file.

    Raises:
        LinscaleError: it is missing or damaged; `remedy` says what to do.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise LinscaleError(f"{path}: cannot be read ({error}); {remedy}") from None


def tokens_of(config: Blockwise, out: Path) -> Tensor:
    """The text, (batches, B, T) int32; drawn from the corpus at the first call.

    Raises:
        LinscaleError: the corpus is shorter than `config.tokens`, or has more tokens in its
            vocabulary than the teacher; the file is damaged.
    """
    path = out / "tokens.safetensors"
    if not path.is_file():
        with exclusive(out / "tokens.lock"):
            if not path.is_file():
                save(path, {"tokens": _draw(config)})
    stored = read_tensors(path, f"delete it and {out / 'activations'}, and give the same command "
                          "again: they are made anew.")  # fmt: skip
    return stored["tokens"]


def _draw(config: Blockwise) -> Tensor:
    data = config.data
    prepared = prepare(data)
    prepared.check_rows(config.model.vocab_size)
    _check_tokenizer(config, prepared)
    blocks, wanted = prepared.train.n_blocks, config.batches * data.batch_sequences
    if blocks < wanted:
        raise LinscaleError(
            f"tokens={config.tokens}: corpus {data.corpus} has {blocks * data.sequence_length} "
            f"tokens in sequences of {data.sequence_length}; lower tokens and raise epochs, or add "
            "text."
        )
    rows = prepared.train.gather(prepared.order(config.seed).blocks(0, wanted))
    if rows.ndim == 3:  # tokens, their targets and more: packed examples see each other here
        rows = rows[:, 0]
    text = torch.from_numpy(rows[:, : data.sequence_length].astype(np.int32))
    return text.unflatten(0, (config.batches, data.batch_sequences))


def _check_tokenizer(config: Blockwise, prepared: PreparedData) -> None:
    """Raise LinscaleError where the text is not tokenised as the teacher's was."""
    path = folder_of(Path(config.teacher)) / TOKENIZER
    if not path.is_file():
        return
    theirs = load_json_tokenizer(f"file:{path}", path)
    if theirs.encode(_PROBE).tolist() != prepared.tokenizer().encode(_PROBE).tolist():
        raise LinscaleError(
            f"data.tokenizer={config.data.tokenizer}: gives other tokens than the teacher's; set "
            f"data.tokenizer=file:{path}."
        )


class Boundary:
    """The hidden states before one layer."""

    def __init__(self, out: Path, layer: int) -> None:
        self.folder = out / "activations" / f"before-{layer:03d}"
        self.layer = layer

    @property
    def complete(self) -> bool:
        """All batches are there."""
        return (self.folder / MANIFEST).is_file()

    def batch(self, number: int) -> Tensor:
        """x (B, T, d) of a batch.

        Raises:
            LinscaleError: the file is missing or damaged.
        """
        path = self._path(number)
        remedy = f"delete {self.folder} and give the same command again: it is made anew."
        return read_tensors(path, remedy)["x"]

    def _path(self, number: int) -> Path:
        return self.folder / f"batch-{number:05d}.safetensors"

    def fill(self, batches: Iterator[tuple[int, Tensor]], manifest: dict[str, Any]) -> None:
        """Write the batches, and the manifest when all are there."""
        for number, x in batches:
            save(self._path(number), {"x": x})
        write_json(self.folder / MANIFEST, {"layer": self.layer, **manifest})

    def missing(self, count: int) -> list[int]:
        """Batches that are not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return [number for number in range(count) if not self._path(number).is_file()]


def cache_activations(config: Blockwise, out: Path, device: torch.device | str = "cpu") -> None:
    """Fill the boundaries of all groups, with one group's layers in memory at a time.

    Raises:
        LinscaleError: as `tokens_of` and `teacher_layers`; the disk is full.
    """
    text = tokens_of(config, out)
    manifest = {
        "batches": config.batches,
        "shape": [*text.shape[1:], config.model.dim],
        "dtype": config.precision,
        "config": config.digest(),
    }
    with exclusive(out / "activations" / "lock"):
        for before, group in zip([range(0), *config.groups], config.groups, strict=False):
            boundary = Boundary(out, group.start)
            if not boundary.complete:
                batches = _states(config, out, before, text, boundary.missing(len(text)), device)
                boundary.fill(batches, manifest)


@torch.no_grad()
def _states(
    config: Blockwise,
    out: Path,
    group: range,
    text: Tensor,
    numbers: list[int],
    device: torch.device | str,
) -> Iterator[tuple[int, Tensor]]:
    """Hidden states after a group of the teacher, batch by batch; after none: embedded tokens."""
    if not numbers:
        return
    model = teacher_layers(config, group, outside=not group, device=device)
    for number in numbers:
        tokens = text[number].to(device=device, dtype=torch.int64)
        if not group:
            yield number, model.embedding(tokens).cpu()
            continue
        x = Boundary(out, group.start).batch(number).to(device=device, dtype=dtype_of(config))
        span = span_of(tokens)
        scaled, shared, _ = model.stem(x, span, None)
        x = x if group.start else scaled  # the stem acts on embedded tokens alone
        for layer in group:
            x, _ = model.blocks[layer](x, span, shared[layer], None)
        yield number, x.cpu()
