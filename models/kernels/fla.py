"""Our kernels under flash-linear-attention's names, and its kernels under ours.

    from models.kernels.fla import patch, served_by_fla

    served = patch()               # until served.undo() its layers and models run on our kernels
    with patch():                  # or within a block alone
        loss = its_model(tokens).loss

    with served_by_fla():          # the other way round, to compare: our models on its kernels
        loss = our_model.loss(tokens, targets)

Served are the operators behind its GLA, HGRN2, simple GLA, RetNet, Lightning and linear attention:
`chunk_gla`, `fused_recurrent_gla`, `chunk_simple_gla`, `fused_chunk_simple_gla`,
`fused_recurrent_simple_gla` and `parallel_simple_gla`, with the signatures of the installed
version. A call with an option that ours lack (decays of values, reversed time, materialised scores)
goes to the library's own operator, and a warning says so once for each operator and option.

On CUDA devices the Triton kernels serve, elsewhere the chunked PyTorch form.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from models.kernels import operators
from models.kernels.api import hgrn2_gate, linear_attention, linear_attention_step
from models.kernels.lrpe import lrpe

Operator = Callable[..., Any]

OPERATORS = {
    "fla.ops.gla": ("chunk_gla", "fused_recurrent_gla"),
    "fla.ops.simple_gla": (
        "chunk_simple_gla",
        "fused_chunk_simple_gla",
        "fused_recurrent_simple_gla",
        "parallel_simple_gla",
    ),
}
"""Package of the library -> what it exports and we serve. Its Lightning, retention and linear
attention call these."""

DECAYS = ("g", "gk", "g_gamma")
SERVED = {
    "q", "k", "v", *DECAYS, "scale", "initial_state", "output_final_state", "state_v_first",
    "transpose_state_layout", "cu_seqlens",
}  # fmt: skip
NO_MATTER = {"cu_seqlens_cpu", "chunk_size"}
"""Arguments that change how the library computes, not what."""


class Patch:
    """Our operators in the library's place, until `undo` or the end of a `with` block."""

    def __init__(self, replaced: dict[Operator, Operator]) -> None:
        self.replaced = replaced
        """The library's operator -> ours."""
        _swap(replaced)

    def undo(self) -> None:
        """Put the library's own operators back, wherever ours stand."""
        _swap({ours: theirs for theirs, ours in self.replaced.items()})
        self.replaced = {}

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


def patch() -> Patch:
    """Serve flash-linear-attention's operators by our kernels, in all modules that hold them.

    A second patch within the first changes nothing, and its `undo` neither.

    Raises:
        ImportError: flash-linear-attention is not installed.
    """
    replaced = {}
    for package, names in OPERATORS.items():
        module = _import(package)
        for name in names:
            theirs = getattr(module, name)
            if not hasattr(theirs, "linscale_serves"):
                replaced[theirs] = _ours(theirs, name)
    return Patch(replaced)


def _own(operator: Operator) -> Operator:
    """The library's operator, where ours stands in its place."""
    return getattr(operator, "__wrapped__") if hasattr(operator, "linscale_serves") else operator  # noqa: B009


def _import(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library warns on machines without a GPU
            return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{name} cannot be imported ({error}): pip install flash-linear-attention."
        ) from error


