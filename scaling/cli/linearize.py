"""`linscale linearize`: a transformer without softmax, from one command.

A run like any other: the same command goes on with it after a kill, `linscale status` shows it, and
its checkpoints can be generated from, evaluated and exported.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from linscale.errors import LinscaleError
from linscale.options import AsJson, print_json
from linscale.terminal import say, tell
from models.architecture import find
from models.config import ConfigError, ModelConfig
from models.fields import hints
from models.linearize.options import Linearized, linearized, linearized_config
from scaling.cli.data import AcceptDataChange
from scaling.cli.linearization_tables import show_linearization
from scaling.config.linearize import STARTED

if TYPE_CHECKING:
    from scaling.config.run import DataConfig, RunConfig

app = typer.Typer()

ALPACA = "instructions:hf:yahma/alpaca-cleaned"


@app.command(
    epilog="Example: linscale linearize runs/quickstart/RUN --method lolcats --tokens 4e5 "
    "--window 16 optim.lr=1e-3"
)
def linearize(
    model: Annotated[
        Path,
        typer.Argument(
            help="The transformer: a run's directory, one of its checkpoints, or a directory in "
            "Hugging Face's layout."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Dotted overrides, such as optim.lr=1e-3.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="supra or lolcats; or tnl, hgrn2, cosformer2, from its weights.")
    ] = "supra",
    tokens: Annotated[
        float | None, typer.Option(help="Budget of all stages (default: as published).")
    ] = None,
    transfer_tokens: Annotated[
        float | None,
        typer.Option(help="LoLCATs: how many of the tokens its first stage takes (default: half)."),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(
            help="Text, as data.corpus, or instructions:PATH.jsonl (default: the teacher's; for "
            "LoLCATs on a foreign model Alpaca)."
        ),
    ] = None,
    feature_map: Annotated[
        str | None, typer.Option(help="supra, t2r, hedgehog, relu, elu, taylor or identity.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="LoLCATs: softmax window.")] = None,
    arrangement: Annotated[
        str | None, typer.Option(help="LoLCATs: terraced or sliding window.")
    ] = None,
    no_decay: Annotated[
        bool, typer.Option("--no-decay", help="SUPRA: heads without a decay.")
    ] = False,
    no_norm: Annotated[
        bool, typer.Option("--no-norm", help="SUPRA: no norm after attention.")
    ] = False,
    keep_softmax: Annotated[
        str, typer.Option(help="Layers that keep their softmax, such as 0,15.")
    ] = "",
    keep: Annotated[
        int | None, typer.Option(help="How many layers keep their softmax; --keep-by says which.")
    ] = None,
    keep_by: Annotated[
        str,
        typer.Option(
            help="cost: whose loss rises most without it; kl: whose outputs change most (both "
            "measured first, for LoLCATs by a run of attention transfer); position: evenly "
            "spread."
        ),
    ] = "cost",
    tasks: Annotated[
        str, typer.Option(help="Tasks of linscale evaluate for teacher and result, with commas.")
    ] = "",
    data: Annotated[
        Path | None, typer.Option(help="With --tasks: folder of local task files.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="With --tasks: only this many questions, from the first on.")
    ] = None,
    no_controls: Annotated[
        bool,
        typer.Option(
            "--no-controls",
            help="Do not train teacher and window as the student is trained, to compare.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seeds new weights and data order.")] = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Sweep directory.")] = Path(
        "runs/linearize"
    ),
    accept_data_change: AcceptDataChange = False,
    as_json: AsJson = False,
) -> None:
    """Linearize a transformer by SUPRA or LoLCATs, with the published recipe where none is given.

    Prints how much is trained, and the validation loss of the teacher, after surgery and after
    each stage; with --tasks also the results of teacher and student on them. Other stages are
    overrides (docs/linearize.md): linearize.matrix_tokens, hidden_tokens, temperature,
    fit_sequences. The same command goes on with a run that was stopped.
    """
    from models.interop.gguf import folder_of
    from scaling.config.experiment import Experiment
    from scaling.linearization.controls import run_controls
    from scaling.linearization.kept_layers import keep_layers
    from scaling.linearization.tasks_beside import before_and_after, request
    from scaling.linearization.teacher import teacher_config
    from scaling.sweep.launch import launch

    options: dict[str, Any] = {
        "feature_map": feature_map,
        "window": window,
        "arrangement": arrangement,
        "norm": False if no_norm else None,
        "softmax_layers": _layers(keep_softmax),
    }
    config = _config(
        _relative(folder_of(model)),
        method,
        {name: value for name, value in options.items() if value is not None},
        corpus=corpus,
        overrides=overrides or [],
        tokens=tokens,
        no_decay=no_decay,
        seed=seed,
    )
    asked = request(tasks, data, limit) if tasks else None
    transfer = [] if transfer_tokens is None else [f"linearize.transfer_tokens={transfer_tokens}"]
    config = config.override([*transfer, *(overrides or [])])
    command = f"linscale linearize {model} --method {method}"
    if keep is not None:
        config = keep_layers(
            config,
            out,
            keep,
            keep_by,
            command,
            accept_data_change=accept_data_change,
            say=say,
        )
    experiment = Experiment(name=out.name, path=Path(command), text=command, runs=[config])
    if not launch(experiment, out, launcher="inline", accept_data_change=accept_data_change):
        raise typer.Exit(1)
    if not no_controls and linearized(teacher_config(config.linearize.teacher)) is None:
        run_controls(config, out, command, accept_data_change=accept_data_change)
    results = []
    if asked is not None:
        results = before_and_after(config, out / config.run_id, asked, say)
    show_linearization(out / config.run_id, results, as_json)


@app.command(
    epilog="Example: linscale linearize-report runs/linearize_loop --from-scratch runs/quickstart"
)
def linearize_report(
    directory: Annotated[Path, typer.Argument(help="Sweep with linearized runs.")],
    from_scratch: Annotated[
        Path | None,
        typer.Option(help="Sweep of models from scratch on the same data, for the frontier."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Default: report in the sweep, or beside its zip."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report what linearization recovers, over tokens, size and compute, with controls."""
    from analysis.io.sweep_files import report_folder
    from analysis.report.linearization_report import write

    path = write(directory, out or report_folder(directory), scratch_dir=from_scratch)
    tell(f"wrote {path}")
    if as_json:
        print_json({"page": str(path)})


