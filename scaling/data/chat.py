"""Chats as text: the template that a model's tokenizer files carry, and the tokens of its turns.

Templates are Jinja, as transformers reads them: `chat_template.jinja` beside the tokenizer, or
`chat_template` in `tokenizer_config.json`. They come with models of others, so that they run in
Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError

Message = dict[str, str]
"""`role` (user, assistant, system) and `content`."""
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class ChatTemplate:
    """How a model wants a chat to be written."""

    def __init__(self, template: str, special: dict[str, str]) -> None:
        """
        Args:
            template: Jinja.
            special: texts of special tokens by name, such as `bos_token`.

        Raises:
            LinscaleError: it is no Jinja.
        """
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _generation_blocks()],
        )  # fmt: skip
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        self._special = special
        try:
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise LinscaleError(f"chat template: is no Jinja template ({error}).") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The chat so far, and the beginning of the model's turn.

        Raises:
            LinscaleError: the template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._special,
            )
        except TemplateError as error:
            raise LinscaleError(f"chat template: refuses the chat: {error}") from error


def _generation_blocks() -> Any:
    """`{% generation %} ... {% endgeneration %}`, which marks the model's turns for training: what
    is inside, as it is."""
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _refuse(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def read_template(folder: Path | None) -> ChatTemplate:
    """The chat template in a folder of tokenizer files.

    Raises:
        LinscaleError: there is none.
    """
    if folder is None:
        raise LinscaleError(
            "chat: the model has no chat template; a model of your own continues texts, without "
            "--chat."
        )
    path = folder / "tokenizer_config.json"
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    template = values.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    file = folder / "chat_template.jinja"
    if file.is_file():
        template = file.read_text(encoding="utf-8")
    if not isinstance(template, str):
        raise LinscaleError(
            f"{folder}: there is no chat template (chat_template.jinja, or chat_template in "
            "tokenizer_config.json); the model is not made for chats. Leave --chat out."
        )
    special = {name: values[name] for name in SPECIAL if values.get(name) is not None}
    texts = {n: v["content"] if isinstance(v, dict) else str(v) for n, v in special.items()}
    return ChatTemplate(template, texts)