def _swap(places: dict[Operator, Operator]) -> None:
    """Put the values of `places` where a module of the library holds the keys."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "fla":
            continue
        for name, held in list(vars(module).items()):
            if callable(held) and inspect.isfunction(held) and held in places:
                setattr(module, name, places[held])


def _ours(theirs: Operator, name: str) -> Operator:
    """An operator with the signature of `theirs` that our kernels serve."""
    signature = inspect.signature(theirs)
    told: set[str] = set()

    @functools.wraps(theirs)
    def operator(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        values = dict(given.arguments)
        values.update(values.pop("kwargs", {}))
        lacking = _lacking(signature, values)
        if lacking:
            if lacking not in told:
                told.add(lacking)
                warnings.warn(
                    f"{name}({lacking}=...): Linscale's kernels have no such option, so "
                    "flash-linear-attention's own operator computes this call.",
                    stacklevel=2,
                )
            return theirs(*args, **kwargs)
        return attention(**{key: value for key, value in values.items() if key in SERVED})

    operator.linscale_serves = name  # type: ignore[attr-defined]
    return operator


def _lacking(signature: inspect.Signature, values: dict[str, Any]) -> str:
    """The first argument that asks for what ours lack; none: empty."""
    for key, value in values.items():
        known = signature.parameters.get(key)
        default = None if known is None else known.default
        asks = value is not default and not (isinstance(value, bool) and value == default)
        if key not in SERVED | NO_MATTER and asks:
            return key
    decays = [key for key in DECAYS if values.get(key) is not None]
    return decays[1] if len(decays) > 1 else ""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    gk: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    state_v_first: bool = False,
    transpose_state_layout: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`linear_attention` in the library's conventions.

    Args:
        q, k, v: (B, T, H, K), (B, T, H, K) and (B, T, H, V).
        g, gk, g_gamma: log decays: one of them, (B, T, H), (B, T, H, K) or (H,).
        scale: factor of the scores; None: K^(-1/2). It is multiplied into q in q's dtype, which is
            exact for K = 4^n and K^(-1/2), and one rounding of q otherwise.
        initial_state: (N, H, K, V), or (N, H, V, K) with `state_v_first`.
        output_final_state: return the state too.
        state_v_first, transpose_state_layout: two names for one thing.
        cu_seqlens: offsets of packed sequences, (N + 1,).

    Returns:
        o in q's dtype, and the state after each sequence in float32, or None.
    """
    factor: float = k.shape[-1] ** -0.5 if scale is None else scale
    decay = next((x for x in (g, gk, g_gamma) if x is not None), None)
    value_first = state_v_first or transpose_state_layout
    if initial_state is not None and value_first:
        initial_state = initial_state.transpose(-1, -2)
    dtype = q.dtype
    q, k, v = q * factor, k.to(dtype), v.to(dtype)
    inputs = [x for x in (q, k, v, decay, initial_state) if x is not None]
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if q.shape[1] == 1 and initial_state is not None and cu_seqlens is None and not learns:
        now = decay if decay is None or decay.ndim == 1 else decay[:, 0]
        wide = torch.promote_types(initial_state.dtype, torch.float32)
        state = initial_state.to(wide).contiguous()
        o, final = linear_attention_step(q[:, 0], k[:, 0], v[:, 0], state, now)
        o = o[:, None]
    else:
        o, final = linear_attention(q, k, v, decay, initial_state, cu_seqlens)
    if not output_final_state:
        return o, None
    return o, final.transpose(-1, -2) if value_first else final


@contextmanager
def served_by_fla() -> Iterator[None]:
    """Our models on flash-linear-attention's kernels, to compare the two in one run.

    Whole sequences only: decoding steps and the delta rule stay ours. The library's own operators
    serve, whether `patch` is in force or not. Decays (H,) that learn are
    given as (B, T, H): the library gives no gradient to the former.

    Raises:
        ImportError: flash-linear-attention is not installed.
    """
    chunk_gla = _own(_import("fla.ops.gla").chunk_gla)
    chunk_simple_gla = _own(_import("fla.ops.simple_gla").chunk_simple_gla)

    def linear(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        decay: Tensor | None,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        position_offset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        rest: dict[str, Any] = {"scale": 1.0, "output_final_state": True}
        rest |= {"initial_state": initial_state, "cu_seqlens": cu_seqlens}
        if decay is not None and decay.ndim == 1 and decay.requires_grad:
            decay = decay.expand(q.shape[:3])
        if decay is not None and decay.ndim == 4:
            return *chunk_gla(q, k, v, decay, **rest), None
        name = "g_gamma" if decay is not None and decay.ndim == 1 else "g"
        return *chunk_simple_gla(q, k, v, **{name: decay}, **rest), None

    def hgrn2(
        q: Tensor, x: Tensor, v: Tensor, lower_bound: Tensor, *rest: Tensor | None
    ) -> tuple[Tensor, Tensor, None]:
        k, decay = hgrn2_gate(x, lower_bound)
        return linear(q, k.to(q.dtype), v, decay, *rest[:2])

    def cosine(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        theta: Tensor,
        initial_state: Tensor | None,
        cu_seqlens: Tensor | None,
        position_offset: Tensor,
    ) -> tuple[Tensor, Tensor, None]:
        if cu_seqlens is not None:
            raise ValueError("cu_seqlens is given: cosine attention is compared unpacked.")
        at = torch.arange(q.shape[1], device=q.device) + position_offset.reshape(-1, 1)
        q, k = lrpe(q, theta, at), lrpe(k, theta, at)
        return linear(q, k, v, None, initial_state, None)

    places = {"linear_attention": linear, "hgrn2_attention": hgrn2, "cosine_attention": cosine}
    before = {name: getattr(operators, name) for name in places}
    try:
        for name, theirs in places.items():
            setattr(operators, name, theirs)
        yield
    finally:
        for name, ours in before.items():
            setattr(operators, name, ours)
