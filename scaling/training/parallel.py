"""From `parallel` of a run to Lightning's engines, and the processes of a run on several devices.

    single    the calling process trains
    ddp       one process a device under torchrun (gloo or NCCL); every rank holds the whole model
    fsdp      the same, and ranks share the model out (`scaling.training.fsdp`)

Each rank takes its share of each global batch, and every target of the batch weighs the same
(`scaling.training.module`), so that the run is the same up to the order of float additions. A rank
process is `python -m scaling.training.train CONFIG.json SWEEP_DIR`. On one node this module starts
torchrun; on several an outer torchrun starts the ranks of every node.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linscale.code_search import child_environment, python_command
from linscale.errors import LinscaleError
from scaling.config.run import RunConfig
from scaling.plan.accelerator import accelerator, native_precision
from scaling.plan.decide import decide_parallel, with_precision
from scaling.system.claims import ClaimLost, hand_on
from scaling.system.devices import host_memory, reproducible_cuda
from scaling.system.orphans import die_with_parent
from scaling.system.ranks import agree, is_rank, rank

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from scaling.system.claims import StopEvent


_EXPECTED_WARNINGS = (
    # Batches are gathered from a memory map in microseconds; workers would only cost.
    ".*does not have many workers",
    # Validation takes place at milestones, in scaling.training.milestones.
    ".*have no `validation_step`",
    # On a login node of a SLURM cluster.
    ".*The `srun` command is available on your system but is not used",
    # Of a step that is one function (scaling.training.captured).
    ".*`training_step` returned `None`",
    # Lightning's own use of PyTorch.
    ".*isinstance.treespec, LeafSpec.* is deprecated",
    # The loss is a view of the loss by token; nothing changes it in place.
    ".*FSDP2-wrapped module .* returned a view tensor",
    # A single process that reads a sharded checkpoint.
    ".*torch.distributed is disabled, unavailable or uninitialized",
    # The compiler's own doing: it looks at every input of a block, and imports old modules.
    r".*\.grad attribute of a Tensor that is not a leaf Tensor",
    ".*torch.jit.script_method. is deprecated",
)


RANK_MODULE = "scaling.training.train"
"""What a rank process runs."""


def decide(config: RunConfig, begun_in: str | None = None) -> RunConfig:
    """Decide what is `auto` by these devices and their memory; all ranks must ask.

    Args:
        config: the run.
        begun_in: precision of its earlier sessions (`scaling.record.precision`), if any.
    """
    kind = accelerator(config)
    if config.parallel.asked_precision is None:
        config = with_precision(config, agree(begun_in or native_precision(kind)))
        accelerator(config)  # another machine began it: can this one?
    if "auto" not in (config.parallel.strategy, config.parallel.activation_checkpointing):
        return config
    import torch

    from scaling.training.together import current

    if kind == "cuda":
        capacity = float(torch.cuda.get_device_properties(0).total_memory)
    else:
        capacity = host_memory() / config.parallel.devices
    if (others := current()) is not None:
        capacity /= others.members
    return decide_parallel(config, agree(capacity))


def accumulation(config: RunConfig) -> int:
    """Micro-batches a device processes for one optimizer step."""
    share = config.data.batch_sequences // config.parallel.data_ranks
    return share // (config.parallel.micro_batch_sequences or share)


def make_trainer(config: RunConfig, steps: int, callbacks: list[pl.Callback]) -> pl.Trainer:
    """A Trainer for the next `steps` optimizer steps, with everything off that we do ourselves."""
    import lightning.pytorch as pl
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    kind = accelerator(config)
    backend = "nccl" if kind == "cuda" else "gloo"
    strategy: Any = "auto"
    if config.parallel.strategy == "fsdp":
        # Lightning's default sizes take the devices of a node for tensor parallelism.
        strategy = ModelParallelStrategy(
            data_parallel_size=config.parallel.world_size,
            tensor_parallel_size=1,
            process_group_backend=backend,
        )
    elif config.parallel.distributed:
        strategy = DDPStrategy(process_group_backend=backend, gradient_as_bucket_view=True)
    trainer = pl.Trainer(
        accelerator=kind,
        devices=config.parallel.devices,
        num_nodes=config.parallel.nodes,
        strategy=strategy,
        # Named, so that a cluster's variables never change how a run starts or handles signals.
        plugins=[TorchElasticEnvironment() if is_rank() else LightningEnvironment()],
        precision="bf16-mixed" if config.parallel.bf16 else "32-true",
        max_steps=steps,
        accumulate_grad_batches=accumulation(config),
        callbacks=callbacks,
        use_distributed_sampler=False,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if config.parallel.distributed:
        _leave_signals_to_ranks(trainer)
    return trainer


def _leave_signals_to_ranks(trainer: pl.Trainer) -> None:
    """Keep Lightning from handling SIGTERM among several ranks.

    Its handler broadcasts, at whatever place the signal finds a rank: the others are in another
    collective or in none, and all wait for ever. Every micro-batch would broadcast as well, to
    ask. Ranks set a flag (`scaling.training.train.main`) and agree on it after each step
    (`scaling.training.callbacks.Clock`).
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


