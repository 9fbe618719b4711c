"""`linscale generate` and `linscale export`: text from checkpoints, files for other libraries."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from linscale.options import AsJson, print_json
from linscale.terminal import say, tell
from scaling.cli.options import Device

if TYPE_CHECKING:
    from models.generation import Sampling
    from scaling.data.chat import Message
    from scaling.record.pretrained import Pretrained

app = typer.Typer()

Model = Annotated[
    Path,
    typer.Argument(
        help="A run's directory, one of its checkpoints, or a directory in Hugging Face's layout."
    ),
]


@app.command(epilog='Example: linscale generate runs/quickstart/RUN --prompt "In the beginning"')
def generate(
    model: Model,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="Text to continue; repeat it for a batch."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens after which a text ends.")] = 128,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Keep so many likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Keep the likeliest with this mass.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens so many times as likely as the likeliest.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: fewer repetitions.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Text number i draws with seed + i.")] = 0,
    device: Device = "",
    chat: Annotated[
        bool,
        typer.Option(
            "--chat",
            help="Prompts are what a user says, written by the model's chat template; without "
            "--prompt, each line of the input is.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Continue texts. One text comes as it is made; several come when they end.

    Without --prompt a document is begun.
    """
    from models.generation import Sampling, generate_tokens
    from models.generation import generate as continue_texts
    from scaling.record.pretrained import load_pretrained, usable_device

    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    loaded = load_pretrained(model, device=usable_device(device))
    if chat and not prompt:
        _talk(loaded, sampling)
        return
    prompts = prompt or [""]
    live = len(prompts) == 1 and not as_json
    if live:
        typer.echo(prompts[0], nl=False)

    def show(number: int, text: str) -> None:
        if live:
            typer.echo(text, nl=False)
            sys.stdout.flush()

    start = time.perf_counter()
    if chat:
        turns = [_chat_tokens(loaded, [{"role": "user", "content": text}]) for text in prompts]
        if live:
            typer.echo()
        results = generate_tokens(
            loaded.model, loaded.tokenizer, turns, sampling, eos_ids=loaded.eos_ids, on_text=show
        )
    else:
        results = continue_texts(
            loaded.model,
            loaded.tokenizer,
            prompts,
            sampling,
            eos_ids=loaded.eos_ids,
            on_text=show,
        )
    seconds = time.perf_counter() - start
    if as_json:
        rows = [
            {"prompt": text, "text": r.text, "tokens": len(r.tokens), "reason": r.reason}
            for text, r in zip(prompts, results, strict=True)
        ]
        print_json(rows)
        return
    if live:
        typer.echo()
    else:
        for text, result in zip(prompts, results, strict=True):
            typer.echo(f"{text}{result.text}\n")
    count = sum(len(result.tokens) for result in results)
    say(f"{loaded.name}: {count} tokens, {count / seconds:.0f} tokens/s")


def _chat_tokens(loaded: Pretrained, messages: list[Message]) -> list[int]:
    """Tokens of a chat so far, up to where the model's turn begins."""
    from scaling.data.chat import read_template
    from scaling.data.json_tokenizer import JsonTokenizer

    template = read_template(loaded.files)
    assert isinstance(loaded.tokenizer, JsonTokenizer)  # others have no files
    return loaded.tokenizer.encode_marked(template.render(messages))


def _talk(loaded: Pretrained, sampling: Sampling) -> None:
    """Answer line after line of the input, each with all that was said before."""
    from models.generation import generate_tokens

    messages: list[Message] = []
    for line in sys.stdin:
        messages.append({"role": "user", "content": line.rstrip("\n")})
        (answer,) = generate_tokens(
            loaded.model,
            loaded.tokenizer,
            [_chat_tokens(loaded, messages)],
            sampling,
            eos_ids=loaded.eos_ids,
            on_text=lambda _, text: typer.echo(text, nl=False),
        )
        typer.echo()
        messages.append({"role": "assistant", "content": answer.text})


@app.command(epilog="Example: linscale export runs/quickstart/RUN -o exported")
def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")],
    layout: Annotated[
        str,
        typer.Option(help="transformers, or fla for flash-linear-attention's HGRN2."),
    ] = "transformers",
    as_json: AsJson = False,
) -> None:
    """Write a model for transformers: weights, configuration, code, tokenizer.

    LLaMA becomes a plain LlamaForCausalLM. The linear models carry their code with them and load
    with `AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)`.
    """
    from scaling.record.export import export_pretrained
    from scaling.record.pretrained import load_pretrained

    export_pretrained(load_pretrained(model), out, layout)
    if as_json:
        files = sorted(path.name for path in out.iterdir())
        print_json({"folder": str(out), "layout": layout, "files": files})
    else:
        tell(f"{out}: written")