def _config(
    teacher: str,
    method: str,
    options: dict[str, Any],
    *,
    corpus: str | None,
    overrides: list[str],
    tokens: float | None,
    no_decay: bool,
    seed: int,
) -> RunConfig:
    """The published recipe of a method for a teacher; of the overrides, those of the data."""
    from scaling.linearization import recipes
    from scaling.linearization.teacher import teacher_config

    if method not in (*recipes.METHODS, *STARTED) and not _is_started(method):
        raise ConfigError(
            f"method={method!r}: choose one of {', '.join((*recipes.METHODS, *STARTED))}, or your "
            "own architecture that starts from attention weights."
        )
    theirs = teacher_config(teacher)
    student = _student(theirs, method, options, no_decay)
    data = _override_data(_data(teacher, method, corpus), overrides)
    name = f"{method}-{Path(teacher).stem if teacher.endswith('.pt') else Path(teacher).name}"
    recipe = recipes.lolcats_run if method == "lolcats" else recipes.supra_run
    budget: dict[str, Any] = {} if tokens is None else {"tokens": int(tokens)}
    run = recipe(name[:64], teacher, student, data, seed=seed, parallel=_parallel(), **budget)
    if linearized(theirs) is None:
        return run
    return replace(run, linearize=replace(run.linearize, transfer_tokens=0))  # was done before


