"""A model's configuration as JSON: read older layouts, carry options to another architecture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from models import flat, layer_pattern
from models.architecture import find, find_recorded
from models.errors import ConfigError
from models.fields import build, check, hints_for, not_a_table


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """A model's JSON as `models.fields.build` takes it: flat records get `options`, and the files
    of architectures go, which are for messages only.

    Raises:
        ConfigError: there is something else than a table of fields, or an architecture is not found
            here.
    """
    if not isinstance(values, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise not_a_table("model", values)
    table = dict(values)
    file, arch = check(str | None, table.pop("file", None), "model.file"), table.get("arch")
    if file is not None and isinstance(arch, str):
        find_recorded(arch, file)
    others = table.pop("files", {})
    if not isinstance(others, Mapping):
        raise not_a_table("model.files", others)
    for name, path in others.items():
        find_recorded(name, check(str, path, f"model.files.{name}"))
    return flat.nest(table)


def carried(values: dict[str, Any], arch: str) -> dict[str, Any]:
    """A model's JSON for another architecture: options that were set are kept where it has them
    too; those that stand at their default give way to its own.

    Raises:
        ConfigError: an option that was set has no place in the other architecture.
    """
    known = hints_for(find(arch).options, {})
    before = json.loads(json.dumps(asdict(find(values["arch"]).options())))
    own: dict[str, Any] = values.get("options", {})
    for name, value in own.items():
        if name not in known and value != before[name]:
            raise ConfigError(
                f"model.options.{name}={value!r} with model.arch={arch!r}: only "
                f"{values['arch']} has this option; leave it out."
            )
    kept = {n: value for n, value in own.items() if n in known and value != before[n]}
    moved = values | {"arch": arch, "options": kept}
    if mixers := values.get("mixers"):  # a pattern is written from the base's options
        old = build(find(values["arch"]).options, own, "model.options.")
        each = layer_pattern.read(mixers, values["arch"], old)
        new = build(find(arch).options, kept, "model.options.")
        moved["mixers"] = layer_pattern.write(each, arch, new)
    return moved
