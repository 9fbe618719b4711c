"""The teacher of a linearization: found by path, checked against the run, loaded.

1. `teacher_config` reads the configuration alone, to build a run from.
2. `load_teacher` reads the weights, when the run starts, and again only for stages that learn from
   the teacher as a second model: a run that goes on has its own in its checkpoints. It checks that
   the run's model is the teacher with other attentions, and that its text is tokenised as the
   teacher's was.
3. `adopt` gives the student what it takes over of the teacher: every weight that both have, or for
   a TNL, HGRN2 or cosFormer2 what `models.linearize.initialise` makes of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.errors import LinscaleError
from models.architecture import Options
from models.architectures.llama import LlamaBased, LlamaOptions
from models.config import ConfigError, ModelConfig
from models.linearize.options import linearized
from scaling.config.run import RunConfig
from scaling.record.head import read_head
from scaling.record.pretrained import find_checkpoint, load_pretrained

if TYPE_CHECKING:
    from models.language_model import LanguageModel
    from scaling.data.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A softmax or linearized model, and what it cost where that is known."""

    name: str
    """Run and checkpoint, or the directory's name."""
    model: LanguageModel
    """On the CPU, in evaluation mode."""
    context: int | None
    """Tokens that it can take in; None where that is not known."""
    cost: dict[str, Any]
    """`tokens`, `flops`, `flops_paper` and `sha256` of its milestone; empty for a foreign model."""


def teacher_config(path: Path | str) -> ModelConfig:
    """The configuration of a teacher, without reading its weights.

    Raises:
        LinscaleError: there is no model at the path.
        ConfigError: a model that cannot be read (attention other than rotary softmax, such as MLA
            or ALiBi) or cannot be linearized.
    """
    checkpoint = _find(path)
    if checkpoint is None:
        from models.interop.importing import read_source

        return _softmax(read_source(path).config, path)
    head = read_head(checkpoint.parent.parent)
    if not (head.path / "config.json").is_file():
        raise LinscaleError(
            f"linearize.teacher={path}: there is no {head.path / 'config.json'}, which says what "
            "the checkpoint is; point at a checkpoint inside the directory of its run."
        )
    return _softmax(head.run_config().model, path)


def load_teacher(config: RunConfig, tokenizer: Tokenizer) -> Teacher:
    """The teacher of a run.

    Args:
        config: the run.
        tokenizer: of its data.

    Raises:
        LinscaleError: the teacher is missing or damaged, has another tokenizer than the data, or
            is not the transformer that the run's model was made from.
        ConfigError: as `teacher_config`.
    """
    path = config.linearize.teacher
    checkpoint = _find(path)
    loaded = load_pretrained(path)
    _check_model(config.model, _softmax(loaded.model.config, path), path)
    if loaded.tokenizer.fingerprint != tokenizer.fingerprint:
        raise LinscaleError(
            f"linearize.teacher={path}: was trained with another tokenizer than "
            f"data.tokenizer={config.data.tokenizer} (the fingerprints differ); set "
            "data.tokenizer to the teacher's, file:PATH/tokenizer.json for a directory in Hugging "
            "Face's layout."
        )
    return Teacher(
        name=loaded.name,
        model=loaded.model,
        context=loaded.context,
        cost={} if checkpoint is None else _cost(checkpoint),
    )


def _check_model(model: ModelConfig, theirs: ModelConfig, path: str) -> None:
    """Raise LinscaleError where a run's model is not its teacher with another attention."""
    if model.architecture.starts_from == "attention":
        from models.linearize.initialise import gated_config, keep_attention

        started = gated_config(theirs, model.arch)
        known = ("vocab_size", "dim", "layers", "heads", "glu_dim", "norm_eps", "glu_activation",
                 "tie_embeddings")  # fmt: skip
        expected, given = ({n: getattr(m, n) for n in known} for m in (started, model))
        if softmax := model.softmax_layers:
            wanted = keep_attention(model, theirs.options_as(LlamaOptions), softmax)
            expected["mixers"], given["mixers"] = wanted.mixers, model.mixers
        if hasattr(started.options, "rope_base"):
            name = "options.rope_base"
            expected[name], given[name] = (m.options.rope_base for m in (started, model))  # pyright: ignore[reportAttributeAccessIssue]
    else:
        compared = model.replace(init_std=theirs.init_std)
        if not linearized(theirs):  # the student has its attention's options, and the teacher's
            own = model.options
            llama = own.llama if isinstance(own, LlamaBased) else own
            same = isinstance(llama, LlamaOptions)
            compared = compared.replace(arch=theirs.arch, options=llama if same else Options())
        expected, given = vars(theirs), vars(compared)
    for name, value in expected.items():
        if given[name] != value:
            raise LinscaleError(
                f"linearize.teacher={path}: has model.{name}={value!r} and the run "
                f"model.{name}={given[name]!r}; a run keeps everything of its teacher but the "
                "attention. Make the run from this teacher, with linscale linearize."
            )


def adopt(student: LanguageModel, teacher: LanguageModel) -> None:
    """Give the student the teacher's weights; what is new there stays as initialised."""
    import torch
    from torch.distributed.tensor import DTensor

    from models.linearize.initialise import start_from
    from scaling.training.fsdp import share_of

    if student.config.architecture.starts_from == "attention":
        start_from(student, teacher)
        return
    weights = student.state_dict()
    with torch.no_grad():
        for name, whole in teacher.state_dict().items():
            own = weights[name]
            own.copy_(share_of(whole, own) if isinstance(own, DTensor) else whole)


def _find(path: Path | str) -> Path | None:
    try:
        return find_checkpoint(path)
    except LinscaleError as error:
        raise LinscaleError(f"linearize.teacher: {error}") from None


def _softmax(config: ModelConfig, path: Path | str) -> ModelConfig:
    if config.architecture.starts_from not in ("itself", "surgery"):
        raise ConfigError(
            f"linearize.teacher={path}: is a model of arch={config.arch!r}; only a transformer "
            "with rotary softmax attention can be a teacher (llama here; its relatives in Hugging "
            "Face's layout, such as Qwen3 or Gemma 3), or one that is linearized already."
        )
    return config


def _cost(checkpoint: Path) -> dict[str, Any]:
    """The line of the checkpoint in its run's milestones.jsonl."""
    lines = checkpoint.parent.parent / "milestones.jsonl"
    stored = lines.read_text(encoding="utf-8").splitlines() if lines.is_file() else []
    for line in map(json.loads, stored):
        if line["checkpoint"] == f"checkpoints/{checkpoint.name}":
            return {name: line[name] for name in ("tokens", "flops", "flops_paper", "sha256")}
    return {}
