"""Whatever can answer a prompt: a checkpoint of a run, or a directory in Hugging Face's layout.

    loaded = load_pretrained("runs/quickstart/tnl-d64-1a2b3c4d")

| path                                    | what is loaded                                         |
|-----------------------------------------|--------------------------------------------------------|
| `runs/S/R/checkpoints/milestone-N.pt`   | that checkpoint                                        |
| `runs/S/R`                              | the last milestone of the run                          |
| a directory with a foreign config.json  | what `models.interop` imports, and its tokenizer.json  |
| a GGUF file                             | the same, converted once to a directory beside it      |
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.errors import LinscaleError
from linscale.file_names import find_inside
from scaling.config.run import RunConfig
from scaling.data.json_tokenizer import more_ends
from scaling.data.tokenizers import (
    JsonTokenizer,
    Tokenizer,
    load_json_tokenizer,
    load_tokenizer,
)
from scaling.record.checkpoint_files import CheckpointError
from scaling.record.head import read_head
from scaling.record.load_model import load_model
from scaling.record.record import TOKENIZER
from scaling.system.files import read_json

GGUF = ".gguf"

if TYPE_CHECKING:
    import torch

    from models.language_model import LanguageModel

LINEARIZATION = "linearization.json"
"""Of a run that starts from a teacher (`scaling.linearization.linearization_record`)."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A model that can be used, with what belongs to it."""

    name: str
    """For tables and messages: run and file, or the directory's name."""
    model: LanguageModel
    """In evaluation mode."""
    tokenizer: Tokenizer
    """The one that it was trained with."""
    context: int | None
    """What it can take in: tokens of the sequences it was trained on, of a linearized model those
    of its teacher. None where that is not known."""
    eos_ids: tuple[int, ...]
    """Tokens that end a text."""
    run: RunConfig | None
    """The run that trained it; None for a foreign model."""
    run_dir: Path | None = None
    """The directory of that run."""

    @property
    def files(self) -> Path | None:
        """The folder with its tokenizer's files as they came with it or its teacher."""
        return self.tokenizer.folder if isinstance(self.tokenizer, JsonTokenizer) else None


