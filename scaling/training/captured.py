"""A whole optimizer step on tensors that stay where they are, so that a CUDA graph can hold it.

    take    each micro-batch is copied to its place
    run     gradients to 0, forward and backward pass of every micro-batch, clipping, AdamW

On a CUDA device the first steps are made one operation at a time, which compiles kernels and makes
the optimizer's state; then one step is captured, and from there on replayed: one launch for
thousands, which is what small models wait for. The learning rate is a tensor that each step fills.
Anywhere else, and at steps whose gradients somebody wants to see before they are clipped, the same
function runs without a graph. The numbers are those of the plain step (`scaling.training.module`)
to the bit: the same operations on the same values; gradients begin as zeros instead of nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scaling.data.loader import Batch
from scaling.training.optim import make_capturable
from scaling.training.together import current

if TYPE_CHECKING:
    from scaling.training.module import TrainingModule

WARM_STEPS = 3
"""Steps before the one that is captured."""

Run = Callable[[], None]
Capture = Callable[[Run], Run]
"""From what makes a step to what makes it again."""


class CapturedStep:
    """The steps of one module while one optimizer trains it."""

    def __init__(
        self,
        module: TrainingModule,
        optimizer: torch.optim.Optimizer,
        micro_batches: int,
        context: Callable[[], AbstractContextManager[object]],
    ) -> None:
        """
        Args:
            module: whose net is trained.
            optimizer: of its parameters.
            micro_batches: of a step.
            context: of the forward pass: autocast.
        """
        self._module, self._optimizer = module, optimizer
        self._micro_batches, self._context = micro_batches, context
        self.device = module.device
        self.capture = capture_on(module.device)
        """None: steps are not captured."""
        self._together = current()
        self._places: list[Batch] = []
        self._taken = self._made = 0
        self._replay: Run | None = None
        self._norm = torch.zeros((), device=module.device)
        self._gradients: list[Tensor] = []
        for parameter in module.net.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
                self._gradients.append(parameter.grad)
        make_capturable(optimizer)

    def take(self, batch: Batch) -> None:
        """The next micro-batch of the step."""
        if len(self._places) < self._micro_batches:
            self._places.append(tuple(tensor.clone() for tensor in batch))
        else:
            for place, tensor in zip(self._places[self._taken], batch, strict=True):
                place.copy_(tensor, non_blocking=True)
        self._taken += 1

    def run(self, between: Run | None = None) -> None:
        """Make a step with the micro-batches taken, at the learning rate of the module's step.

        Args:
            between: called when the gradients are there and not yet clipped.
        """
        assert self._taken == self._micro_batches
        self._taken = 0
        self._module.set_rate(self._optimizer)
        if between is not None or self.capture is None or self._made < WARM_STEPS:
            apart(self.device, lambda: self.make(between))
            self._made += 1
        elif self._together is not None:
            self._together.step(self, self.capture)
        else:
            if self._replay is None:
                self._replay = self.capture(self.make)
            self._replay()

    @cached_property
    def side(self) -> torch.cuda.Stream:
        """The stream of this run among several."""
        return torch.cuda.Stream(self.device)

    def make(self, between: Run | None = None) -> None:
        """What a step does; `between` as for `run`."""
        module = self._module
        torch._foreach_zero_(self._gradients)  # pyright: ignore[reportPrivateImportUsage]
        module.loss_sum.zero_()
        for batch in self._places:
            with self._context():
                loss = module.loss_of(batch)
            (loss / self._micro_batches).backward()
        module.weigh()
        if between is not None:
            between()
        self._norm.copy_(module.clip(self._optimizer))
        module.grad_norm = self._norm
        self._optimizer.step()


def apart(device: torch.device, run: Run) -> None:
    """Run on a stream of its own, as what is captured later does."""
    if device.type != "cuda":
        run()
        return
    stream, here = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        run()
    here.wait_stream(stream)


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    return _STREAMS.setdefault(device, torch.cuda.Stream(device))


def capture_on(device: torch.device) -> Capture | None:
    """How steps are captured there; None: they are not."""
    return cuda_capture if device.type == "cuda" else None


def cuda_capture(run: Run) -> Run:
    """Capture what `run` launches, which is not done by that; the result does it, in one launch."""
    graph = torch.cuda.CUDAGraph()
    device = torch.device("cuda", torch.cuda.current_device())
    # Threads that write checkpoints and read data go on meanwhile.
    with torch.cuda.graph(graph, stream=_stream(device), capture_error_mode="thread_local"):
        run()
    return graph.replay
