"""linearization.json in a run's directory: what the surgery cost and what the stages gave back.

    teacher      name, path; tokens, FLOPs and SHA-256 where it is a run of ours
    parameters   total, and how many learn while layers are aligned (`transfer`) and after it
    tokens       of the aligning stages (`transfer`), and of the whole path
    validation   loss of the teacher, of the model after surgery, and after each aligning stage:
                 mean, standard deviation and number of the run's fixed validation blocks. With
                 fitted outputs also before these (`weights`). The end of the run is in
                 milestones.jsonl.
    layers       validation loss of each layer in an aligning stage, before and after
    costs        what each linear layer costs, in a run that was made to choose softmax layers

Written as a whole at the start, and once more at the end of each aligning stage; both can be
repeated, so that a run that was killed in between writes the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scaling.config.run import RunConfig
from scaling.plan.costs import stages
from scaling.system.files import write_json

FILE = "linearization.json"
EVENTS = {
    "teacher": "teacher",
    "weights": "before fitting outputs",
    "surgery": "after surgery",
    "matrices": "after mixing matrices",
    "transfer": "after stage 1",
    "hidden": "after hidden states",
}
"""Names in `validation` in the order of events, as people read them."""
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

    counted = stages(config)
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
            "validation": {},
            "layers": {},
        },
    )


def note(run_dir: Path, part: str, name: str, value: object) -> None:
    """Put a value into a part of the file, in the place of an earlier one."""
    content = read(run_dir)
    content.setdefault(part, {})[name] = value
    write_json(run_dir / FILE, content)


def read(run_dir: Path) -> dict[str, Any]:
    """The file; {} where the run has none."""
    path = run_dir / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def losses(run_dir: Path) -> list[dict[str, Any]]:
    """Validation losses in the order of events: what, tokens, loss, recovered share of the gap.

    The gap is that between the teacher and the model right after surgery.
    """
    content, milestones = read(run_dir), run_dir / "milestones.jsonl"
    found = content["validation"]
    rows: list[dict[str, Any]] = []
    for name, what in EVENTS.items():
        if name in found:
            tokens = found[name].get("tokens", 0)
            if name == "transfer":  # which older records do not say
                tokens = tokens or content["tokens"]["transfer"]
            rows.append({"what": what, "tokens": tokens, "loss": found[name]["loss"]})
    lines = milestones.read_text(encoding="utf-8").splitlines() if milestones.is_file() else []
    for line in map(json.loads, lines):
        rows.append({"what": "milestone", "tokens": line["tokens"], "loss": line["val_loss"]})
    gap = found["surgery"]["loss"] - found["teacher"]["loss"] if "surgery" in found else 0.0
    for row in rows:
        known = gap > 0 and row["tokens"] > 0
        row["recovered"] = (found["surgery"]["loss"] - row["loss"]) / gap if known else None
    return rows


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
