"""linearization.json in a run's directory: what the surgery cost and what the stages gave back.

    teacher      name, path, context (tokens that it can take in); tokens, FLOPs and SHA-256 where
                 it is a run of ours
    parameters   total, and how many learn while layers are aligned (`transfer`) and after it
    tokens       of the aligning stages (`transfer`), and of the whole path
    validation   loss of the teacher, of the model after surgery, and after each aligning stage:
                 mean, standard deviation and number of the run's fixed validation blocks. With
                 fitted outputs also before these (`weights`). The end of the run is in
                 milestones.jsonl.
    baselines    windows alone, untrained (`scaling.linearization.baselines`): window, arrangement,
                 sinks, bytes of state, and the same three numbers
    state_bytes  of teacher and student: one sequence as long as the run's
    parts        at each milestone (its tokens): loss with the linear part off and with the window
                 off, in all layers and in each; difference to the student's and its standard error
    controls     runs of teacher and window with the same training as the student's (their ids,
                 tokens and losses)
    layers       validation loss of each layer in an aligning stage, before and after
    costs, divergences   what each linear layer costs, in a run that was made to choose softmax
                 layers: nats of the text's loss, or of divergence from the teacher

Written as a whole at the start, and once more at the end of each aligning stage; both can be
repeated, so that a run that was killed in between writes the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from linscale.recovery import recovered, reference, zero_of
from models.architectures.llama import LlamaBased
from models.architectures.lolcats import LoLCATs
from scaling.config.run import RunConfig
from scaling.linearization.baselines import Baseline, held_bytes
from scaling.plan.costs import stages
from scaling.record.head import read_head
from scaling.record.pretrained import LINEARIZATION
from scaling.system.files import write_json

FILE = LINEARIZATION
EVENTS = {
    "teacher": "teacher",
    "softmax": "before it was linearized",
    "weights": "before fitting outputs",
    "surgery": "after surgery",
    "matrices": "after mixing matrices",
    "transfer": "after stage 1",
    "hidden": "after hidden states",
}
"""Names in `validation` in the order of events, as people read them."""
WINDOWS = {
    "window": "window of {window}",
    "window + sink": "window of {window} + sink",
    "equal window": "equal state: window of {window}",
    "equal window + sink": "equal state: window of {window} + sink",
}
"""Names in `baselines` as people read them."""
CONTROLS = {
    "teacher": "teacher, trained alike",
    "window": "window alone, trained alike",
    "equal window": "equal state + sink, trained alike",
}
"""Names in `controls` as people read them."""
SUPRA_SHARE = 0.05
"""Share of the pretraining tokens that SUPRA uses (arXiv 2405.06640, abstract)."""
LOLCATS_PARAMETERS, LOLCATS_TOKENS = 0.002, 0.004
"""Shares of earlier methods' trained parameters and tokens that LoLCATs uses (arXiv 2410.10254,
abstract): 40M tokens."""


def begin(run_dir: Path, config: RunConfig, teacher: dict[str, Any]) -> None:
    """Write what is known before training.

    Args:
        run_dir: directory of the run.
        config: the run.
        teacher: `name`, and what is known of its cost.
    """
    from models.accounting import parameters

    counted, options = stages(config), config.model.options
    llama = options.llama if isinstance(options, LlamaBased) else None
    softmax = None if llama is None else config.model.replace(arch="llama", options=llama)
    write_json(
        run_dir / FILE,
        {
            "schema": 1,
            "teacher": {"path": config.linearize.teacher, **teacher},
            "parameters": {
                "total": sum(parameters(config.model).values()),
                "transfer": counted["transfer_parameters"],
                "after": counted["parameters"],
            },
            "tokens": {
                "transfer": counted["transfer_tokens"],
                "path": config.steps * config.tokens_per_step,
            },
            "counts_from": zero_of(config.model.arch),
            "sinks": config.model.options.sink_tokens
            if isinstance(config.model.options, LoLCATs)
            else 0,
            "state_bytes": {
                "student": held_bytes(config.model, config),
                **({} if softmax is None else {"teacher": held_bytes(softmax, config)}),
            },
            "validation": {},
            "baselines": {},
            "layers": {},
        },
    )


def note(run_dir: Path, part: str, name: str, value: object) -> None:
    """Put a value into a part of the file, in the place of an earlier one."""
    content = read(run_dir)
    content.setdefault(part, {})[name] = value
    write_json(run_dir / FILE, content)


def put(run_dir: Path, part: str, values: dict[str, Any]) -> None:
    """Write a whole part of the file, in the place of an earlier one."""
    write_json(run_dir / FILE, read(run_dir) | {part: values})


def read(run_dir: Path) -> dict[str, Any]:
    """The file; {} where the run has none."""
    path = run_dir / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """Validation losses in the order of events.

    Each: what, tokens, loss, state_bytes, `recovered` beyond the zero that the record counts from
    (`linscale.recovery`), and `of_surgery`, the share of the gap that surgery opened. The
    shares are None in rows that are no stage of the student.
    """
    content = read(run_dir)
    arch = read_head(run_dir).run_config().model.arch
    known, size = reference(content, arch), content.get("state_bytes", {})
    rows: list[dict[str, Any]] = []

    def add(what: str, tokens: int, loss: float, state: int | None, shares: bool = True) -> None:
        of = {
            name: recovered(loss, known[zero], known["teacher"]) if shares else None
            for name, zero in (("recovered", "zero"), ("of_surgery", "surgery"))
        }
        rows.append({"what": what, "tokens": tokens, "loss": loss, "state_bytes": state, **of})

    found = content["validation"]
    for name in (n for n in ("teacher", "softmax") if n in found):
        add(EVENTS[name], 0, found[name]["loss"], size.get("teacher"), False)
    for name, control in content.get("controls", {}).items():
        add(CONTROLS[name], control["tokens"], control["loss"], control["state_bytes"])
    for name, entry in content.get("baselines", {}).items():
        add(WINDOWS[name].format(**entry), 0, entry["loss"], entry["state_bytes"])
    for name in (n for n in EVENTS if n in found and n not in ("teacher", "softmax")):
        tokens = found[name].get("tokens", 0)
        if name == "transfer":  # which older records do not say
            tokens = tokens or content["tokens"]["transfer"]
        add(EVENTS[name], tokens, found[name]["loss"], size.get("student"), tokens > 0)
    for line in _milestones(run_dir):
        add("milestone", line["tokens"], line["val_loss"], size.get("student"))
        parts = content.get("parts", {}).get(str(line["tokens"]), {})
        for part in (p for p in ("linear off", "window off") if p in parts):
            add(f" {part}", line["tokens"], parts[part]["loss"], None)
    return rows


def last_milestone(run_dir: Path) -> dict[str, Any]:
    """The line of milestones.jsonl with most tokens."""
    return max(_milestones(run_dir), key=lambda line: line["tokens"])


def cost(run_dir: Path) -> dict[str, Any]:
    """What a run has cost: tokens of all stages, their training FLOPs (`exact`), and device hours.

    Device hours are the measured time of training and validation, times the devices.
    """
    last = last_milestone(run_dir)
    parallel = read_head(run_dir).run_config().parallel
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    wall = max(json.loads(line)["wall"] for line in lines)
    hours = wall * parallel.world_size / 3600
    return {"tokens": last["tokens"], "flops": last["flops"], "device_hours": hours}


def _milestones(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "milestones.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def window_entry(baseline: Baseline) -> dict[str, Any]:
    """What the record says of a window alone, beside its loss."""
    options = baseline.options
    names = ("window", "arrangement", "sink_tokens")
    return {n: getattr(options, n) for n in names} | {"state_bytes": baseline.state_bytes}


def describe(content: dict[str, Any]) -> list[str]:
    """Counts against the papers', in sentences for people."""
    total, tokens = content["parameters"]["total"], content["tokens"]
    lines: list[str] = []
    if first := content["parameters"]["transfer"]:
        lines.append(
            f"stage 1 trains {first:,} of {total:,} parameters ({first / total:.2%}) on "
            f"{tokens['transfer']:,} tokens"
        )
    if rest := tokens["path"] - tokens["transfer"]:
        after = content["parameters"]["after"]
        name = "stage 2" if first else "the run"
        lines.append(f"{name} trains {after:,} parameters ({after / total:.2%}) on {rest:,} tokens")
    if pretrained := content["teacher"].get("tokens"):
        lines.append(
            f"{tokens['path']:,} tokens are {tokens['path'] / pretrained:.2%} of the teacher's "
            f"{pretrained:,}"
        )
    lines.append(
        f"published: SUPRA trains all parameters on about {SUPRA_SHARE:.0%} of the pretraining "
        f"tokens; LoLCATs {LOLCATS_PARAMETERS:.1%} of the parameters on {LOLCATS_TOKENS:.1%} of "
        "the tokens of earlier methods (40M)"
    )
    return lines
