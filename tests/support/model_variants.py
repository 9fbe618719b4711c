"""Variants of a model for parametrised tests."""

from __future__ import annotations

import sys
import types
from dataclasses import fields, replace
from typing import Any

import pytest

from models.architecture import Architecture, Options
from models.architectures.llama import LlamaBased
from models.config import ModelConfig


def vary(config: ModelConfig, **changes: Any) -> ModelConfig:
    """The model with other fields or options, whichever a name is one of; for models based on
    LLaMA, with options of the transformer too. `options` replaces the options first."""
    arch, options = changes.pop("arch", config.arch), changes.pop("options", Options())
    if arch != config.arch:
        config = config.replace(arch=arch, options=options)
    options = config.options if type(options) is Options else options
    own = {f.name for f in fields(ModelConfig)}
    model = {name: value for name, value in changes.items() if name in own}
    rest = {name: value for name, value in changes.items() if name not in own}
    mine = {name: rest.pop(name) for name in list(rest) if hasattr(options, name)}
    if isinstance(options, LlamaBased):
        options = replace(options, llama=replace(options.llama, **rest))
    else:
        assert not rest, rest
    return config.replace(**model, options=replace(options, **mine))


def install(patch: pytest.MonkeyPatch, name: str, architecture: Architecture) -> None:
    """Make a module with this architecture for the time of a test."""
    module = types.ModuleType(name)
    module.__dict__["ARCHITECTURE"] = architecture
    patch.setitem(sys.modules, name, module)
