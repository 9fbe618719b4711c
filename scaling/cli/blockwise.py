"""`linscale blockwise` runs block-wise attention transfers; `linscale plan` shows their costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linscale.options import AsJson, print_json
from linscale.si import si
from linscale.terminal import console, tell
from scaling.cli.options import Device as OnDevice
from scaling.system.words import duration, size

if TYPE_CHECKING:
    from scaling.linearization.blockwise.transfer_config import Blockwise
    from scaling.linearization.blockwise.transfer_plan import BlockwisePlan
    from scaling.system.devices import Device

app = typer.Typer()


@app.command(epilog="Example: linscale blockwise experiments/lolcats_large.py --toy")
def blockwise(
    file: Annotated[Path, typer.Argument(help="Experiment file: Python with blockwise().")],
    name: Annotated[str, typer.Option(help="Which of its transfers (default: the only one).")] = "",
    only: Annotated[
        str | None,
        typer.Option(help="One part: activations, the number of a group, or assemble."),
    ] = None,
    device: OnDevice = "",
    toy: Annotated[bool, typer.Option("--toy", help="The small variant, for a CPU.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder (default: blockwise/ and the transfer's name)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train LoLCATs' attentions in groups of layers, from the teacher's activations on disk.

    Or go on with it: what is finished is kept. With --only, the groups can be trained by jobs of
    their own, at the same time, once the activations are there; assemble comes last.
    """
    from linscale.errors import LinscaleError
    from scaling.linearization.blockwise.train_groups import run
    from scaling.record.pretrained import usable_device

    transfers = {transfer.name: transfer for transfer in load(file, toy)}
    known = name in transfers if name else len(transfers) == 1
    if not known:
        raise LinscaleError(f"--name {name!r}: {file} has {', '.join(transfers)}; choose one.")
    transfer = transfers[name or next(iter(transfers))]
    where = out or Path("blockwise") / transfer.name
    parts: list[str] = []

    def done(line: str) -> None:
        parts.append(line)
        tell(line)

    run(transfer, where, only=only, device=usable_device(device), report=done)
    if as_json:
        print_json({"transfer": transfer.name, "folder": str(where), "done": parts})


def load(file: Path, toy: bool) -> list[Blockwise]:
    """The transfers of an experiment file.

    Raises:
        LinscaleError: the file is missing, fails, or lists none.
        ConfigError: a transfer cannot work.
    """
    from linscale.errors import LinscaleError
    from scaling.config.experiment import call
    from scaling.linearization.blockwise.transfer_config import Blockwise

    transfers = call(file, "blockwise", toy)
    if not isinstance(transfers, list) or not transfers:
        raise LinscaleError(f"{file}: blockwise() must return a list of Blockwise, at least one.")
    if not all(isinstance(transfer, Blockwise) for transfer in transfers):
        raise LinscaleError(f"{file}: blockwise() must return a list of Blockwise.")
    return transfers


def show_plan(file: Path, toy: bool, device: Device, as_json: bool) -> None:
    """Print the costs of the transfers of an experiment file."""
    from scaling.linearization.blockwise.transfer_plan import plan

    plans = [plan(transfer, device) for transfer in load(file, toy)]
    if as_json:
        print_json([p.to_json() for p in plans])
        return
    for one in plans:
        console().print(describe(one, device), soft_wrap=True)


def describe(plan: BlockwisePlan, device: Device) -> str:
    """A plan in a few lines."""
    hours = (plan.activations_hours, plan.group_hours, plan.device_hours)
    cached, group, everything = (duration(3600 * value) for value in hours)
    share = 100 * plan.learning_parameters / plan.parameters
    weights, step = size(plan.weights_bytes), size(plan.step_bytes)
    return "\n".join(
        [
            f"{plan.name}: {si(plan.parameters)} parameters, {plan.layers} layers in "
            f"{plan.groups} groups of {plan.group_layers}; planned for {device.name}",
            f"  learning     {si(plan.learning_parameters)} parameters, {share:.2g} %; "
            f"{si(plan.tokens)} tokens, {plan.epochs} times, {plan.steps:,} steps",
            f"  disk         {size(plan.disk_bytes)}: the hidden states before {plan.groups} "
            f"groups, {size(plan.boundary_bytes)} each",
            f"  memory       {size(plan.memory_per_device)} on a device: {weights} frozen weights, "
            f"{step} for one layer's activations, the rest for what learns "
            f"({size(plan.whole_memory)} in one group)",
            f"  activations  {plan.activations_flops:.2e} FLOPs, {cached} of one device",
            f"  each group   {plan.group_flops:.2e} FLOPs, {group} of one "
            "device; groups do not wait for each other",
            f"  all          {plan.flops:.2e} FLOPs, {everything} of one device "
            f"at {device.efficiency:.0%} of its peak",
        ]
    )
