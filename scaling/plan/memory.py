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

The gradients of the last step are freed between the passes unless they are being accumulated or
have a place in a CUDA graph.

What a block keeps is counted in tensors of `saved_tensors_hooks` on the eager model. A compiled
block keeps less, and kernels need some workspace: the estimate is meant to be within 15 %.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from statistics import fmean

from models.accounting import layer_costs, parameters
from models.architecture import Kept
from models.chunk_sizes import PLAIN_LOGITS, STATE_INTERVAL
from models.config import ModelConfig, layer_configs
from scaling.config.run import RunConfig
from scaling.plan.costs import learning_parameters, teacher_parameters
from scaling.plan.kept import measured

USABLE = 0.92
"""Share of a device's memory that a run may fill; the rest is the runtime's, and on a CUDA device
one chunk of logits, which is at most 1/128 of it (`models.chunk_sizes`)."""


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


@lru_cache(maxsize=1024)
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
    width, d, g = 2 if bf16 else 4, model.dim, model.glu_dim
    kept = _kept(model)
    if mode == "block":
        return 4.0 * d * tokens
    if kept is None:
        return measured(model, tokens, positions, mode, bf16=bf16)
    states = 4 * (kept.states + kept.recurrent / interval)
    if mode == "selective":
        products = kept.products + d + 2 * g
        return (4 * d + width * products + states) * tokens
    row = 4 * (kept.narrow if bf16 else kept.wide)
    glu = (3 if model.gate_activation == "none" else 4) * g
    return (row + width * (glu + kept.gate) + states + 12) * tokens + 4 * kept.position * positions


def _kept(model: ModelConfig) -> Kept | None:
    """The mean layer's; None where the architecture has no closed form for some layer.

    A layer's own architecture says what is kept with its own norms: those with weights keep their
    results twice in float32, before and after.
    """
    found = [costs.kept for costs in layer_costs(model)]
    own = [config.architecture.weighted_norm for config in layer_configs(model)]
    kept = [
        replace(k, wide=k.wide + 2 * model.dim * (model.architecture.weighted_norm - weighted))
        for k, weighted in zip(found, own, strict=True)
        if k is not None
    ]
    if len(kept) < len(found) or not model.architecture.costs:
        return None
    names = [f.name for f in fields(Kept)]
    return Kept(**{name: fmean(getattr(k, name) for k in kept) for name in names})  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=32)  # of one run it is asked several times
def memory(run: RunConfig, devices: int | None = None) -> Memory:
    """Estimated bytes per device of a run.

    Args:
        run: its `parallel` says how; strategy `auto` is read as `single` or `ddp`. The mode of
            checkpointing must be decided.
        devices: None: those of the run. Otherwise as if `fsdp` shared the model out over so many.
    """
    model, parallel = run.model, run.parallel
    bf16 = parallel.bf16
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
    stay = parallel.cuda_graph or ranks * micro < run.data.batch_sequences
    kept_gradients = gradients if stay else 0.0
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
