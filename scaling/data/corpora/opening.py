"""Opening the files of a corpus: plain, or compressed with gzip or Zstandard.

What a file is, its first bytes say and not its name. Everything that goes wrong while it is read is
told by the layer at which it goes wrong: storage, compression, or text.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from linscale.errors import LinscaleError

COMPRESSED = (".gz", ".zst")
"""Endings of compressed files."""
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {
    b"PAR1": "a Parquet file; read it with data.corpus=parquet:PATH",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it, or compress it with gzip or zstd",
    b"BZh": "compressed with bzip2; unpack it, or compress it with gzip or zstd",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it, or compress it with gzip or zstd",
    b"\xff\xfe": "UTF-16 text; convert it, for example `iconv -f utf-16 -t utf-8`",
    b"\xfe\xff": "UTF-16 text; convert it, for example `iconv -f utf-16 -t utf-8`",
}


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, unpacked.

    Raises:
        LinscaleError: the file cannot be read, is of a kind that is no text, or its compression is
            damaged; errors while it is read within the block are told so too.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(8)
            raw.seek(0)
            for magic, what in _OTHERS.items():
                if start.startswith(magic):
                    raise LinscaleError(f"{path}: is {what}.")
            if start.startswith(_GZIP):
                with gzip.open(raw) as file:
                    yield cast(BinaryIO, file)
            elif start.startswith(_ZSTD):
                with _zstd(path) as file:
                    yield file
            elif path.suffix in COMPRESSED and start:
                raise LinscaleError(
                    f"{path}: is not compressed, as its name says; take {path.suffix} off its name."
                )
            else:
                yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damage_error(path, error) from None
    except OSError as error:
        if _is_compression(error):
            raise _damage_error(path, error) from None
        reason = error.strerror or str(error)
        raise LinscaleError(
            f"{path}: cannot be read ({reason}); mend its permissions or its disk, or narrow the "
            "pattern of data.corpus."
        ) from error


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """The content of a file as text: UTF-8, a byte order mark left out, line ends as they are.

    Raises:
        LinscaleError: as `open_bytes`, or text that is not UTF-8.
    """
    with open_bytes(path) as file:
        try:
            with io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
                yield text
        except UnicodeDecodeError as error:
            raise not_utf8(path, error) from None


def not_utf8(path: Path, error: UnicodeDecodeError, where: str = "") -> LinscaleError:
    """The error for text that is not UTF-8; `where` in the file it stands."""
    return LinscaleError(
        f"{path}: not UTF-8 text (byte 0x{error.object[error.start]:02x}{where}: {error.reason}); "
        "convert it, for example `iconv -f latin1 -t utf-8`, or narrow the pattern of data.corpus."
    )


def _zstd(path: Path) -> BinaryIO:
    try:
        import pyarrow
    except ImportError:
        raise LinscaleError(
            f"{path}: is compressed with zstd, which needs the package pyarrow; run `pip install "
            "pyarrow`, or unpack it with `zstd -d`."
        ) from None
    stream = pyarrow.input_stream(str(path), compression="zstd")
    return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, stream), 2**20))


def _is_compression(error: OSError) -> bool:
    """Whether pyarrow's decompressor raised it: such errors carry no number of the system."""
    return error.errno is None


def _damage_error(path: Path, error: Exception) -> LinscaleError:
    return LinscaleError(
        f"{path}: its compression is damaged, or ends too early ({error}); fetch the file again."
    )
