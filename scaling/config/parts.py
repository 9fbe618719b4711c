"""The parts of a run's configuration: data, optimizer, schedule, budget, parallelism, divergence.

Frozen dataclasses with plain type hints; every value is checked when a part is built. What a run
is made of, how it is named and how it is overridden: `scaling.config.run`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from models.errors import ConfigError
from models.fields import LATER, Part
from scaling.data.corpora.corpus import Corpus
from scaling.data.corpora.registry import kind_of


@dataclass(frozen=True, kw_only=True)
class DataConfig(Part):
    """Which text, how it becomes tokens, and the shape of a batch."""

    corpus: str = "kjv"
    """`kjv`, `stdlib`, `text:GLOB`, `jsonl:PATH`, `parquet:PATH`, `hf:NAME[@REVISION][:CONFIG]`,
    or a recall task such as
    `task:mqar:pairs=8,vocab=64` (`scaling.data.recall_tasks`), which has no tokenizer.
    `instructions:GLOB` and `instructions:hf:NAME`: questions with answers, packed
    (`scaling.data.instructions`). `mix:0.7 CORPUS + 0.3 CORPUS`: several by weight
    (`scaling.data.mixture`)."""
    tokenizer: str = "bytes"
    """`bytes`, `bpe:VOCAB`, `file:PATH/tokenizer.json` or `tiktoken:NAME`."""
    text_field: str = "text"
    """Field that holds the text in `jsonl:`, `parquet:` and `hf:` corpora."""
    sequence_length: int = 256
    """Tokens of a training sequence T."""
    batch_sequences: int = 16
    """Sequences of a global batch: one optimizer step, over all devices and micro-batches."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out."""
    validation_blocks: int = 64
    """Most sequences of the fixed validation list that milestones are evaluated on."""
    max_bad_records: int = field(default=0, metadata=LATER)
    """Most records of a `jsonl:` or `parquet:` corpus that are passed over, and counted, because
    they cannot be read. The next one is refused with its file and line."""

    document_mask: bool = field(default=False, metadata=LATER)
    """Whether the documents of a sequence do not see each other: neither attention nor states pass
    from one to the next. Each begins with the end of the one before it, as a text does that is
    generated from nothing. For texts; not with `parallel.sequence`. FLOPs are counted as without:
    of a softmax layer they are then an upper bound."""

    _prefix = "data."

    @property
    def kind(self) -> Corpus[Any]:
        """What is known of its kind of corpus."""
        return kind_of(self.corpus)

    @property
    def masked(self) -> bool:
        """Whether targets count in some places only: answers."""
        return self.kind.masked

    @property
    def packed(self) -> bool:
        """Whether a row of a batch may hold several examples that do not see each other. Such rows
        cannot be split over devices, nor be read as whole sequences."""
        return self.document_mask or self.kind.packed

    @property
    def why_packed(self) -> str:
        """Of a packed one: the field that makes it so, for messages."""
        if self.kind.packed:
            return f"data.corpus={self.corpus!r}"
        return f"data.document_mask={self.document_mask}"

    @property
    def tokenizer_in_file(self) -> bool:
        """Whether its tokens mean something only together with a file: `tokenizer.json`."""
        in_file = self.tokenizer.partition(":")[0] in ("bpe", "file")
        return in_file and self.kind.tokenizer is None

    def _validate(self) -> None:
        settings = self.kind.parse(self.corpus)
        known = self.tokenizer == "bytes" or (
            self.tokenizer.startswith(("bpe:", "file:", "tiktoken:"))
            and self.tokenizer.split(":", 1)[1] != ""
        )
        self._require("tokenizer", known, "bytes, bpe:VOCAB, file:PATH or tiktoken:NAME")
        for name in ("sequence_length", "batch_sequences", "validation_blocks"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("max_bad_records", self.max_bad_records >= 0, "at least 0")
        self._require("validation_fraction", 0 < self.validation_fraction < 1, "between 0 and 1")
        if self.document_mask and (self.kind.packed or self.kind.masked):
            raise ConfigError(
                f"data.document_mask=True with data.corpus={self.corpus!r}: only texts are read as "
                "documents one after another; leave it out."
            )
        self.kind.check(settings, self)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Part):
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
        clip = self.clip_norm
        within = clip is None or 0 < clip < float("inf")
        self._require("clip_norm", within, "above 0 and finite, or none")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Part):
    """Learning rate over tokens; formulas in `scaling.config.schedule`."""

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
class BudgetConfig(Part):
    """How long to train, in tokens. 300e9 is accepted as well as 300_000_000_000."""

    tokens: int
    """Tokens of the whole run, rounded to whole steps."""
    horizons: tuple[int, ...] = ()
    """Tokens at which a milestone is taken: with `wsd`, a decayed model; else the model as it is.
    In increasing order, each at most `tokens`; the end of the run is always one."""
    checkpoint_every_tokens: int | None = None
    """Tokens between resume checkpoints. None: by wall time, about one a minute."""
    keep_every_tokens: int | None = field(default=None, metadata=LATER)
    """Tokens between resume checkpoints of the trunk that are kept for good. None: those that are
    no longer of use are removed; milestones are kept anyway."""
    keep_trunk: bool = field(default=True, metadata=LATER)
    """Whether the trunk's last checkpoint, with optimizer, stays when the run is done, so that a
    run of the same trunk with a larger budget goes on from it. Not part of the identity."""
    milestone_precision: Literal["fp32", "bf16"] = field(default="fp32", metadata=LATER)
    """In which the weights of milestones are written; bf16 takes half the disk. Losses are measured
    before, on the weights as trained; what is evaluated later has the rounded ones. Not part of the
    identity."""

    _prefix = "budget."

    def _validate(self) -> None:
        self._require("tokens", self.tokens >= 1, "at least 1")
        increasing = list(self.horizons) == sorted(set(self.horizons))
        self._require("horizons", increasing, "in increasing order, without repeats")
        if self.horizons:
            self._require("horizons", self.horizons[0] >= 1, "positive token counts")
            rule = f"at most budget.tokens={self.tokens}"
            self._require("horizons", self.horizons[-1] <= self.tokens, rule)
        for name in ("checkpoint_every_tokens", "keep_every_tokens"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1, or none")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig(Part):
    """Where and how a run is executed. Not part of its identity, but for the precision."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one."""
    devices: int = 1
    """Devices of one node."""
    nodes: int = 1
    """Nodes of so many devices each; more than one are started by torchrun or a cluster."""
    strategy: Literal["auto", "single", "ddp", "fsdp"] = "auto"
    """`auto`: `single` for one device, else `ddp`, which holds the whole model on every device, or
    `fsdp` where that does not fit. `fsdp`: weights, gradients and optimizer are shared out over the
    devices (FSDP2)."""
    shard: int | None = None
    """`fsdp`: devices that share one copy of the model; the copies, devices x nodes / shard, are
    replicas. None: all devices share one copy."""
    sequence: int = 1
    """Devices that share each sequence, consecutive tokens each: sequence parallelism of the linear
    mixers (`models.kernels.parallel`). A batch is shared by the devices over this."""
    activation_checkpointing: Literal["auto", "none", "selective", "block"] = "none"
    """What is computed again in the backward pass to save memory: nothing; the element-wise
    operations (products and token mixers are kept); all of a block. `auto`: what the device's
    memory allows, and with it the micro-batch, unless `micro_batch_sequences` is given."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16`: products in bf16; master weights, gradient sums and optimizer in fp32. `auto`: bf16
    on CUDA devices that compute in it, else fp32. The device that a run begins on decides, and the
    run goes on in that precision wherever it is (`scaling.record.precision`)."""
    native_precision: Literal["fp32", "bf16"] | None = field(default=None, metadata=LATER)
    """What `precision=auto` is. None: as said there."""
    micro_batch_sequences: int | None = None
    """Sequences a device processes at once; the rest of the batch is accumulated. None: all, or
    what `activation_checkpointing=auto` decides."""
    compile: bool = False
    """Compile each block with torch.compile."""
    cuda_graph: bool = field(default=False, metadata=LATER)
    """Capture a whole optimizer step in a CUDA graph and launch it as one
    (`scaling.training.captured`): for small models, which wait for launches. One device; text or
    recall tasks whose batches all have one shape. Elsewhere than on CUDA nothing is captured."""
    workers: int = 0
    """Data loading processes for each device."""
    threads: int | None = None
    """CPU threads of a training process. None: PyTorch's default."""
    profile_steps: int = 0
    """Steps at the start of each session that a profiler looks at; its trace is left in the run's
    folder `profile`."""

    _prefix = "parallel."

    def _validate(self) -> None:
        self._require("devices", self.devices >= 1, "at least 1")
        self._require("nodes", self.nodes >= 1, "at least 1")
        self._require("sequence", self.sequence >= 1, "at least 1")
        if self.world_size % self.sequence:
            raise ConfigError(
                f"parallel.sequence={self.sequence} does not divide the {self.world_size} devices "
                f"of the run (parallel.devices={self.devices}, parallel.nodes={self.nodes})."
            )
        for name in ("workers", "profile_steps"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("micro_batch_sequences", "threads"):
            value = getattr(self, name)
            self._require(name, value is None or value >= 1, "at least 1, or none")
        if self.strategy == "single" and self.world_size > 1:
            raise ConfigError(
                f"parallel.strategy='single' with parallel.devices={self.devices} and "
                f"parallel.nodes={self.nodes}: a single-device strategy uses one device; choose "
                "parallel.strategy=ddp or fsdp, or one device."
            )
        if self.shard is None:
            return
        if self.strategy != "fsdp":
            raise ConfigError(
                f"parallel.shard={self.shard} with parallel.strategy={self.strategy!r}: only fsdp "
                "shares a model out; choose parallel.strategy=fsdp, or parallel.shard=none."
            )
        if self.shard < 1 or self.world_size % self.shard:
            raise ConfigError(
                f"parallel.shard={self.shard} does not divide the {self.world_size} devices of the "
                f"run (parallel.devices={self.devices}, parallel.nodes={self.nodes})."
            )

    @property
    def bf16(self) -> bool:
        """Whether products are in bf16. Where `auto` is not decided yet: on all but a CPU."""
        asked = self.asked_precision
        return self.accelerator != "cpu" if asked is None else asked == "bf16"

    @property
    def asked_precision(self) -> str | None:
        """`fp32` or `bf16`; None where the devices decide."""
        return self.native_precision if self.precision == "auto" else self.precision

    @property
    def world_size(self) -> int:
        """Devices of all nodes."""
        return self.devices * self.nodes

    @property
    def data_ranks(self) -> int:
        """Shares that a batch is divided into: devices, or groups that share sequences."""
        return self.world_size // self.sequence

    @property
    def distributed(self) -> bool:
        """Whether the run's processes are ranks that torchrun starts."""
        return self.world_size > 1 or self.strategy == "fsdp"


@dataclass(frozen=True, kw_only=True)
class DivergenceConfig(Part):
    """What to do about updates that are not numbers and about loss spikes
    (`scaling.training.guard`)."""

    policy: Literal["stop", "skip", "rewind"] = "stop"
    """`stop`: a loss or gradient that is not finite ends the run as `diverged`. `skip`: such an
    update is left out and counted. `rewind`: such an update or a loss spike puts the run back to
    an earlier checkpoint, from where it goes on with later data."""
    limit: int = 10
    """Skipped updates, or rewinds, after which the run stops as `diverged` all the same."""
    spike_sigmas: float = 6.0
    """`rewind`: a loss that is this many standard deviations above the mean of the last `window`
    losses is a spike."""
    window: int = 64
    """`rewind`: losses that a spike is measured against; there are no spikes before so many."""

    _prefix = "divergence."

    def _validate(self) -> None:
        self._require("limit", self.limit >= 1, "at least 1")
        finite = 0 < self.spike_sigmas < float("inf")
        self._require("spike_sigmas", finite, "above 0 and finite")
        self._require("window", self.window >= 8, "at least 8")
