"""`hf:NAME[@REVISION][:CONFIG]`: the `train` split of a Hugging Face dataset, or `hf:FOLDER`.

A dataset of the hub is signed by its revision (`scaling.data.hub`), a folder by its files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from linscale.errors import LinscaleError
from scaling.data.corpora.corpus import Corpus, needs_argument
from scaling.data.corpora.files import sign_files, text_of
from scaling.data.documents import Documents
from scaling.data.hub import fix_revision
from scaling.data.settings import DataSettings, Work
from scaling.system.devices import cores

if TYPE_CHECKING:
    from datasets import Dataset

    from scaling.data.prepared import PreparedData

PARALLEL_BYTES = 256 * 2**20
"""Size of a local dataset from which on several processes convert it."""
FORM = "hf:NAME"


class _Dataset(NamedTuple):
    """What follows `hf:`."""

    source: str
    """Name on the hub, or a local path."""
    config: str | None
    revision: str | None
    """Commit, branch or tag on the hub."""
    folder: Path | None
    """Where it lies, if it is local."""


def _find(argument: str) -> _Dataset:
    folder = Path(argument).expanduser()
    if folder.exists():
        return _Dataset(str(folder), None, None, folder)
    name, _, config = argument.partition(":")
    source, _, revision = name.partition("@")
    return _Dataset(source, config or None, revision or None, None)


def _documents(argument: str, data: DataSettings) -> Documents:
    return _open(_find(argument), data)


def _prepare(argument: str, data: DataSettings, work: Work) -> PreparedData:
    from scaling.data.tokenised import prepare_documents  # with numpy

    return prepare_documents(_open(_fix(_find(argument), work.cache), data), data, work)


def open_dataset(argument: str, corpus: str, cache: Path) -> Dataset:
    """The train split of what follows `hf:`, at the revision that the cache knows.

    Args:
        argument: a name on the hub, with revision and configuration, or a local path.
        corpus: the `data.corpus`, for errors.
        cache: folder of the prepared corpora.

    Raises:
        LinscaleError: as `load_dataset`.
    """
    chosen = _fix(_find(argument), cache)
    return load_dataset(corpus, chosen.source, chosen.config, revision=chosen.revision)


def _fix(chosen: _Dataset, cache: Path) -> _Dataset:
    """With the commit that its revision means; a folder has none."""
    if chosen.folder is not None:
        return chosen
    commit = fix_revision(chosen.source, chosen.revision, cache)
    return chosen._replace(revision=commit or chosen.revision)


def _open(chosen: _Dataset, data: DataSettings) -> Documents:
    """A dataset through `datasets`, imported only when documents are read."""
    name, text_field = data.corpus, data.text_field
    source, config, revision, folder = chosen
    signature: list[Any] = [] if revision is None else [{"revision": revision}]
    total: int | None = None
    if folder is not None:
        paths = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
        signature, total = sign_files(paths, None)

    def documents(skip: int) -> Iterator[str]:
        large = total is None or total > PARALLEL_BYTES
        processes = cores() if large else 1
        dataset = load_dataset(name, source, config, revision=revision, processes=processes)
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
                yield text_of(f"corpus {name}, row {row}", {text_field: text}, text_field)
                row += 1

    return Documents(name=name, signature=signature, total_bytes=total, read=documents)


def load_dataset(
    name: str,
    source: str,
    config: str | None = None,
    *,
    revision: str | None = None,
    processes: int = 1,
) -> Dataset:
    """The train split of a dataset by name or folder.

    Args:
        name: of the corpus, for errors.
        source: name or folder.
        config: configuration of the dataset.
        revision: commit, branch or tag on the hub; None: the newest.
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
        return datasets.load_dataset(
            source, config, split="train", revision=revision, num_proc=several
        )
    except Exception as error:  # the library raises many types; all mean it cannot be had
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LinscaleError(
            f"corpus {name}: datasets cannot load its train split ({type(error).__name__}: "
            f"{reason}). Check the name and the configuration; on a machine without network, "
            f"fetch it elsewhere with `hf download {source} --repo-type dataset --local-dir DIR` "
            "and use data.corpus=hf:DIR."
        ) from error


KIND = Corpus(
    prefix="hf",
    form=FORM,
    parse=needs_argument(FORM),
    documents=_documents,
    prepare=_prepare,
)
