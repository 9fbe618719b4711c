"""What MkDocs builds besides the pages: the command reference, the table of fields, equations.

1. `on_files` adds pages that are generated, so that they cannot go stale: the commands through
   typer's own documentation command, every field of a run from the docstrings of the configuration
   classes, and the map of the code, which stands in CONTRIBUTING.md.
2. `on_page_markdown` turns $...$ and $$...$$ outside code into MathML, which browsers draw without
   a script and without a request.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, get_args

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

CODE = re.compile(r"(^```.*?^```|^(?: {4}|\t).*?$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
INLINE = re.compile(r"(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated reference pages."""
    pages = {"reference_cli.md": commands(), "reference_fields.md": fields(), "map.md": code_map()}
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace TeX by MathML everywhere but in code."""
    parts = CODE.split(markdown)  # text and code in turn
    for i in range(0, len(parts), 2):
        text = DISPLAY.sub(_display, parts[i])
        # A line that begins with <math> itself would end the paragraph.
        parts[i] = INLINE.sub(lambda m: f"<span>{convert(m[1])}</span>", text)
    return "".join(parts)


def _display(found: re.Match[str]) -> str:
    drawn = convert(found[1].strip(), display="block")
    return f'<div style="margin:1em 0;padding:.3em 0;overflow:auto hidden">{drawn}</div>'


def commands() -> str:
    """Every command with its arguments and options."""
    typer = [
        sys.executable,
        "-m",
        "typer",
        "scaling.cli.main",
        "utils",
        "docs",
        "--name",
        "linscale",
    ]
    text = subprocess.run(typer, check=True, capture_output=True, text=True).stdout
    return text.replace("# `linscale`", "# Commands", 1)


def code_map() -> str:
    """The map of the code in CONTRIBUTING.md."""
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"^## (Map of the code\n.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError("CONTRIBUTING.md: there is no section `## Map of the code`.")
    return f"# {found[1]}"


def fields() -> str:
    """A table for each part of a run: dotted name, type, default, meaning."""
    from models.architecture import BUILT_IN, Options, find
    from scaling.config.run import RunConfig

    lines = [
        "# Fields of a run",
        "",
        "Set them in an experiment file, or as an override on the command line, such as "
        "`optim.lr=3e-4` or `model.options.rope_scaling.factor=2`. An unknown name is refused with "
        "the nearest known one. `model.options` are those of the architecture, `model.arch`.",
    ]
    _part(RunConfig, "", lines)
    for name in BUILT_IN:
        kind = find(name).options
        if kind is not Options:
            _part(kind, "model.options.", lines, f"model.options of {name}")
    return "\n".join(lines)


def _part(part: type, prefix: str, lines: list[str], title: str = "") -> None:
    from models.architecture import Options
    from models.fields import part_of

    documented = _docstrings(part)
    nested: list[tuple[type, str]] = []
    title = title or prefix.rstrip(".") or "run"
    lines += ["", f"## {title}", "", _first(part.__doc__), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(part):
        hint = _hint(part, field.name)
        inner = part_of(hint)
        if inner is not None and inner is not Options:
            nested.append((inner, f"{prefix}{field.name}."))
        meaning = documented.get(field.name, "")
        cells = (f"`{prefix}{field.name}`", f"`{_type(hint)}`", _default(field), meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    of = title.removeprefix(prefix.rstrip(".")) if title.startswith("model.options of") else ""
    for inner, inner_prefix in nested:
        _part(inner, inner_prefix, lines, f"{inner_prefix.rstrip('.')}{of}")


def _docstrings(part: type) -> dict[str, str]:
    """Docstring of every field, those of base classes included."""
    found: dict[str, str] = {}
    for base in reversed(part.__mro__[:-1]):
        for name, member in _module(base.__module__)[base.__name__].members.items():
            if member.is_attribute and member.docstring:
                found[name] = " ".join(member.docstring.value.split())
    return found


@cache
def _module(name: str) -> griffe.Object:
    """A module as it is written; griffe alone would read its whole package, each time again."""
    path = importlib.util.find_spec(name)
    assert path is not None
    assert path.origin is not None
    file = Path(path.origin)
    return griffe.visit(name, filepath=file, code=file.read_text(encoding="utf-8"))


def _hint(part: type, name: str) -> Any:
    from models.fields import hints

    return hints(part)[name]


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)
    return re.sub(r"typing\.|models\.[\w.]*\.|models\.|scaling\.[\w.]*\.", "", text)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING or dataclasses.is_dataclass(field.default):
        return "see below"
    return "required" if field.default is dataclasses.MISSING else f"`{field.default!r}`"


def _first(docstring: str | None) -> str:
    return (docstring or "").split("\n\n")[0].replace("\n", " ")