def load_pretrained(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Pretrained:
    """Load a model by path.

    Args:
        path: see the table above.
        device: where the model is wanted.
        dtype: of its parameters; None: as stored.

    Raises:
        LinscaleError: nothing there, or a checkpoint that is damaged or incomplete.
        ConfigError: a foreign checkpoint that cannot be imported (`models.interop.InteropError`).
    """
    checkpoint = find_checkpoint(path)
    if checkpoint is None:
        return _foreign(Path(path), device, dtype)
    return _from_run(checkpoint, device, dtype)


def find_checkpoint(path: Path | str) -> Path | None:
    """The checkpoint that a path of the table means; None for a foreign model's directory.

    Raises:
        LinscaleError: there is no model at the path.
    """
    path = Path(path)
    if path.suffix == GGUF and path.is_file():
        return None
    if path.is_file():
        return path
    head = read_head(path)
    if head.run_id is not None:
        return _last_milestone(path)
    if "model_type" in head.config:
        return None
    if runs := sorted(p.parent.name for p in path.glob("*/config.json") if path.is_dir()):
        raise LinscaleError(
            f"{path}: is a sweep; give one of its runs, such as {path / runs[0]} "
            f"({len(runs)} there)."
        )
    if not head.config and (path / "config.json").is_file():
        raise LinscaleError(
            f"{path / 'config.json'}: is not a JSON object; restore it, or delete {path} and make "
            "it again."
        )
    if not path.is_dir() or (path / "adapter_config.json").is_file():
        from models.interop.importing import check_folder

        check_folder(path)
    raise LinscaleError(
        f"{path}: holds no model; give a checkpoint (.pt), the directory of a run, or a directory "
        "with config.json and safetensors files."
    )


def usable_device(name: str) -> torch.device:
    """The device of a name, the GPU where there is one for an empty name; raises LinscaleError when
    it is none, or is not there."""
    import torch

    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LinscaleError(f"device {name!r}: is not a device; choose cpu or cuda.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LinscaleError(f"device {name!r}: PyTorch finds no GPU here; choose cpu.")
    return device


def tokenizer_of(config: RunConfig, run_dir: Path) -> Tokenizer:
    """The tokenizer of a run, and certainly that one.

    Raises:
        LinscaleError: it is missing, or another than the run was trained with.
    """
    if (own := config.data.kind.tokenizer) is not None:
        return own(config.data.corpus)
    name = config.data.tokenizer
    if config.data.tokenizer_in_file:
        path = run_dir / TOKENIZER
        if not path.is_file():
            raise LinscaleError(
                f"{path}: the run's tokenizer is missing; copy it from where the run was trained."
            )
        tokenizer = load_json_tokenizer(name, path)
    else:
        tokenizer = load_tokenizer(name)
    stored = read_json(run_dir / "environment.json").get("data", {}).get("tokenizer_sha256")
    if stored not in (None, tokenizer.fingerprint):
        raise LinscaleError(
            f"{run_dir}: its tokenizer {name} is not the one that it was trained with (the "
            "fingerprint in environment.json differs); put that one back."
        )
    return tokenizer


def _from_run(
    checkpoint: Path, device: torch.device | str, dtype: torch.dtype | None
) -> Pretrained:
    model, config = load_model(checkpoint)
    tokenizer = tokenizer_of(config, checkpoint.parent.parent)
    return Pretrained(
        name=f"{config.run_id}/{checkpoint.stem}",
        model=model.to(device=device, dtype=dtype),
        tokenizer=tokenizer,
        context=_context(config, checkpoint.parent.parent),
        eos_ids=_ends(tokenizer),
        run=config,
        run_dir=checkpoint.parent.parent,
    )


def _ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a text: the tokenizer's own first, and those that came with it."""
    folder = tokenizer.folder if isinstance(tokenizer, JsonTokenizer) else None
    more = () if folder is None else more_ends(folder)
    return tuple(dict.fromkeys((tokenizer.eos_id, *more)))


def _context(config: RunConfig, run_dir: Path) -> int:
    """The teacher's where there is one: its weights know what lies beyond the sequences that the
    student was trained on. A record without it is from before it was written."""
    stored = read_json(run_dir / LINEARIZATION) if config.linearize.teacher else {}
    return stored.get("teacher", {}).get("context") or config.data.sequence_length


def _foreign(path: Path, device: torch.device | str, dtype: torch.dtype | None) -> Pretrained:
    from models.interop import import_model
    from models.interop.gguf import folder_of

    path = folder_of(path)
    tokenizer_path = path / TOKENIZER
    if not tokenizer_path.is_file():
        raise LinscaleError(
            f"{path}: there is no {TOKENIZER} in it; save one with transformers: "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(DIR)."
        )
    model, source = import_model(path, device=device, dtype=dtype)
    tokenizer = load_json_tokenizer(f"file:{tokenizer_path}", tokenizer_path)
    if tokenizer.vocab_size > source.config.vocab_size:
        raise LinscaleError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} tokens and its model "
            f"{source.config.vocab_size}; the two do not belong together."
        )
    return Pretrained(
        name=path.resolve().name,
        model=model,
        tokenizer=tokenizer,
        context=source.context,
        eos_ids=source.eos_ids or (tokenizer.eos_id,),
        run=None,
    )


def _last_milestone(run_dir: Path) -> Path:
    lines = run_dir / "milestones.jsonl"
    stored = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
    try:
        milestones: list[dict[str, Any]] = [json.loads(line) for line in stored]
        last = max(milestones, key=lambda line: line["tokens"], default=None)
    except (ValueError, KeyError, TypeError) as error:
        raise LinscaleError(f"{lines}: is damaged ({error}); give a checkpoint file.") from None
    if last is None:
        raise CheckpointError(
            f"{run_dir}: the run has no milestone yet; let it train to its first horizon."
        )
    return find_inside(run_dir, last.get("checkpoint"), links=True)