@contextmanager
def process_settings(config: RunConfig) -> Iterator[None]:
    """Threads, determinism, warnings and log level of a training process; put back at the end."""
    import torch

    threads = torch.get_num_threads()
    # CPU kernels repeat for a fixed number of threads; CUDA's have to be asked.
    cuda = reproducible_cuda() if accelerator(config) == "cuda" else nullcontext()
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with warnings.catch_warnings(), cuda:
        try:
            if config.parallel.threads is not None:
                torch.set_num_threads(config.parallel.threads)
            if accelerator(config) == "cuda":
                warnings.filterwarnings("ignore", ".*does not have a deterministic implementation")
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            logger.setLevel(logging.WARNING)
            yield
        finally:
            torch.set_num_threads(threads)
            logger.setLevel(level)


@contextmanager
def sequences_split(config: RunConfig) -> Iterator[None]:
    """Within the block, groups of `parallel.sequence` consecutive ranks share their sequences."""
    size, world = config.parallel.sequence, config.parallel.world_size
    if size == 1:
        yield
        return
    import torch.distributed as dist

    from models.kernels.sequence import split_over

    # Every rank makes every group.
    groups = [dist.new_group(range(first, first + size)) for first in range(0, world, size)]
    own = groups[rank() // size]
    assert isinstance(own, dist.ProcessGroup)
    with split_over(own):
        yield


def run_ranks(
    config_path: Path,
    sweep_dir: Path,
    devices: int,
    stop: StopEvent | None,
    progress: bool,
    meeting: Sequence[str] = ("--standalone",),
) -> int:
    """Train with one process a device on this machine; returns torchrun's exit status.

    When `stop` is set the ranks are sent SIGTERM; they save at the next step and end. `meeting`:
    torchrun's options for where the ranks of all nodes meet.
    """
    command = [
        *python_command("torch.distributed.run", *meeting),
        *("--nproc-per-node", str(devices), "-m", RANK_MODULE),
        *(str(config_path), str(sweep_dir)),
        *(["--progress"] if progress else []),
    ]
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = child_environment({"OMP_NUM_THREADS": threads})
    me = os.getpid()

    def prepare() -> None:
        # A cluster's warning reaches every process of a job; this one passes it on.
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        die_with_parent(me, signal.SIGTERM)

    with hand_on():  # the run is held until its last process ends
        process = subprocess.Popen(command, env=environment, preexec_fn=prepare, close_fds=False)
    asked = False
    try:
        while True:
            try:
                return process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if stop is not None and stop.is_set() and not asked:
                    process.send_signal(signal.SIGTERM)
                    asked = True
    except BaseException as error:
        if isinstance(error, ClaimLost):  # the run is another's: nothing may be saved
            process.kill()
        process.terminate()
        process.wait()
        raise


def start_process_group(config: RunConfig) -> None:
    """Join the other ranks, where torchrun started this process.

    Raises:
        LinscaleError: torchrun started another number of processes than the run asks for.
    """
    if not is_rank():
        return
    import torch
    import torch.distributed as dist

    world = int(os.environ["WORLD_SIZE"])
    wanted = config.parallel
    if world != wanted.world_size:
        raise LinscaleError(
            f"torchrun started {world} processes, but parallel.devices={wanted.devices} x "
            f"parallel.nodes={wanted.nodes} are {wanted.world_size}; give both the same number."
        )
    if not dist.is_initialized():
        if accelerator(config) == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl")
        else:
            dist.init_process_group("gloo")
