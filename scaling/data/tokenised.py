"""From documents to token shards on disk: once, restartably, by any number of processes.

1. The settings and the signature of the corpus name a folder under the cache. If its index is
   complete, that is all: nothing is read again.
2. Otherwise one process holds the folder's lock and tokenises; others wait for it.
3. A document is held out if the first 64 bits of its SHA-256, as a fraction, fall below
   `validation_fraction`: no matter where it stands or what else there is, and equal documents land
   on the same side.
4. A trained tokenizer sees the training documents only.
5. `scaling.data.tokenise` does the work. Killed at any moment, it goes on from the last 256 MiB of
   text and ends with the same bytes.

With LINSCALE_REMOTE machines share what one of them has tokenised (`scaling.data.remote`).
The formats are described in `scaling.data.token_store`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from linscale.os_errors import in_words
from linscale.sealed import sealed
from scaling.data import remote, tokenizers
from scaling.data.documents import Documents
from scaling.data.prepared import PreparedData
from scaling.data.settings import DataSettings, Work
from scaling.data.token_store import FORMAT, Index, Split, damage_error, read_blocks
from scaling.data.tokenise import ShardWriter
from scaling.system.claims import exclusive
from scaling.system.files import DiskError, write_json
from scaling.system.words import size

LOCK = "lock"


def prepare_documents(documents: Documents, data: DataSettings, work: Work) -> PreparedData:
    """Tokenise the documents of a corpus, or open what was tokenised before.

    Args:
        documents: of `data.corpus`.
        data: tokenizer, split and sequence length.
        work: where, and with how many processes.

    Raises:
        LinscaleError: the tokenizer is missing or unreadable, there is too little text for one
            training or validation block, the disk is full, or shards are damaged.
        ConfigError: a tokenizer that cannot exist.
    """
    if data.tokenizer.startswith("bpe:"):
        tokenizers.bpe_vocabulary(data.tokenizer)
    source = {
        "corpus": data.corpus,
        "text_field": data.text_field,
        "signature": documents.signature,
        "tokenizer": data.tokenizer,
        "tokenizer_signature": tokenizers.signature(data.tokenizer),
        "validation_fraction": data.validation_fraction,
        "format": FORMAT,
    }
    folder = work.cache / _folder_name(source)
    index = Index.load(folder)
    try:
        if index is None or not index.complete:
            wait = (
                f"{folder.name}: waiting for another process to tokenise" if work.progress else ""
            )
            with exclusive(folder / LOCK, wait):
                index = Index.load(folder)  # another process may have written it meanwhile
                if index is None or not index.complete:
                    index = remote.fetch(folder) or index
                if index is None or not index.complete:
                    index = ShardWriter(folder, documents, data, source, index, work).run()
                    if note := _uneven(index, data):
                        print(f"corpus {data.corpus}: {note}", file=sys.stderr)
        if index.bad_records > data.max_bad_records:
            raise LinscaleError(
                f"corpus {data.corpus}: {index.bad_records} of its records cannot be read and were "
                f"passed over; data.max_bad_records={data.max_bad_records} allows fewer. Mend "
                f"them, or set data.max_bad_records={index.bad_records}."
            )
        if remote.unpublished(folder):
            with exclusive(folder / LOCK):
                remote.publish(folder, index)
        return _open(folder, data, index)
    except OSError as error:
        if (found := in_words(error)) is None:
            raise
        raise LinscaleError(
            f"prepared corpus {folder}: {found[0]}. Everything up to the last finished chunk is "
            f"kept; {found[1]} (LINSCALE_CACHE names another one for prepared corpora), and run "
            "the same command again."
        ) from error


def _folder_name(source: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()
    label = f"{source['corpus']}-{source['tokenizer']}"
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', label)[:60].strip('-')}-{digest[:12]}"


def _uneven(index: Index, data: DataSettings) -> str:
    """What one long document does to the validation split; empty where it does little."""
    total = index.train.text_bytes + index.validation.text_bytes
    share = index.validation.text_bytes / total
    longest = index.longest_document / total
    if longest < 0.5 * min(data.validation_fraction, 1 - data.validation_fraction):
        return ""
    return (
        f"one document of {size(index.longest_document)} is {longest:.1%} of the text. A document "
        f"is held out as a whole or not at all: {share:.1%} of the text is for validation, where "
        f"data.validation_fraction={data.validation_fraction} asks for "
        f"{data.validation_fraction:.1%}. Cut it into documents (a text: corpus is cut at line "
        "ends), or take more text."
    )


def _open(folder: Path, data: DataSettings, index: Index) -> PreparedData:
    length = data.sequence_length
    counts = (
        f"{index.train.documents} training and {index.validation.documents} validation documents"
    )
    if data.tokenizer != "bytes":
        counts += f", tokenizer {data.tokenizer}"
    train = Split(folder, index.train, index.dtype, length)
    if train.n_blocks == 0:
        raise LinscaleError(
            f"corpus {data.corpus}: its training split has {index.train.tokens} tokens ({counts}), "
            f"less than one sequence of data.sequence_length={length} and its target; shorten "
            f"data.sequence_length or add text.{_hint(index, data)}"
        )
    held_out = Split(folder, index.validation, index.dtype, length)
    if held_out.n_blocks == 0:
        raise LinscaleError(
            f"corpus {data.corpus}: its validation split has {index.validation.tokens} tokens "
            f"({counts}), less than one block of data.sequence_length={length} and its target; "
            f"raise data.validation_fraction (now {data.validation_fraction}), shorten "
            f"data.sequence_length or add text.{_hint(index, data)}"
        )
    validation = held_out.gather(_validation_blocks(folder, held_out, data.validation_blocks))
    return PreparedData(
        folder=folder,
        data=data,
        index=index,
        train=train,
        validation=validation,
        validation_sha256=hashlib.sha256(validation.astype("<i8").tobytes()).hexdigest(),
    )


def _hint(index: Index, data: DataSettings) -> str:
    note = _uneven(index, data)
    return f" Here {note}" if note else ""


def _validation_blocks(folder: Path, split: Split, most: int) -> list[int]:
    """The stored list of validation blocks; where there is none yet, evenly spread and stored, if
    the folder can be written."""
    path = folder / f"blocks-{split.sequence_length}-{most}.json"
    if not path.exists():
        count = min(most, split.n_blocks)
        content = {"blocks": [i * split.n_blocks // count for i in range(count)]}
        try:
            with exclusive(folder / LOCK):
                write_json(path, sealed(content))
        except DiskError:
            if os.access(folder, os.W_OK):
                raise
            return content["blocks"]  # of somebody else, who lets us read
    blocks = read_blocks(path)
    if not blocks or not 0 <= min(blocks) <= max(blocks) < split.n_blocks:
        raise damage_error(folder, f"{path.name} names blocks that do not exist")
    return blocks
