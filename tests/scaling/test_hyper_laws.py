"""Learning-rate and batch laws at the values that their authors print, and applied to runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from experiments.recipes import TOY_VOCAB, paper_recipe, toy_recipe
from models.accounting import non_embedding_parameters, train_flops_per_token
from models.config import ARCHS, ConfigError, paper_config, toy_config
from scaling.config import RunConfig
from scaling.devices import find_device
from scaling.hyper_laws import LAWS, batch_tokens, learning_rate, tuned
from scaling.plan import rung


@pytest.mark.parametrize(
    ("layers", "dim", "rate", "sequences"),
    [(30, 4096, 4.2e-4, 2304), (95, 8192, 3.2e-4, 4608)],
)
def test_deepseek_models_have_the_values_of_the_deepseek_law(
    layers: int, dim: int, rate: float, sequences: int
) -> None:
    """Table 2 of arXiv 2401.02954 (7B and 67B, 2T tokens, sequences of 4096), which rounds. FLOPs a
    token as there: 72 l d^2 + 12 l d T."""
    tokens, length = 2 * 10**12, 4096
    flops = (72 * layers * dim**2 + 12 * layers * dim * length) * tokens
    assert learning_rate("deepseek", 0, tokens, flops) == pytest.approx(rate, rel=0.03)
    assert batch_tokens("deepseek", tokens, flops) == pytest.approx(sequences * length, rel=0.11)


def test_step_law_by_hand() -> None:
    # N = 1e9, D = 1e11: 1.79 * 10^(-6.417 + 3.377); 0.58 * 10^6.281.
    assert learning_rate("step", 10**9, 10**11, 0) == pytest.approx(1.79 * 10**-3.04)
    assert batch_tokens("step", 10**11, 0) == pytest.approx(0.58 * 10**6.281)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_tuned_rung_is_planned(arch: Any, law: Any) -> None:
    plain = paper_recipe(f"{arch}-410M", "410M", paper_config(arch, "410M"))
    run = tuned(plain, law, multiple=16)
    tokens, length = run.budget.tokens, run.data.sequence_length
    row = rung(run, find_device("h200"))
    assert row.lr == run.optim.lr
    if law == "constant":
        assert run is plain
        return
    assert run.data.batch_sequences % 16 == 0
    flops = train_flops_per_token(run.model, length)
    blocks = (flops["total"] - flops["head"]) * tokens
    assert run.optim.lr == learning_rate(law, non_embedding_parameters(run.model), tokens, blocks)
    wanted = batch_tokens(law, tokens, blocks)
    assert abs(row.batch_tokens - wanted) <= 8 * length
    assert replace(run, optim=plain.optim, data=plain.data, parallel=plain.parallel) == plain


def toy(**parallel: int) -> RunConfig:
    model = toy_config("tnl", 32, vocab_size=TOY_VOCAB)
    run = toy_recipe("toy", "d32", model, tokens=4_000_000)
    return replace(run, parallel=replace(run.parallel, **parallel))


def test_batches_are_shared_evenly() -> None:
    run = tuned(toy(devices=2, micro_batch_sequences=4), "step")
    share = run.data.batch_sequences // 2
    assert run.data.batch_sequences % 2 == 0
    assert run.parallel.micro_batch_sequences is not None
    assert share % run.parallel.micro_batch_sequences == 0


def test_errors_name_the_choice() -> None:
    with pytest.raises(ConfigError, match="law='chinchilla': choose one of constant, deepseek, s"):
        tuned(toy(), "chinchilla")  # type: ignore[arg-type]
    scaled = replace(toy(), model=toy().model.replace(mup_base_dim=16))
    with pytest.raises(ConfigError, match="both set the learning rate by size"):
        tuned(scaled, "step")