def _student(
    teacher: ModelConfig, method: str, options: dict[str, Any], no_decay: bool
) -> ModelConfig:
    slopes: dict[str, Any] = {"decay_slopes": "none"} if no_decay else {}
    if no_decay and method not in ("supra", "tnl"):
        raise ConfigError(f"no_decay with method={method!r}: only supra and tnl have fixed decays.")
    if linearized(teacher) is not None:
        if method != teacher.arch or options or no_decay:
            raise ConfigError(
                f"method={method!r}: the model is linearized already; go on with it by --method "
                f"{teacher.arch}, without options of the attention."
            )
        return teacher
    if _is_started(method):
        from models.linearize.initialise import gated_config

        keep = options.get("softmax_layers", ())
        if wrong := [name for name in options if name != "softmax_layers"]:
            raise ConfigError(f"{wrong[0]}={options[wrong[0]]!r}: {method} has no such option.")
        return gated_config(teacher, method, keep=keep, **slopes)
    part = find(method).options
    assert issubclass(part, Linearized)
    if wrong := [name for name in options if name not in hints(part)]:
        raise ConfigError(f"{wrong[0]}={options[wrong[0]]!r}: {method} has no such option.")
    return linearized_config(teacher, part(**options, **slopes))


def _is_started(method: str) -> bool:
    """Whether a method is a linear model that starts from attention weights."""
    try:
        return find(method).starts_from == "attention"
    except ConfigError:
        return False


def _data(teacher: str, method: str, corpus: str | None) -> DataConfig:
    """The teacher's text and shape of a batch, or the published shape for a foreign model."""
    from scaling.config.run import DataConfig
    from scaling.linearization import recipes
    from scaling.record.load_model import load_model
    from scaling.record.pretrained import find_checkpoint

    checkpoint = find_checkpoint(teacher)
    if checkpoint is not None:
        data = load_model(checkpoint)[1].data
        return data if corpus is None else replace(data, corpus=corpus)
    if corpus is None and method != "lolcats":
        raise LinscaleError(
            f"{teacher}: a foreign model says nothing of the text it was trained on; give some "
            "with --corpus, such as --corpus hf:tiiuae/falcon-refinedweb or text:'DIR/*.txt'."
        )
    length, per_step = (1024, recipes.LOLCATS_TOKENS_PER_STEP) if method == "lolcats" else (
        2048, recipes.SUPRA_TOKENS_PER_STEP)  # fmt: skip
    return DataConfig(
        corpus=corpus or ALPACA,
        tokenizer=f"file:{teacher}/tokenizer.json",
        sequence_length=length,
        batch_sequences=per_step // length,
    )


def _override_data(data: DataConfig, overrides: list[str]) -> DataConfig:
    """With the overrides of the data: the recipe's warm-up and budget depend on the batch."""
    from scaling.config.fields import parse

    known, changes = hints(type(data)), {}
    for override in overrides:
        path, _, text = override.partition("=")
        name = path.strip().removeprefix("data.")
        if path.strip() == f"data.{name}" and name in known:
            changes[name] = parse(known[name], text.strip(), path.strip())
    return replace(data, **changes)


def _parallel() -> Any:
    """A GPU takes the recipe's devices; without one the run is for this machine's CPU."""
    import torch

    from scaling.config.run import ParallelConfig

    return None if torch.cuda.is_available() else ParallelConfig(accelerator="cpu")


def _layers(text: str) -> tuple[int, ...] | None:
    try:
        return tuple(int(part) for part in text.split(",")) if text else None
    except ValueError:
        raise ConfigError(f"keep_softmax={text!r}: give layers from 0 on, such as 0,15.") from None


def _relative(path: Path) -> str:
    """A path below the working directory relative to it: it is part of the run's identity."""
    inside = path.is_absolute() and path.is_relative_to(Path.cwd())
    return os.path.relpath(path) if inside else str(path)
