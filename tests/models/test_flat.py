"""Records from before options nested: read as they are, under the names they had."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis.io.sweep_files import names_of_runs, open_sweep
from models import flat
from models.architecture import BUILT_IN
from models.architectures.llama import LlamaOptions, RopeScaling, llama_options
from models.architectures.lolcats import LoLCATs
from models.architectures.tnl import TNLOptions
from models.config import ConfigError, ModelConfig, toy_config
from scaling.config.run import RunConfig

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
OLD: dict[str, Any] = {
    "arch": "lolcats", "vocab_size": 256, "dim": 32, "layers": 2, "heads": 4, "glu_dim": 96,
    "tie_embeddings": True, "norm_eps": 1e-06, "rope_base": 10000.0, "gate_rank": None,
    "decay_slopes": "alibi", "learn_decay": False, "tnl_lrpe": "none", "lrpe_learned": True,
    "tpe": True, "init_std": 0.113137, "kv_heads": None, "head_size": None, "rope_scaling": None,
    "window": None, "qkv_bias": False, "out_bias": False, "glu_bias": False,
    "glu_activation": None, "mup_base_dim": None, "supra": None,
    "lolcats": {
        "feature_map": "hedgehog", "feature_size": None, "softmax_layers": [], "window": 4,
        "arrangement": "terraced", "affine": False, "window_factor": 0.1,
    },
}  # fmt: skip
"""The model of a run of experiments/linearize_loop, as its config.json has it."""


@pytest.mark.parametrize("sweep", ["quickstart", "linearize_loop"])
def test_kept_records_have_the_names_they_had(sweep: str) -> None:
    folder = open_sweep(RESULTS / sweep)
    names = names_of_runs(folder)
    assert names
    for name in names:
        stored = json.loads((folder / name / "config.json").read_bytes())
        values = {k: v for k, v in stored.items() if k not in ("schema", "run_id", "sweep")}
        config = RunConfig.from_json(values)
        assert config.run_id == stored["run_id"] == name
        assert RunConfig.from_json(config.to_json()) == config


def test_flat_options_find_their_places() -> None:
    config = ModelConfig.from_json(OLD)
    assert config.options_as(LoLCATs).window == 4
    scaling = {"kind": "linear", "factor": 2.0}
    old = OLD | {"kv_heads": 2, "window": 9, "rope_scaling": scaling, "rope_base": 5000}
    options = ModelConfig.from_json(old).options_as(LoLCATs)
    own = LlamaOptions(
        kv_heads=2, window=9, rope_base=5000.0, rope_scaling=RopeScaling(kind="linear", factor=2)
    )
    assert (options.window, options.llama) == (4, own)
    tnl = OLD | {"arch": "tnl", "lolcats": None, "tnl_lrpe": "first", "gate_rank": 3}
    assert ModelConfig.from_json(tnl).options == TNLOptions(lrpe="first", gate_rank=3)
    llama = {k: v for k, v in OLD.items() if k not in ("lolcats", "supra", "kv_heads")}
    assert llama_options(ModelConfig.from_json(llama | {"arch": "llama"})) == LlamaOptions()


def test_flat_values_that_were_refused_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.kv_heads=2 with model.arch='tnl'"):
        ModelConfig.from_json(OLD | {"arch": "tnl", "lolcats": None, "kv_heads": 2})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay_slops": "alibi"}, "model.decay_slops: no such field"),
        ({"rope_base": "x"}, "model.options.llama.rope_base='x': must be a number."),
        ({"lolcats": 3}, "model.lolcats=3: must be a table of fields."),
        ({"lolcats": {"windw": 4}}, "model.options.windw: no such field; did you mean"),
        ({"lolcats": {"llama": 3}}, "model.options.llama=3: must be a table of fields."),
        ({"arch": "dim", "lolcats": None}, "model.arch='dim': no such architecture."),
        ({"layers": 10**400}, "must be a whole number from 1 to 10,000."),
        ({"norm_eps": 10**400}, "must be a number."),
        ({"file": 3}, "model.file=3: must be text or none."),
    ],
)
def test_bad_flat_records_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        ModelConfig.from_json(OLD | values)


@pytest.mark.parametrize("values", [None, 3, "x", [OLD]])
def test_what_is_no_record_is_refused(values: Any) -> None:
    for read in (ModelConfig.from_json, RunConfig.from_json):
        with pytest.raises(ConfigError, match="must be a table of fields"):
            read(values)


LATER = ("gla", "mamba2", "gated_deltanet", "kda")
"""Architectures that never had the old layout."""


@pytest.mark.parametrize("arch", BUILT_IN)
def test_the_settings_of_exports_are_the_old_layout(arch: str) -> None:
    """The code in exports of any age reads them."""
    config = toy_config(arch, 32, vocab_size=61)
    settings = flat.settings(config)
    assert set(settings) >= set(config.to_json() if arch in LATER else OLD)
    assert ModelConfig.from_json(settings) == config


@pytest.mark.parametrize(
    ("arch", "name", "message"),
    [
        ("tnl", "model.decay_slopes=linear", "is now model.options.decay_slopes."),
        ("tnl", "model.tnl_lrpe=all", "is now model.options.lrpe."),
        ("supra", "model.window=8", "is now model.options.llama.window."),
        ("lolcats", "model.lolcats.window=8", "is now model.options.window, with model.arch=lol"),
        ("llama", "model.rope_scaling.factor=2", "is now model.options.rope_scaling.factor."),
        ("llama", "model.decay_slopes=none", "llama has no such option; tnl, supra have it"),
    ],
)
def test_an_old_name_says_the_new_one(arch: str, name: str, message: str) -> None:
    values = {"name": "x", "model": toy_config(arch, 32, vocab_size=61).to_json(),
              "budget": {"tokens": 1_000_000}}  # fmt: skip
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        RunConfig.from_json(values).override([name])
