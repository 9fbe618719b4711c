"""Tensor names of Hugging Face's decoders, and where their rows stand here.

q, k and v are one matrix of ours; where theirs are fused too, whole tensors are taken over as they
lie. Rotary pairs are channels (c, c + K / 2) of a head here: the channels of families that pair
neighbours, or rotate a share of a head alone, come in another order (`channel_order`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from models.architectures.llama import key_value_heads, llama_options
from models.config import ModelConfig
from models.interop.families import Family
from models.interop.tensors import InteropError, Names, StoredTensor
from models.language_model import LanguageModel


class Slot(NamedTuple):
    """Where one tensor of a file is here."""

    parts: tuple[Tensor, ...]
    """Parameters, or rows of them, that the tensor's rows are, one after another."""
    order: Tensor | None = None
    """Row of the file for each row of the parts together; None: as they come."""

    def read(self, tensor: StoredTensor) -> None:
        """Fill the parts from the file."""
        if len(self.parts) == 1 and self.order is None:
            tensor.read_into(self.parts[0])
            return
        shape = (sum(len(part) for part in self.parts), *self.parts[0].shape[1:])
        if tensor.shape != shape:
            raise InteropError(
                f"{tensor.file}: tensor {tensor.name} has shape {list(tensor.shape)} where "
                f"config.json asks for {list(shape)}; the two do not belong together."
            )
        whole = tensor.read()
        first = 0
        for part in self.parts:
            rows = slice(first, first + len(part))
            part.detach().copy_(whole[rows] if self.order is None else whole[self.order[rows]])
            first += len(part)

    def written(self) -> Tensor:
        """The tensor of the file."""
        whole = self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)
        if self.order is None:
            return whole
        result = torch.empty_like(whole)
        result[self.order.to(whole.device)] = whole
        return result


def read(model: LanguageModel, family: Family, tensors: Iterable[StoredTensor]) -> Names:
    """Fill a model with a checkpoint's tensors.

    Returns:
        Names of tensors that were needed and did not come, and of those that came unasked.
    """
    found = slots(model, family)
    needed, unasked = set(found), set[str]()
    for tensor in tensors:
        if tensor.name in found:
            found[tensor.name].read(tensor)
            needed.discard(tensor.name)
        elif not _is_spare(tensor.name, model.config):
            unasked.add(tensor.name)
    return Names(missing=needed, unasked=unasked)


def _is_spare(name: str, config: ModelConfig) -> bool:
    """Tensors that say nothing new: stored frequencies, and the head where it is the embedding."""
    tied = name == "lm_head.weight" and config.tie_embeddings
    return tied or name.endswith("rotary_emb.inv_freq")


def channel_order(size: int, rotated: int, neighbours: bool) -> Tensor | None:
    """The file's channel for each of ours in a head of so many; None where they are the same."""
    pairs = torch.arange(rotated // 2)
    first, second = (2 * pairs, 2 * pairs + 1) if neighbours else (pairs, pairs + rotated // 2)
    rest = torch.arange(rotated, size).chunk(2) if rotated < size else (pairs[:0], pairs[:0])
    order = torch.cat((first, rest[0], second, rest[1]))
    return None if torch.equal(order, torch.arange(size)) else order


def slots(model: LanguageModel, family: Family) -> dict[str, Slot]:
    """Name in a checkpoint of the family -> where it is here."""
    config, size = model.config, model.config.head_dim
    heads, keys = config.heads, key_value_heads(config)
    order = channel_order(size, llama_options(config).rotated(size), family.neighbours)
    state = dict[str, Tensor](model.named_parameters())
    found = {
        "model.embed_tokens.weight": Slot((state.pop("embedding.weight"),)),
        "model.norm.weight": Slot((state.pop("norm.weight"),)),
    }
    if "head.weight" in state:
        found["lm_head.weight"] = Slot((state.pop("head.weight"),))
    gates: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        _, layer, rest = ours.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        prefix = f"model.layers.{layer}."
        if part == "mixer.qkv":
            rows = [heads * size, keys * size, keys * size]
            orders = [_rows(order, heads), _rows(order, keys), None]
            if "qkv_proj" in family.fused:
                fused = None if order is None else _joined(orders, rows)
                found[f"{prefix}self_attn.qkv_proj.{kind}"] = Slot((tensor,), fused)
                continue
            pieces = zip("qkv", tensor.detach().split(rows), orders, strict=True)
            for letter, piece, its in pieces:
                found[f"{prefix}self_attn.{letter}_proj.{kind}"] = Slot((piece,), its)
        elif part in ("mixer.query_norm", "mixer.key_norm"):
            name = "q_norm" if part == "mixer.query_norm" else "k_norm"
            found[f"{prefix}self_attn.{name}.{kind}"] = Slot(
                (tensor,), _rows(order, len(tensor) // size)
            )
        elif part in ("channel.gate", "channel.up") and "gate_up_proj" in family.fused:
            gates[ours] = tensor
            pair = [f"blocks.{layer}.channel.{name}.{kind}" for name in ("gate", "up")]
            if all(name in gates for name in pair):
                name = f"{prefix}mlp.gate_up_proj.{kind}"
                found[name] = Slot(tuple(gates[name] for name in pair))
        else:
            theirs = family.norm_names.get(part) or _PARTS[part]
            found[f"{prefix}{theirs}.{kind}"] = Slot((tensor,))
    return found


def _rows(order: Tensor | None, heads: int) -> Tensor | None:
    """The order of the channels of several heads."""
    if order is None:
        return None
    return (order + len(order) * torch.arange(heads)[:, None]).flatten()


def _joined(orders: list[Tensor | None], rows: list[int]) -> Tensor:
    """The order of several tensors one after another."""
    starts = [0, rows[0], rows[0] + rows[1]]
    each = [torch.arange(n) if o is None else o for o, n in zip(orders, rows, strict=True)]
    return torch.cat([order + start for order, start in zip(each, starts, strict=True)])


_PARTS = {
    "mixer.out": "self_attn.o_proj",
    "channel.up": "mlp.up_proj",
    "channel.gate": "mlp.gate_proj",
    "channel.down": "mlp.down_proj",
}
