"""The older, flat layout of configurations: it is still read, and runs are still named by it.

Every option was a field of the model once: `tnl_lrpe` and `decay_slopes` beside `dim` and `layers`,
SUPRA's and LoLCATs' in parts of their own. Records with that layout are still read (`nest`), and
runs are still named by it (`flatten`), so that no run changes its name. The table is closed:
options that came later, and architectures of your own, are not in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from models.errors import ConfigError
from models.fields import identity, not_a_table

# Flat name -> default. The first seven are part of every model's identity; the others came later,
# and enter it only where they differ.
_FIRST: dict[str, Any] = {
    "rope_base": 10_000.0,
    "gate_rank": None,
    "decay_slopes": "alibi",
    "learn_decay": False,
    "tnl_lrpe": "none",
    "lrpe_learned": True,
    "tpe": True,
}
_LATER: dict[str, Any] = {
    "kv_heads": None,
    "head_size": None,
    "rope_scaling": None,
    "window": None,
    "qkv_bias": False,
    "out_bias": False,
}
_PARTS = {"supra": "supra", "lolcats": "lolcats"}  # architecture -> the part with its own options
_LLAMA = {name: name for name in ("rope_base", *_LATER)}
_BASED = {name: f"llama.{name}" for name in _LLAMA}
# Architecture -> flat name -> dotted name below `options`.
_NAMES: dict[str, dict[str, str]] = {
    "llama": _LLAMA,
    "tnl": {
        "rope_base": "rope_base",
        "gate_rank": "gate_rank",
        "decay_slopes": "decay_slopes",
        "learn_decay": "learn_decay",
        "tnl_lrpe": "lrpe",
        "lrpe_learned": "lrpe_learned",
    },
    "hgrn2": {},
    "cosformer2": {n: n for n in ("rope_base", "gate_rank", "lrpe_learned", "tpe")},
    "supra": _BASED | {"decay_slopes": "decay_slopes", "learn_decay": "learn_decay"},
    "lolcats": _BASED,
}


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """A model's JSON with `options`, whichever layout it has.

    A flat value that the architecture never read is left out.

    Raises:
        ConfigError: a flat value that was refused in that layout too, or something else than a
            table where one belongs.
    """
    flat = {**_FIRST, **_LATER, **dict.fromkeys(_PARTS)}
    arch = values.get("arch")
    if "options" in values or not isinstance(arch, str) or not (set(values) & set(flat)):
        return dict(values)
    names = _NAMES.get(arch, {})
    own = values.get(_PARTS[arch]) if arch in _PARTS else None  # SUPRA's and LoLCATs' own part
    if not isinstance(own, Mapping | None):
        raise not_a_table(f"model.{arch}", own)
    options = dict[str, Any]()
    for name, default in flat.items():
        value = values.get(name, default)
        if name in names:
            _put(options, names[name], value)
        elif name not in _FIRST and name != arch and value != default:
            raise ConfigError(
                f"model.{name}={value!r} with model.arch={arch!r}: it has no such option; leave "
                "it out."
            )
    kept = {k: v for k, v in values.items() if k not in flat}
    more = dict(own or {})
    if isinstance(newer := more.get("llama"), Mapping) and "llama" in options:
        more["llama"] = options["llama"] | dict(newer)
    return kept | {"options": {**options, **more}}


def flatten(config: Any) -> dict[str, Any]:
    """What a `ModelConfig` is hashed by.

    Options that this layout does not know are under `options`, where there are any.
    """
    values = identity(config)
    del values["options"]
    values |= _FIRST
    options = identity(config.options)
    whole = json.loads(json.dumps(asdict(config.options)))
    for old, new in _NAMES.get(config.arch, {}).items():
        value = _take(options, whole, new)
        if old in _FIRST or value != _LATER[old]:
            values[old] = value
    if not options.get("llama", True):
        del options["llama"]
    place = _PARTS.get(config.arch, "options")
    return values | {place: options} if options else values


def settings(config: Any) -> dict[str, Any]:
    """Every value of a built-in architecture's `ModelConfig` in this layout, as JSON: what exports
    carry for their own code. Options of a transformer that came later are under `llama` of the
    part that linearizes it. Architectures that came after this layout have that of today."""
    if config.arch not in _NAMES:
        return config.to_json()
    known = {f.name for f in fields(config)} - {"options"}
    values = {name: value for name, value in asdict(config).items() if name in known}
    values |= _FIRST | _LATER | dict.fromkeys(_PARTS)
    options = asdict(config.options)
    for old, new in _NAMES[config.arch].items():
        values[old] = _take(options, options, new)
    if config.arch in _PARTS:
        values[_PARTS[config.arch]] = options
    return json.loads(json.dumps(values))


def explain_move(path: str, arch: str) -> ConfigError | None:
    """The error for a flat name, `model.decay_slopes`, that says where it is now; None for another
    name."""
    group, _, rest = path.removeprefix("model.").partition(".")
    if not path.startswith("model.") or group not in {**_FIRST, **_LATER, **dict.fromkeys(_PARTS)}:
        return None
    if group in _PARTS:
        new = f"model.options.{rest}".rstrip(".")
        return ConfigError(f"{path}: is now {new}, with model.arch={group}.")
    tail = f".{rest}" if rest else ""
    if group in _NAMES.get(arch, {}):
        return ConfigError(f"{path}: is now model.options.{_NAMES[arch][group]}{tail}.")
    places = {f"model.options.{names[group]}{tail}" for names in _NAMES.values() if group in names}
    owners = ", ".join(name for name, names in _NAMES.items() if group in names)
    return ConfigError(
        f"{path}: {arch} has no such option; {owners} have it, as {' or '.join(sorted(places))}."
    )


def _put(options: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        options = options.setdefault(parent, {})
    options[leaf] = value


def _take(options: dict[str, Any], whole: dict[str, Any], path: str) -> Any:
    """Remove a dotted name from `options`, where it is; its value, or that of `whole`."""
    *parents, leaf = path.split(".")
    for parent in parents:
        options, whole = options[parent], whole[parent]
    return options.pop(leaf, whole[leaf])
