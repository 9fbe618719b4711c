"""The table of launches: which functions run a call, on the CPU and on a CUDA device.

Every module named here has the same functions on a `Call`, or a `DeltaCall` of the delta rule:

    forward(call)                                             o, the final state, what is kept
    backward(call, kept, do, dfinal_state, decay_gradient)    dq, dk, dv, (dbeta,) ddecay and
                                                              dinitial_state
    empty_states(call)                                        room for what `forward` keeps

The modules are imported on first use, so that importing this one costs nothing where there is no
GPU. One token of linear attention's decoding is apart (`operators.linear_attention_step`): it has
one kernel for all modes, `triton.decode`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.kernels.call import Call
from models.kernels.delta.call import DeltaCall

PREFILL = 32
"""Tokens up to which calls run token by token where a row has a kernel for it: half a tile of the
chunked kernels, which would be two launches and mostly padding."""


class Row(NamedTuple):
    """The modules, within `models.kernels`, that run one mode."""

    cpu: str
    """PyTorch's form, for every dtype."""
    triton: str
    short: str | None = None
    """Forward pass of up to `PREFILL` tokens on a CUDA device; None: as longer ones."""
    native: str | None = None
    """The compiled form on the CPU, for calls that its `serves` takes."""


NATIVE = "native.recurrence"
_DELTA = Row(
    "delta.chunked", "triton.delta_launch", short="triton.delta_decode", native="native.delta"
)
KERNELS = {
    # linear attention, by its decay
    "none": Row("chunked", "triton.scalar_launch", native=NATIVE),
    "head": Row("chunked", "triton.scalar_launch", native=NATIVE),
    "head_t": Row("chunked", "triton.scalar_launch", native=NATIVE),
    "vector": Row("chunked", "triton.vector_launch", short="triton.decode", native=NATIVE),
    # HGRN2, from gate logits
    "gate": Row("chunked", "triton.vector_launch", short="triton.decode", native=NATIVE),
    # the cosine form
    "phase": Row("rotated", "triton.phase_launch", native=NATIVE),
    # the delta rule, by its decay
    "delta": _DELTA,
    "delta_head": _DELTA,
    "delta_channel": _DELTA,
}
"""By `Call.mode` and `DeltaCall.mode`."""


class Kernels(NamedTuple):
    """The functions that run one call (see above)."""

    forward: Callable[[Any], tuple[Tensor, Tensor, Tensor]]
    backward: Callable[[Any, Tensor, Tensor, Tensor | None, bool], tuple[Tensor | None, ...]]
    empty_states: Callable[[Any], Tensor]


def choose(call: Call | DeltaCall, backend: str) -> Kernels:
    """The functions for `call` on a backend, "cpu" or "cuda"."""
    mode = call.mode
    if backend == "cpu" and (native := KERNELS[mode].native) is not None:
        module = import_module(f"models.kernels.{native}")
        if module.serves(call):
            return Kernels(module.forward, module.backward, module.empty_states)
    # Asked only where it matters: compiled code is otherwise the same for all lengths.
    brief = backend == "cuda" and KERNELS[mode].short is not None
    ahead, back = _modules(mode, backend, bool(brief and call.q.shape[1] <= PREFILL))
    return Kernels(ahead.forward, back.backward, ahead.empty_states)


@cache
def _modules(mode: str, backend: str, short: bool) -> tuple[ModuleType, ModuleType]:
    """The modules of the forward and the backward pass."""
    row = KERNELS[mode]
    name = row.cpu if backend == "cpu" else row.triton
    back = import_module(f"models.kernels.{name}")
    if short:
        return import_module(f"models.kernels.{row.short}"), back
    return back, back


def backend(device: torch.device) -> str:
    """ "cpu" or "cuda": nothing falls back.

    Raises:
        ValueError: there are no kernels for `device`.
    """
    if device.type in ("cpu", "cuda"):
        return device.type
    raise ValueError(
        f"q is on {device}: the kernels run on the CPU and on CUDA devices; move it there."
    )


def kernels(call: Call | DeltaCall) -> Kernels:
    """The functions for `call` on the device that its tensors are on."""
    return choose(call, backend(call.q.device))
