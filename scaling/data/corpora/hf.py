"""`hf:NAME[:CONFIG]`: the `train` split of a Hugging Face dataset, by name or by local folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.data.corpora.corpus import Corpus, needs_argument, prepare_texts
from scaling.data.corpora.files import sign_files, text_of
from scaling.data.documents import Documents
from scaling.data.settings import DataSettings
from scaling.system.devices import cores
from scaling.system.errors import LinscaleError

if TYPE_CHECKING:
    from datasets import Dataset

PARALLEL_BYTES = 256 * 2**20
"""Size of a local dataset from which on several processes convert it."""
FORM = "hf:NAME"


def _documents(argument: str, data: DataSettings) -> Documents:
    """A dataset through `datasets`, imported only when documents are read."""
    name, text_field = data.corpus, data.text_field
    folder = Path(argument).expanduser()
    local = folder.exists()
    source, config = (str(folder), None) if local else _split_config(argument)
    signature: list[Any] = []
    total: int | None = None
    if local:
        paths = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
        signature, total = sign_files(paths, None)

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
                yield text_of(f"corpus {name}, row {row}", {text_field: text}, text_field)
                row += 1

    return Documents(name=name, signature=signature, total_bytes=total, read=documents)


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


KIND = Corpus(
    prefix="hf",
    form=FORM,
    parse=needs_argument(FORM),
    documents=_documents,
    prepare=prepare_texts(_documents),
)
