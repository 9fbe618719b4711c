"""`parquet:GLOB`: Parquet files, or a folder of them; the text is in column `data.text_field`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from linscale.errors import LinscaleError
from scaling.data.corpora.corpus import Corpus, needs_argument, prepare_texts
from scaling.data.corpora.files import find_files, from_files, text_of
from scaling.data.documents import BadRecords, Documents
from scaling.data.settings import DataSettings

FORM = "parquet:PATH"
ROWS = 1000
"""Read at once."""


def _documents(pattern: str, data: DataSettings) -> Documents:
    bad = BadRecords(data.max_bad_records)

    def read(path: Path) -> Iterator[str]:
        for where, value in _column(path, data.text_field):
            try:
                text = text_of(where, {data.text_field: value}, data.text_field)
            except LinscaleError as error:
                bad.skip(error)
            else:
                yield text

    return from_files(data.corpus, find_files(data.corpus, pattern, ".parquet"), None, read, bad)


def _column(path: Path, name: str) -> Iterator[tuple[str, object]]:
    """The values of a column, each with `file, row`; a few rows are in memory at a time.

    Raises:
        LinscaleError: the file is no Parquet, is damaged, or has no such column.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise LinscaleError(
            f"{path}: needs the package pyarrow; run `pip install pyarrow`, or use a jsonl: corpus."
        ) from None
    row = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if name not in columns:
                raise LinscaleError(
                    f"{path}: no column {name!r}; it has {', '.join(map(repr, columns))}. Set "
                    "data.text_field to the one that holds the text."
                )
            for batch in file.iter_batches(ROWS, columns=[name]):
                for value in batch.column(0).to_pylist():
                    yield f"{path}, row {row}", value
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise LinscaleError(
            f"{path}: cannot be read as a Parquet file from row {row} on ({reason}); fetch it "
            "again, or narrow the pattern of data.corpus."
        ) from None


KIND = Corpus(
    prefix="parquet",
    form=FORM,
    parse=needs_argument(FORM),
    documents=_documents,
    prepare=prepare_texts(_documents),
)
