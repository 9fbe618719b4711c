"""Which revision of a hub dataset is meant: the one that this cache saw first.

A name on the hub points at data that may change at any time. The revision (a commit) is asked for
once, when a dataset is first prepared, and kept in `hub.json` of the data cache: later runs there
read the same data, also on machines without network. `hf:NAME@REVISION` names another.
"""

from __future__ import annotations

import re
from pathlib import Path

from scaling.system.claims import exclusive
from scaling.system.files import read_json, write_json

NOTES = "hub.json"
"""In the data cache: dataset and branch -> commit."""
SECONDS = 10.0
"""How long the hub may take to answer."""


def fix_revision(dataset: str, revision: str | None, cache: Path) -> str | None:
    """The commit of a dataset.

    Args:
        dataset: `owner/name`.
        revision: a commit, branch or tag; None for the main branch.
        cache: folder of the prepared corpora.

    Returns:
        The commit; None where the hub cannot be asked and nothing is known of it yet: it is then
        whatever `datasets` finds on this machine.
    """
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    key = f"{dataset}@{revision or 'main'}"
    path = cache / NOTES
    if (known := _notes(path).get(key)) is not None:
        return known
    commit = ask(dataset, revision)
    if commit is None:
        return None
    with exclusive(cache / f"{NOTES}.lock"):
        notes = {key: commit} | _notes(path)  # whoever was first is right
        write_json(path, notes)
    return notes[key]


def ask(dataset: str, revision: str | None) -> str | None:
    """The commit that the hub names now; None where it does not answer."""
    try:
        from huggingface_hub import HfApi

        return HfApi().dataset_info(dataset, revision=revision, timeout=SECONDS).sha
    except Exception:  # no package, no network, no such dataset: loading it says which
        return None


def _notes(path: Path) -> dict[str, str]:
    """What is known; nothing where the file cannot be read."""
    return {key: commit for key, commit in read_json(path).items() if isinstance(commit, str)}
