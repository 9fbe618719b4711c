"""A student with one of its parts switched off: what does each of them carry?

    with reading(student, "window"):         # its linear part off, in all layers
        loss = ...
    with reading(student, "past", [3]):      # its window off, in layer 3 alone

No weight changes. Where a query has nothing to read, the attention's output is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from models.language_model import LanguageModel
from models.linearize.lolcats import HybridAttention, Reads


def hybrid_mixers(model: LanguageModel) -> dict[int, HybridAttention]:
    """The attentions with a window and a linear part by layer; {} where there are none."""
    mixers = {layer: block.mixer for layer, block in enumerate(model.blocks)}
    return {layer: m for layer, m in mixers.items() if isinstance(m, HybridAttention)}


@contextmanager
def reading(
    model: LanguageModel, reads: Reads, layers: Iterable[int] | None = None
) -> Iterator[None]:
    """For a while the hybrid attentions of some layers (None: all) read one part alone."""
    chosen = None if layers is None else set(layers)
    mixers = [m for n, m in hybrid_mixers(model).items() if chosen is None or n in chosen]
    before: list[Reads] = [mixer.reads for mixer in mixers]
    try:
        for mixer in mixers:
            mixer.reads = reads
        yield
    finally:
        for mixer, old in zip(mixers, before, strict=True):
            mixer.reads = old
