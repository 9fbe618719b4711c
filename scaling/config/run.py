"""The configuration of one training run: frozen, validated, and free of torch.

A `RunConfig` has a part for each concern (`scaling.config.parts`): model, data, optimizer,
schedule, budget, parallelism, divergence.
Tokens are the only clock a user sets; budgets and horizons are rounded to whole optimizer steps
of `sequence_length * batch_sequences` tokens. Values come from an experiment file and may be
overridden by dotted text, `optim.lr=3e-4`; the command line wins.

Identity. `run_id` is the run's name and eight hex digits of the SHA-256 of the fields that change
what is learnt. Names and labels, the checkpoint interval, loggers and `parallel` (devices,
micro-batches, compilation) stay outside: a run started on one machine is the same run on another.
The precision is the exception among the parallel fields: bf16 changes the numbers, so it is hashed
where it is asked for. `auto` is hashed as fp32: it is the same run on every machine, and its record
says in which precision it was begun.
Fields that came later (`models.config.LATER`) are hashed only where they differ from their default:
an option that a run does without does not rename it.
A corpus of files is identified by the text of its pattern; give a relative one, so that a project
can move. Its content is fingerprinted in the run record.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from linscale.horizons import whole_steps
from models import flat, model_json
from models.config import ConfigError, ModelConfig
from models.fields import (
    LATER,
    Part,
    build,
    identity,
    nearest_divisor,
    unknown_name,
    unknown_option,
)
from scaling.config.fields import assign, leaves, parse
from scaling.config.linearize import ALIGNMENTS, LinearizeConfig
from scaling.config.objectives import Stage
from scaling.config.parts import (
    BudgetConfig,
    DataConfig,
    DivergenceConfig,
    OptimConfig,
    ParallelConfig,
    ScheduleConfig,
)

__all__ = [
    "BudgetConfig",
    "DataConfig",
    "DivergenceConfig",
    "LinearizeConfig",
    "OptimConfig",
    "ParallelConfig",
    "RunConfig",
    "ScheduleConfig",
    "dotted_names",
]


@dataclass(frozen=True, kw_only=True)
class RunConfig(Part):
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
    divergence: DivergenceConfig = field(default=DivergenceConfig(), metadata=LATER)
    """What happens when the loss spikes or is no longer a number."""
    linearize: LinearizeConfig = field(default=LinearizeConfig(), metadata=LATER)
    """Which transformer it starts from, if any."""
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Where metrics go besides the run record (`scaling.training.loggers`). Not part of the
    identity."""
    seed: int = 0
    """Seeds initialisation and data order."""
    size: str = ""
    """Label of the rung, such as `70M` or `d96`."""

    def _validate(self) -> None:
        slug = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name) is not None
        self._require("name", slug, "1 to 64 letters, digits, dots, dashes or underscores")
        self._require("seed", 0 <= self.seed < 2**63, "from 0 to 2^63 - 1")
        self.linearize.check(self.model, self.parallel.strategy, self.data)
        self._validate_budget()
        self._validate_batch()

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
        if self.divergence.policy == "rewind" and self.budget.checkpoint_every_tokens is None:
            raise ConfigError(
                "divergence.policy='rewind' with budget.checkpoint_every_tokens=None: a rewind "
                "goes back to the last checkpoint, which may not depend on the clock; set "
                "budget.checkpoint_every_tokens."
            )
        aligned = self.prelude_steps
        if aligned > steps[0] or (aligned == steps[0] and aligned < self.steps):
            raise ConfigError(
                f"{', '.join(f'linearize.{ALIGNMENTS[n]}' for n in self.linearize.prelude)}: the "
                f"stages that align layers take {aligned * per_step} tokens and must end before "
                f"the first horizon, at {steps[0] * per_step}; shorten them or raise the budget, "
                "which counts the tokens of all stages together."
            )
        if aligned == self.steps:
            return  # nothing follows that has a schedule
        warmup = self.schedule.warmup_tokens
        if self.schedule.kind == "wsd":
            # The decay takes at least one step and starts from a warmed-up trunk.
            stable = steps[0] - self.decay_steps(steps[0]) - aligned
            if warmup > stable * per_step:
                raise ConfigError(
                    f"schedule.warmup_tokens={warmup}: the warm-up must end before the first decay "
                    f"starts, at {stable * per_step} tokens (horizon {steps[0] * per_step}, "
                    f"schedule.decay_fraction={self.schedule.decay_fraction}); shorten the warm-up "
                    "or move the first horizon."
                )
        elif warmup >= (self.steps - aligned) * per_step:
            after = " after stage 1" if aligned else ""
            raise ConfigError(
                f"schedule.warmup_tokens={warmup}: must be less than the run's "
                f"{(self.steps - aligned) * per_step} tokens{after}."
            )

    def _validate_graph(self) -> None:
        """A graph holds one device's step, whose shapes and work are the same every time."""
        if not self.parallel.cuda_graph:
            return
        why = ""
        if self.parallel.distributed:
            why = f"parallel.strategy={self.parallel.strategy!r} on {self._devices}: ranks meet"
        elif self.data.packed:
            why = f"{self.data.why_packed}: the number of examples in a row changes"
        elif self.linearize.teacher:
            why = f"linearize.teacher={self.linearize.teacher!r}: what a stage does changes"
        if why:
            raise ConfigError(
                f"parallel.cuda_graph=True with {why} within a step that a graph holds; leave "
                "parallel.cuda_graph out."
            )

    def _validate_batch(self) -> None:
        self._validate_sequence()
        self._validate_graph()
        batch, devices = self.data.batch_sequences, self.parallel.data_ranks
        if batch % devices:
            raise ConfigError(
                f"data.batch_sequences={batch} cannot be shared by {self._devices}; "
                f"the nearest multiple is {max(1, round(batch / devices)) * devices}."
            )
        share, micro = batch // devices, self.parallel.micro_batch_sequences
        if micro is not None and share % micro:
            raise ConfigError(
                f"parallel.micro_batch_sequences={micro} does not divide the {share} sequences of "
                f"each device; the nearest number that does is {nearest_divisor(share, micro)}."
            )

    def _validate_sequence(self) -> None:
        """Sequences are split only where the architecture says that they can be."""
        split, length = self.parallel.sequence, self.data.sequence_length
        if split == 1:
            return
        if whole := self.model.whole_sequences:
            field = "mixers" if self.model.mixers else "arch"
            raise ConfigError(
                f"parallel.sequence={split} with model.{field}={getattr(self.model, field)!r}: "
                f"{whole[0]} does not say that sequences can be split "
                "(Architecture.splits_sequences); set "
                "parallel.sequence=1, and use parallel.activation_checkpointing=block or a smaller "
                "parallel.micro_batch_sequences to save memory."
            )
        for name in ("matrix_tokens", "hidden_tokens", "temperature", "fit_sequences"):
            if value := getattr(self.linearize, name):
                raise ConfigError(
                    f"parallel.sequence={split} with linearize.{name}={value}: the teacher's "
                    "softmax attention takes whole sequences; set parallel.sequence=1."
                )
        if self.data.packed:
            raise ConfigError(
                f"parallel.sequence={split} with {self.data.why_packed}: rows packed with several "
                "examples cannot be split; set parallel.sequence=1."
            )
        if length % split:
            raise ConfigError(
                f"parallel.sequence={split} does not divide data.sequence_length={length}; choose "
                "a number of devices that does."
            )

    @property
    def _devices(self) -> str:
        """The devices of the run, in the words of an error message."""
        per_node, nodes = self.parallel.devices, self.parallel.nodes
        return f"parallel.devices={per_node}" + (f" x parallel.nodes={nodes}" if nodes > 1 else "")

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

    @property
    def objectives(self) -> tuple[Stage, ...]:
        """What the run is trained by, in order. The last is that of the run's schedule; it has 0
        steps where those before it fill the budget."""
        linearize = self.linearize
        prelude = [
            Stage(name, self._to_steps(tokens), linearize.transfer_lr)
            for name, tokens in linearize.prelude.items()
        ]
        return (*prelude, Stage(linearize.objective, self.steps - sum(s.steps for s in prelude)))

    @property
    def prelude_steps(self) -> int:
        """Optimizer steps before the run's schedule starts; 0 without a teacher."""
        return sum(stage.steps for stage in self.objectives[:-1])

    def decay_steps(self, horizon: int) -> int:
        """Optimizer steps of the WSD decay that ends at step `horizon`, at least one."""
        return max(1, round((horizon - self.prelude_steps) * self.schedule.decay_fraction))

    def passes(self, step: int, every: int | None) -> bool:
        """Whether a step is the first at or beyond another multiple of so many tokens."""
        now, before = (count * self.tokens_per_step for count in (step, max(0, step - 1)))
        return every is not None and now // every > before // every

    def keeps(self, step: int) -> bool:
        """Whether the trunk's checkpoint of this step is kept for good."""
        return self.passes(step, self.budget.keep_every_tokens)

    def _to_steps(self, tokens: int) -> int:
        return whole_steps(tokens, self.tokens_per_step)

    @functools.cached_property
    def run_id(self) -> str:
        """Name and hash of the fields that change what is learnt."""
        return f"{self.name}-{_digest(self._semantic())}"

    @property
    def trunk_id(self) -> str | None:
        """Hash of the fields that change the trunk, which are not the budget and its horizons. Runs
        of one trunk share its checkpoints (`scaling.record.trunk`). None: the learning rate depends
        on the budget from the start, or checkpoints are no function of the step."""
        return _digest(self._semantic() | {"budget": {}}) if self.has_trunk else None

    @property
    def has_trunk(self) -> bool:
        """Whether a run with another budget may share its trunk (`trunk_id`)."""
        cosine, rewinds = self.schedule.kind == "cosine", self.divergence.policy == "rewind"
        return not (cosine or rewinds or self.linearize.teacher)

    def _semantic(self) -> dict[str, Any]:
        without = ("name", "size", "parallel", "loggers", "model")
        semantic = identity(self, without) | {"model": _flat(self.model)}
        asked = self.parallel.precision
        semantic["precision"] = "fp32" if asked == "auto" else asked
        for name in ("keep_trunk", "milestone_precision"):
            semantic["budget"].pop(name, None)
        if self.divergence.policy != "rewind":  # which goes back to a checkpoint
            for name in ("checkpoint_every_tokens", "keep_every_tokens"):
                semantic["budget"].pop(name, None)
        return semantic

    def to_json(self) -> dict[str, Any]:
        """Every resolved value as plain JSON types."""
        values = json.loads(json.dumps(asdict(self)))
        return values | {"model": self.model.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """The configuration of `to_json`, or of an older record; fields left out take their
        defaults.

        Raises:
            ConfigError: an unknown field, a wrong type or a value that cannot work.
        """
        model = values.get("model") if isinstance(values, Mapping) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        if isinstance(model, Mapping):
            values = {**values, "model": model_json.nested(cast("Mapping[str, Any]", model))}
        return build(cls, values)

    def override(self, assignments: Sequence[str]) -> RunConfig:
        """A copy with dotted assignments applied together, for example `["optim.lr=3e-4"]`.

        Names may be of any depth, such as `model.options.rope_scaling.factor=2`. A new `model.arch`
        keeps those options that both architectures have. A new `data.tokenizer` sets
        `model.vocab_size` to its vocabulary, unless that is given, too.

        Raises:
            ConfigError: an unknown name (the nearest is suggested), a value of the wrong type, or
                a configuration that cannot work.
        """
        given = [_split(assignment) for assignment in assignments]
        values = self.to_json()
        for path, text in given:
            if path == "model.arch" and text != values["model"]["arch"]:
                values["model"] = model_json.carried(values["model"], text)
        known = dotted_names(values)
        groups = {path[:at] for path in known for at, letter in enumerate(path) if letter == "."}
        for path, text in given:
            if path in known:
                assign(values, path, parse(known[path], text, path))
            elif path in groups:
                raise ConfigError(
                    f"{path} is a group of fields; set one of them, {path}.NAME=VALUE."
                )
            else:
                arch = values["model"]["arch"]
                moved = flat.explain_move(path, arch)
                raise moved or unknown_option(path, arch, known) or unknown_name(path, known)
        named = [path for path, _ in given]
        teacher = self.linearize != LinearizeConfig()  # its vocabulary stays
        if "data.tokenizer" in named and "model.vocab_size" not in named and not teacher:
            from scaling.data.tokenizers import vocabulary_of  # NumPy, where a tokenizer is asked

            rows = vocabulary_of(values["data"]["tokenizer"])
            if rows is not None and values["data"]["tokenizer"] != self.data.tokenizer:
                values["model"]["vocab_size"] = rows
        return RunConfig.from_json(values)


@functools.lru_cache(maxsize=256)
def _flat(model: ModelConfig) -> dict[str, Any]:
    """What a model is hashed by; not to be changed."""
    return flat.flatten(model)


def _digest(semantic: dict[str, Any]) -> str:
    canonical = json.dumps(semantic, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _split(assignment: str) -> tuple[str, str]:
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"{assignment!r}: write an override as name=value.")
    return path.strip(), text.strip()


def dotted_names(values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every name that `RunConfig.override` accepts, with its type hint.

    Args:
        values: the configuration as JSON, whose `model.arch` says which options there are; None:
            the names that all architectures have.
    """
    return leaves(RunConfig, {} if values is None else values)
