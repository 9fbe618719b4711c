"""The configuration of one training run: frozen, validated, and free of torch.

A `RunConfig` has a part for each concern: model, data, optimizer, schedule, budget, parallelism.
Tokens are the only clock a user sets; budgets and horizons are rounded to whole optimizer steps
of `sequence_length * batch_sequences` tokens. Values come from an experiment file and may be
overridden by dotted text, `optim.lr=3e-4`; the command line wins.

Identity. `run_id` is the run's name and eight hex digits of the SHA-256 of the fields that change
what is learnt. Names and labels, the checkpoint interval and `parallel` (devices, micro-batches,
compilation) stay outside: a run started on one machine is the same run on another. The precision
is the exception among the parallel fields: bf16 changes the numbers, so it is hashed.
Fields that came later (`models.config.LATER`) are hashed only where they differ from their default:
an option that a run does without does not rename it.
A corpus of files is identified by the text of its pattern; give a relative one, so that a project
can move. Its content is fingerprinted in the run record.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, cast, get_args

from models.config import ConfigError, ModelConfig
from scaling.fields import check, hints, identity, parse, unknown_name


class _Part:
    """Checks the type of every field of a configuration part, then its own rules."""

    _prefix = ""

    def __post_init__(self) -> None:
        for name, hint in hints(type(self)).items():
            value = check(hint, getattr(self, name), self._prefix + name)
            object.__setattr__(self, name, value)
        self._validate()

    def _validate(self) -> None:
        """Rules beyond types; raises ConfigError."""

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise ConfigError(f"{self._prefix}{name}={getattr(self, name)!r}: must be {rule}.")


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Part):
    """Which text, how it becomes tokens, and the shape of a batch."""

    corpus: str = "kjv"
    """`kjv`, `stdlib`, `text:GLOB`, `jsonl:PATH` or `hf:NAME[:CONFIG]`."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe:VOCAB`, `file:PATH/tokenizer.json` or `tiktoken:NAME`."""
    text_field: str = "text"
    """Field that holds the text in `jsonl:` and `hf:` corpora."""
    sequence_length: int = 256
    """Tokens of a training sequence T."""
    batch_sequences: int = 16
    """Sequences of a global batch: one optimizer step, over all devices and micro-batches."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out."""
    validation_blocks: int = 64
    """Most sequences of the fixed validation list that milestones are evaluated on."""

    _prefix = "data."

    def _validate(self) -> None:
        kinds = ("text:", "jsonl:", "hf:")
        known = self.corpus in ("kjv", "stdlib") or (
            self.corpus.startswith(kinds) and self.corpus.split(":", 1)[1] != ""
        )
        self._require("corpus", known, "kjv, stdlib, text:GLOB, jsonl:PATH or hf:NAME[:CONFIG]")
        known = self.tokenizer == "bytes" or (
            self.tokenizer.startswith(("bpe:", "file:", "tiktoken:"))
            and self.tokenizer.split(":", 1)[1] != ""
        )
        self._require("tokenizer", known, "bytes, bpe:VOCAB, file:PATH or tiktoken:NAME")
        for name in ("sequence_length", "batch_sequences", "validation_blocks"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig(_Part):
    """AdamW. The paper states lr 3e-4 and weight decay 0.1 for all sizes; betas, eps and clipping
    are not stated there and are the common values of the field."""

    lr: float = 3e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices (norms, biases and other 1-D parameters have none)."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; None does not clip."""

    _prefix = "optim."

    def _validate(self) -> None:
        self._require("lr", 0 < self.lr < float("inf"), "above 0 and finite")
        self._require("betas", all(0 <= b < 1 for b in self.betas), "from 0 to below 1")
        self._require("eps", 0 < self.eps < float("inf"), "above 0 and finite")
        self._require("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0")
        self._require("clip_norm", self.clip_norm is None or self.clip_norm > 0, "above 0, or none")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(_Part):
    """Learning rate over tokens; formulas in `scaling.schedule`."""

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    """`wsd`: warm-up, stable, decay branch at each horizon; `cosine`; `constant` (the paper's)."""
    warmup_tokens: int = 0
    """Tokens of the linear warm-up from 0."""
    decay_fraction: float = 0.2
    """Share of a horizon that its WSD decay branch takes."""
    final_lr_ratio: float = 0.0
    """Learning rate at the end of a decay, as a share of the peak."""

    _prefix = "schedule."

    def _validate(self) -> None:
        self._require("warmup_tokens", self.warmup_tokens >= 0, "at least 0")
        self._require("decay_fraction", 0 < self.decay_fraction < 1, "between 0 and 1")
        self._require("final_lr_ratio", 0 <= self.final_lr_ratio < 1, "from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(_Part):
    """How long to train, in tokens. 300e9 is accepted as well as 300_000_000_000."""

    tokens: int
    """Tokens of the whole run, rounded to whole steps."""
    horizons: tuple[int, ...] = ()
    """Tokens at which a milestone is taken: with `wsd`, a decayed model; else the model as it is.
    In increasing order, each at most `tokens`; the end of the run is always one."""
    checkpoint_every_tokens: int | None = None
    """Tokens between resume checkpoints. None: by wall time, about one a minute."""

    _prefix = "budget."

    def _validate(self) -> None:
        self._require("tokens", self.tokens >= 1, "at least 1")
        increasing = list(self.horizons) == sorted(set(self.horizons))
        self._require("horizons", increasing, "in increasing order, without repeats")
        if self.horizons:
            self._require("horizons", self.horizons[0] >= 1, "positive token counts")
            rule = f"at most budget.tokens={self.tokens}"
            self._require("horizons", self.horizons[-1] <= self.tokens, rule)
        every = self.checkpoint_every_tokens
        self._require("checkpoint_every_tokens", every is None or every >= 1, "at least 1, or none")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(_Part):
    """Where and how a run is executed. Not part of its identity, but for the precision."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one."""
    devices: int = 1
    """Devices of one node."""
    strategy: Literal["auto", "single", "ddp"] = "auto"
    """`auto`: `single` for one device, else `ddp`."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16`: autocast with fp32 weights and optimizer."""
    micro_batch_sequences: int | None = None
    """Sequences a device processes at once; the rest of the batch is accumulated. None: all."""
    compile: bool = False
    """Compile each block with torch.compile."""
    workers: int = 0
    """Data loading processes for each device."""
    threads: int | None = None
    """CPU threads of a training process. None: PyTorch's default."""

    _prefix = "parallel."

    def _validate(self) -> None:
        self._require("devices", self.devices >= 1, "at least 1")
        self._require("workers", self.workers >= 0, "at least 0")
        for name in ("micro_batch_sequences", "threads"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1, or none")
        if self.strategy == "single" and self.devices > 1:
            raise ConfigError(
                f"parallel.strategy='single' with parallel.devices={self.devices}: a single-device "
                "strategy uses one device; choose parallel.strategy=ddp or parallel.devices=1."
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Part):
    """One training run.

    Raises:
        ConfigError: a field has the wrong type, is out of range, or contradicts another.
    """

    name: str
    """Slug that a reader recognises, such as `tnl-d96`."""
    model: ModelConfig
    """What is trained."""
    budget: BudgetConfig
    """How long."""
    data: DataConfig = field(default_factory=DataConfig)
    """On what."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """With which optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """With which learning rate over tokens."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """On which devices; of these fields only the precision is part of the identity."""
    seed: int = 0
    """Seeds initialisation and data order."""
    size: str = ""
    """Label of the rung, such as `70M` or `d96`."""

    def _validate(self) -> None:
        slug = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name) is not None
        self._require("name", slug, "1 to 64 letters, digits, dots, dashes or underscores")
        self._require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        self._validate_model()
        self._validate_budget()
        self._validate_batch()

    def _validate_model(self) -> None:
        """`models.config` checks ranges; here the types, and 10000 becomes 10000.0 as elsewhere."""
        values = {
            name: check(hint, getattr(self.model, name), f"model.{name}")
            for name, hint in hints(ModelConfig).items()
        }
        object.__setattr__(self, "model", ModelConfig(**values))

    def _validate_budget(self) -> None:
        per_step = self.tokens_per_step
        smallest = self._horizons[0]
        if smallest < per_step:
            name = "tokens" if smallest == self.budget.tokens else "horizons"
            raise ConfigError(
                f"budget.{name}: {smallest} tokens are less than one optimizer step of "
                f"data.batch_sequences={self.data.batch_sequences} x data.sequence_length="
                f"{self.data.sequence_length} = {per_step} tokens; raise the budget to at least "
                f"{per_step} or make the batch smaller."
            )
        steps = self.horizon_steps
        if len(set(steps)) < len(steps):
            raise ConfigError(
                f"budget.horizons={self.budget.horizons}: with budget.tokens={self.budget.tokens}, "
                f"two of them are the same step when rounded to whole steps of {per_step} tokens; "
                "space them further apart."
            )
        warmup = self.schedule.warmup_tokens
        if self.schedule.kind == "wsd":
            # The decay takes at least one step and starts from a warmed-up trunk.
            stable = steps[0] - self.decay_steps(steps[0])
            if warmup > stable * per_step:
                raise ConfigError(
                    f"schedule.warmup_tokens={warmup}: the warm-up must end before the first decay "
                    f"starts, at {stable * per_step} tokens (horizon {steps[0] * per_step}, "
                    f"schedule.decay_fraction={self.schedule.decay_fraction}); shorten the warm-up "
                    "or move the first horizon."
                )
        elif warmup >= self.steps * per_step:
            raise ConfigError(
                f"schedule.warmup_tokens={warmup}: must be less than the run's "
                f"{self.steps * per_step} tokens."
            )

    def _validate_batch(self) -> None:
        batch, devices = self.data.batch_sequences, self.parallel.devices
        if batch % devices:
            raise ConfigError(
                f"data.batch_sequences={batch} cannot be shared by parallel.devices={devices}; "
                f"the nearest multiple is {max(1, round(batch / devices)) * devices}."
            )
        share, micro = batch // devices, self.parallel.micro_batch_sequences
        if micro is not None and share % micro:
            divisors = [n for n in range(1, share + 1) if share % n == 0]
            near = min(divisors, key=lambda n: abs(n - micro))
            raise ConfigError(
                f"parallel.micro_batch_sequences={micro} does not divide the {share} sequences of "
                f"each device; the nearest number that does is {near}."
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step: sequence_length x batch_sequences."""
        return self.data.sequence_length * self.data.batch_sequences

    @property
    def steps(self) -> int:
        """Optimizer steps of the longest path, the budget rounded to the nearest whole step."""
        return self._to_steps(self.budget.tokens)

    @property
    def horizon_steps(self) -> tuple[int, ...]:
        """Milestones in optimizer steps, in increasing order; the last is the end of the run."""
        return tuple(map(self._to_steps, self._horizons))

    @property
    def _horizons(self) -> tuple[int, ...]:
        return tuple(sorted({*self.budget.horizons, self.budget.tokens}))

    def decay_steps(self, horizon: int) -> int:
        """Optimizer steps of the WSD decay that ends at step `horizon`, at least one."""
        return max(1, round(horizon * self.schedule.decay_fraction))

    def _to_steps(self, tokens: int) -> int:
        return max(1, (2 * tokens + self.tokens_per_step) // (2 * self.tokens_per_step))

    @property
    def run_id(self) -> str:
        """Name and hash of the fields that change what is learnt."""
        semantic = identity(self)
        semantic["precision"] = self.parallel.precision
        for label in ("name", "size", "parallel"):
            del semantic[label]
        del semantic["budget"]["checkpoint_every_tokens"]
        canonical = json.dumps(semantic, sort_keys=True, separators=(",", ":"))
        return f"{self.name}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Every resolved value as plain JSON types."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration of `to_json`; fields left out take their defaults.

        Raises:
            ConfigError: an unknown field, a wrong type or a value that cannot work.
        """
        return _build(cls, values, "")

    def override(self, assignments: Sequence[str]) -> RunConfig:
        """A copy with dotted assignments applied together, for example `["optim.lr=3e-4"]`.

        Raises:
            ConfigError: an unknown name (the nearest is suggested), a value of the wrong type, or
                a configuration that cannot work.
        """
        values = self.to_json()
        known = dotted_names()
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            path = path.strip()
            if not equals:
                raise ConfigError(f"{assignment!r}: write an override as name=value.")
            if path in values and path not in known:
                raise ConfigError(
                    f"{path} is a group of fields; set one of them, {path}.NAME=VALUE."
                )
            if path not in known:
                raise unknown_name(path, known)
            *parents, leaf = path.split(".")
            target = values[parents[0]] if parents else values
            target[leaf] = parse(known[path], text.strip(), path)
        return RunConfig.from_json(values)


def dotted_names() -> dict[str, Any]:
    """Every name that `RunConfig.override` accepts, with its type hint."""
    names: dict[str, Any] = {}
    for name, hint in hints(RunConfig).items():
        if is_dataclass(hint):
            names |= {f"{name}.{leaf}": h for leaf, h in hints(hint).items()}  # pyright: ignore[reportArgumentType]
        else:
            names[name] = hint
    return names


def _build(cls: type[Any], values: Mapping[str, Any], prefix: str) -> Any:
    """A dataclass, nested ones included, from plain JSON types."""
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{prefix.rstrip('.')}={values!r}: must be a table of fields.")
    known = {f.name: f for f in fields(cls)}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise unknown_name(prefix + name, [prefix + n for n in known])
        hint = hints(cls)[name]
        part = next((h for h in (hint, *get_args(hint)) if is_dataclass(h)), None)
        if part is not None and (part is hint or isinstance(value, Mapping)):
            arguments[name] = _build(part, cast("Any", value), f"{prefix}{name}.")  # pyright: ignore[reportArgumentType]
        else:
            arguments[name] = check(hint, value, prefix + name)
    missing = [
        prefix + f.name
        for f in known.values()
        if f.name not in arguments and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: has no default; give a value.")
    return cls(**arguments)
