"""Learning rate and batch size by published laws, for the runs of an experiment file.

    from scaling.config.hyper_laws import apply_law

    def runs():
        return [apply_law(run, "deepseek") for run in ladder()]

`linscale plan FILE --law deepseek` and `linscale run FILE --law deepseek` do it for any file.

With C the training FLOPs, N the parameters without embedding and head, D the tokens of a run:

| law        | learning rate         | batch in tokens   | source                           |
|------------|-----------------------|-------------------|----------------------------------|
| `constant` | as the run has it     | as the run has it | arXiv 2406.16690 (3e-4, 4M)      |
| `deepseek` | 0.3118 C^-0.1250      | 0.2920 C^0.3271   | arXiv 2401.02954, section 3.1    |
| `step`     | 1.79 N^-0.713 D^0.307 | 0.58 D^0.571      | arXiv 2503.04715 (“Step Law”)    |

C of `deepseek` counts the FLOPs of the blocks alone, attention included, as its authors do. Both
laws were fitted on softmax transformers in the usual parametrisation: they replace muP
(`models.width`), and for linear mixers they are a guess to be checked. The step law does not come
out of the table of runs that was published with it: a start for a sweep.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NoReturn, get_args

from models.accounting import non_embedding_parameters, train_flops_per_token
from models.config import ConfigError
from scaling.config.run import RunConfig

Law = Literal["constant", "deepseek", "step"]
LAWS: tuple[Law, ...] = get_args(Law)


def known_law(name: str) -> Law:
    """The law of this name.

    Raises:
        ConfigError: there is none.
    """
    for law in LAWS:
        if law == name:
            return law
    _refuse(name)


def learning_rate(law: Law, parameters: int, tokens: int, flops: float) -> float:
    """Peak learning rate.

    Args:
        law: `deepseek` or `step`; `constant` has no rate of its own.
        parameters: N.
        tokens: D.
        flops: C.
    """
    if law == "deepseek":
        return 0.3118 * flops**-0.1250
    if law == "step":
        return 1.79 * parameters**-0.713 * tokens**0.307
    _refuse(law)


def batch_tokens(law: Law, tokens: int, flops: float) -> float:
    """Batch in tokens; arguments as `learning_rate`."""
    if law == "deepseek":
        return 0.2920 * flops**0.3271
    if law == "step":
        return 0.58 * tokens**0.571
    _refuse(law)


def apply_law(run: RunConfig, law: Law, multiple: int = 1) -> RunConfig:
    """The run with learning rate and batch of a law, for its own model and budget.

    Micro-batches that no longer divide a device's share of the batch are made smaller.

    Args:
        run: any run.
        law: one of `LAWS`.
        multiple: the batch is rounded to a multiple of so many sequences for each of the run's
            devices; give the devices that a cluster will have.

    Raises:
        ConfigError: an unknown law; a run that starts from a teacher; a run with muP, which sets
            the rate by width already; or a budget too small for the law's batch.
    """
    if known_law(law) == "constant":
        return run
    if run.linearize.teacher:
        raise ConfigError(
            f"law={law!r} with linearize.teacher={run.linearize.teacher!r}: the laws are those of "
            "training from scratch; leave the law out."
        )
    if run.model.mup_base_dim is not None:
        raise ConfigError(
            f"law={law!r} with model.mup_base_dim={run.model.mup_base_dim}: both set the learning "
            "rate by size; choose one."
        )
    tokens, length = run.budget.tokens, run.data.sequence_length
    terms = train_flops_per_token(run.model, length)
    flops = (terms["total"] - terms["head"]) * tokens
    rate = learning_rate(law, non_embedding_parameters(run.model), tokens, flops)
    unit = multiple * run.parallel.world_size
    sequences = max(1, round(batch_tokens(law, tokens, flops) / length / unit)) * unit
    share, micro = sequences // run.parallel.world_size, run.parallel.micro_batch_sequences
    if micro is not None:
        micro = max(n for n in range(1, min(micro, share) + 1) if share % n == 0)
    return replace(
        run,
        optim=replace(run.optim, lr=rate),
        data=replace(run.data, batch_sequences=sequences),
        parallel=replace(run.parallel, micro_batch_sequences=micro),
    )


def _refuse(law: str) -> NoReturn:
    raise ConfigError(f"law={law!r}: choose one of {', '.join(LAWS)}.")
