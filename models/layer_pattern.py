"""Patterns of token mixers, such as "hgrn2*3+llama": which mixer each layer has. Free of torch.

    pattern = word {"+" word}
    word    = architecture ["(" option "=" value {"," option "=" value} ")"] ["*" count]

A pattern is repeated over the depth and cut off at the last layer. Options in brackets change those
that the word starts from: the model's own where the word names its base architecture, and otherwise
the defaults of the architecture that it names. Nested options have dots: `supra(llama.kv_heads=2)`.
Values are JSON, `none`, or a plain word.

`read` gives the mixers of one repetition, `write` the one text that stands for them: equal
repetitions are written once, and options that change nothing are left out.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from linscale.layer_groups import split
from models.architecture import Options, find
from models.errors import ConfigError
from models.fields import build, identity

MOST_MIXERS = 10_000
"""Of one repetition: as many as a model may have layers."""

_WORD = re.compile(r"\s*([\w.]+)\s*(?:\((.*)\))?\s*(?:\*\s*(\d{1,6}))?\s*", re.DOTALL)


@dataclass(frozen=True)
class Mixer:
    """The token mixer of a layer."""

    arch: str
    """Architecture that it is of."""
    options: Options
    """All of its options."""


def read(pattern: str | Sequence[str], arch: str, options: Options) -> tuple[Mixer, ...]:
    """The mixers of one repetition of a pattern.

    Args:
        pattern: one text, or a list with a word (or a whole pattern) each.
        arch: the model's base architecture.
        options: the model's options, from which words of its base architecture start.

    Raises:
        ConfigError: the text is no pattern, names an architecture or option that there is not, or
            gives an option a value that cannot work.
    """
    text = pattern if isinstance(pattern, str) else "+".join(pattern)
    mixers: list[Mixer] = []
    for word in split(text, "+"):
        matched = _WORD.fullmatch(word)
        if matched is None:
            raise ConfigError(
                f"model.mixers={text!r}: {word.strip()!r} is not an architecture with a count; "
                "write for example hgrn2*3+llama, with options llama(window=64)."
            )
        name, inside, count = matched[1], matched[2], int(matched[3] or 1)
        if not 1 <= count <= MOST_MIXERS - len(mixers):
            raise ConfigError(
                f"model.mixers={text!r}: {word.strip()!r} counts {count} layers; choose at least "
                f"1, and no more than {MOST_MIXERS:,} in all."
            )
        start = start_of(name, arch, options)
        mixers += [Mixer(name, _changed(name, start, inside or "", text))] * count
    return _once(mixers)


def start_of(name: str, arch: str, options: Options) -> Options:
    """The options that a word of a pattern starts from; arguments as `read`."""
    try:
        return options if name == arch else find(name).options()
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.arch", "model.mixers", 1)) from None


def write(mixers: Sequence[Mixer], arch: str, options: Options) -> str:
    """The pattern of one repetition; arguments as `read`."""
    words: list[str] = []
    for mixer, alike in itertools.groupby(_once(mixers)):
        count = len(list(alike))
        word = mixer.arch
        if changed := changes(start_of(mixer.arch, arch, options), mixer.options):
            word += f"({', '.join(f'{name}={_text(value)}' for name, value in changed.items())})"
        words.append(word if count == 1 else f"{word}*{count}")
    return "+".join(words)


def widened(pattern: str | Sequence[str], arch: str, options: Options, factor: int) -> str:
    """The pattern of a model with `factor` times as many heads; other arguments as `read`, with
    the options that the model has now."""
    each = read(pattern, arch, options)
    wide = [Mixer(mixer.arch, mixer.options.widened(factor)) for mixer in each]
    return write(wide, arch, options.widened(factor))


def _once(mixers: Sequence[Mixer]) -> tuple[Mixer, ...]:
    """The shortest repetition that makes up the mixers."""
    length = len(mixers)
    for period in range(1, length + 1):
        if length % period == 0 and all(m == mixers[i % period] for i, m in enumerate(mixers)):
            return tuple(mixers[:period])
    return tuple(mixers)


def _changed(name: str, start: Options, inside: str, text: str) -> Options:
    """The options with the changes that stand in a word's brackets."""
    if not inside.strip():
        return start
    values = json.loads(json.dumps(asdict(start)))
    for assignment in split(inside, ","):
        path, equals, value = (part.strip() for part in assignment.partition("="))
        if not equals or not path:
            raise ConfigError(
                f"model.mixers={text!r}: {assignment.strip()!r} in the brackets of {name} is not "
                "an option; write option=value."
            )
        _put(values, path, _value(value))
    return build(type(start), values, f"model.mixers.{name}.")


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return {"True": True, "False": False}.get(text, text)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    if value is None and isinstance(values.get(leaf), str):
        value = "none"  # a word where the option is one, not the absence of a number
    values[leaf] = value


def changes(start: Options, options: Options) -> dict[str, Any]:
    """Dotted name -> value of what differs."""
    before, after = (dict(_leaves(json.loads(json.dumps(asdict(o))))) for o in (start, options))
    # Of a part that was none, less the later fields that stand at their default: what is hashed
    # must not change when such a field comes.
    kept = dict(_leaves(identity(options)))
    return {n: v for n, v in after.items() if (before[n] != v if n in before else n in kept)}


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(cast("dict[str, Any]", value), f"{prefix}{name}.")
        else:
            yield prefix + name, value
