"""Bytes on one device while a run trains, from its configuration alone.

    total = the largest of four moments: end of the forward pass, start of the backward pass,
            its first block and its last one

1. Weights, gradients and both Adam moments are float32, 16 bytes a parameter, or 4 where it does
   not learn (attention transfer and LoRA of `scaling.linearization`); `fsdp` divides them by the
   sharding degree. A teacher that is a second model adds 4 bytes for each of its own.
2. Gathered. bf16: autocast's copies of all matrices. `fsdp`: two blocks at a time in the compute
   dtype, their gradients before they are shared out, and the root group (embedding, head) in
   float32 with its gradient.
3. Activations of one micro-batch: what every block keeps for its backward pass, by architecture and
   mode of checkpointing (`kept_by_block`); in the backward pass also one block that is computed
   again and the gradients inside it.
4. Logits of the loss: two tensors of the plain cross-entropy in the forward pass and three in the
   backward pass where they fit in one chunk, otherwise two of one chunk's (`models.cross_entropy`).

The gradients of the last step are freed between the passes unless they are being accumulated.

What a block keeps is counted in tensors of `saved_tensors_hooks` on the eager model. A compiled
block keeps less, and kernels need some workspace: the estimate is meant to be within 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.accounting import key_dim, parameters
from models.chunk_sizes import PLAIN_LOGITS, STATE_INTERVAL
from models.config import ModelConfig
from scaling.config.run import RunConfig
from scaling.plan.costs import learning_parameters, teacher_parameters

USABLE = 0.92
"""Share of a device's memory that a run may fill; the rest is the runtime's, and on a CUDA device
one chunk of logits, which is at most 1/128 of it (`models.chunk_sizes`)."""

# Width-d numbers that a block keeps for each token, by architecture: in float32, and under bf16
# autocast in bytes / 4 (some stay float32 there). Norm outputs, inputs of products, q, k, v, o.
_WIDE = {"llama": 10.0, "tnl": 10.0, "hgrn2": 7.0, "cosformer2": 17.0}
_NARROW = {"llama": 6.5, "tnl": 8.0, "hgrn2": 6.0, "cosformer2": 8.0}
_ANGLES = 3
"""The same for each position: cosFormer2's angles, their cosines and sines, float32."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated bytes on one device."""

    states: float
    """Weights, gradients and optimizer moments: this device's share."""
    gathered: float
    """Weights in the compute dtype, and blocks gathered from other devices."""
    activations: float
    """What one micro-batch keeps for the backward pass."""
    total: float
    """Of the worst moment. Not a sum: gradients, logits and recomputed activations take turns."""


def kept_by_block(
    model: ModelConfig, tokens: int, positions: int, mode: str, *, bf16: bool, interval: int
) -> float:
    """Bytes that one block keeps for its backward pass.

    Args:
        model: configuration.
        tokens: of one micro-batch.
        positions: of a sequence.
        mode: `none`, `selective` or `block`.
        bf16: autocast instead of float32.
        interval: tokens between the states that linear attention keeps.
    """
    width = 2 if bf16 else 4
    d, g = model.dim, model.glu_dim
    softmax = model.arch not in _WIDE or model.arch == "llama"
    gated = model.arch in ("tnl", "cosformer2")
    keys = key_dim(model, model.layers - 1)
    # One state of heads x K x V every interval, or softmax's normaliser.
    states = 4 * model.heads if softmax else 4 * d * keys / interval
    if mode == "block":
        return 4.0 * d * tokens
    if mode == "selective":
        products = 6 * d + 2 * g + (d + model.gate_dim if gated else 0)  # q, k, v, o, out, GLU
        return (4 * d + width * products + states) * tokens
    row = 4 * (_NARROW if bf16 else _WIDE).get(model.arch, 10.0) * d
    activation = 4 if model.arch == "llama" else 3
    rank = model.gate_dim if gated else 0
    angles = 4 * _ANGLES * d * positions if model.arch == "cosformer2" else 0
    return (row + width * (activation * g + rank) + states + 12) * tokens + angles


def decide_strategy(run: RunConfig, capacity: float) -> RunConfig:
    """The run with strategy `auto` decided: what a plan shows and what a run does.

    `single` on one device; on several `ddp` where each can hold the whole model, and else `fsdp`.

    Args:
        run: any other strategy stays as it is.
        capacity: bytes of memory for each device.
    """

    def on(**changes: Any) -> RunConfig:
        return replace(run, parallel=replace(run.parallel, **changes))

    if run.parallel.strategy != "auto":
        return run
    if run.parallel.world_size == 1:
        return on(strategy="single")
    whole = on(strategy="ddp")
    return whole if memory(whole).total <= USABLE * capacity else on(strategy="fsdp")


def memory(run: RunConfig, devices: int | None = None) -> Memory:
    """Estimated bytes per device of a run.

    Args:
        run: its `parallel` says how; strategy `auto` is read as `single` or `ddp`.
        devices: None: those of the run. Otherwise as if `fsdp` shared the model out over so many.
    """
    model, parallel = run.model, run.parallel
    bf16 = parallel.precision == "bf16"
    groups = parameters(model)
    total = sum(groups.values())
    root = groups["embedding"] + groups["head"]
    block = (total - root) / model.layers
    sharded = devices is not None or parallel.strategy == "fsdp"
    world = parallel.world_size if devices is None else devices
    share = (world if devices is not None else parallel.shard or world) if sharded else 1
    width = 2 if bf16 else 4
    learning = learning_parameters(run)
    if share > 1:
        # The block at work and the one fetched ahead; gradients leave in float32, where they are
        # of whole matrices.
        own = block * (width + 4) + 4.0 * root if learning == total else 0.0
        gathered = 2 * block * width + 4.0 * root + own
    else:
        gathered = 2.0 * total if bf16 else 0.0
    ranks = max(1, world // parallel.sequence)
    micro = parallel.micro_batch_sequences or run.data.batch_sequences // ranks or 1
    mode, length = parallel.activation_checkpointing, run.data.sequence_length // parallel.sequence
    tokens = micro * length
    # Where `auto` leaves it open, the CPU kernels', which keep more.
    interval = STATE_INTERVAL["cuda" if parallel.accelerator == "cuda" else "cpu"]
    kept = kept_by_block(model, tokens, length, mode, bf16=bf16, interval=interval)
    whole = kept_by_block(model, tokens, length, "none", bf16=bf16, interval=interval)
    again = {"none": 0.0, "block": whole, "selective": whole - kept + 4.0 * model.dim * tokens}
    inside = again[mode] + (width * 2 * model.glu_dim + 4 * model.dim) * tokens
    activations = model.layers * kept + 12.0 * model.dim * tokens  # embedded tokens, last norm
    if tokens * model.vocab_size <= PLAIN_LOGITS:
        logits = 4.0 * tokens * model.vocab_size
        forward, backward = 2 * logits, 3 * logits
    else:
        forward = backward = 8.0 * PLAIN_LOGITS
    gradients, held = 4.0 * learning / share, (4.0 * total + 8.0 * learning) / share
    held += 4.0 * teacher_parameters(run)
    kept_gradients = gradients if ranks * micro < run.data.batch_sequences else 0.0
    of_root = 4.0 * root / share if learning == total else 0.0
    worst = max(
        held + gradients + activations + forward,
        held + kept_gradients + activations + backward,
        held + max(kept_gradients, of_root) + activations + inside,
        held + gradients + kept + inside,
    )
    return Memory(
        states=held + gradients,
        gathered=gathered,
        activations=activations + again[mode],
        total=worst + gathered,
    )
