"""Whether the data of a run are still those that it was trained on so far.

A run names its corpus and its tokenizer by text; what is behind the text can change between two
sessions. So environment.json keeps the fingerprint of the data, and every session that goes on with
a run compares it with what it has prepared: the hashes of the corpus, of the validation blocks and
of the tokenizer. Where one differs the run is refused.

A user who wants it all the same says so with `linscale run --accept-data-change`, which leaves the
file `accept-data-change` in the directory of each run that is left. The next session takes it away;
where the data did change, it lists the former fingerprint under `data_changes` in environment.json.
A former tokenizer stays beside the new one, as `tokenizer-HASH.json`.
`analysis.io` leaves such a run out of fits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from linscale.errors import LinscaleError
from linscale.json_reader import as_object
from scaling.record.record import TOKENIZER, RunRecord

CONSENT = "accept-data-change"
"""Name of the file by which a user agrees, in the run's directory."""
COMPARED = {
    "corpus_sha256": "the corpus",
    "validation_sha256": "the validation blocks",
    "tokenizer_sha256": "the tokenizer",
}
"""Fields of a fingerprint (`scaling.data.prepared`) and what they are of."""


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Fields of `COMPARED` in which two fingerprints differ; those that one lacks do not count."""
    return [
        name for name in COMPARED if name in before and name in now and before[name] != now[name]
    ]


def consent(run_dir: Path) -> None:
    """Let the next session of a run go on with other data."""
    if run_dir.is_dir():
        (run_dir / CONSENT).touch()


def check_data(record: RunRecord, now: dict[str, Any], step: int) -> dict[str, Any] | None:
    """Compare the data of a session with those that its run was trained on so far.

    Args:
        record: the run.
        now: fingerprint of the data that this session has prepared.
        step: from which it goes on.

    Returns:
        What to add to `data_changes`: the former fingerprint, when and at which step it changed;
        None where nothing did.

    Raises:
        LinscaleError: they differ and nobody has agreed.
    """
    agreed = (record.path / CONSENT).exists()
    before = as_object(record.environment.get("data"))
    changed = changes(before, now)
    if changed and not agreed:
        what = "; ".join(
            f"{COMPARED[name]} ({str(before[name])[:12]} then, {str(now[name])[:12]} now)"
            for name in changed
        )
        raise LinscaleError(
            f"run {record.path.name}: its data are not those that it was trained on: {what}. Put "
            "the former data back; or train it anew in another directory (--out); or go on with "
            "--accept-data-change, which is recorded and leaves the run out of fits."
        )
    (record.path / CONSENT).unlink(missing_ok=True)
    if not changed:
        return None
    former = record.path / TOKENIZER
    if "tokenizer_sha256" in changed and former.exists():
        mark = "".join(c for c in str(before["tokenizer_sha256"]) if c.isalnum())[:8]
        former.replace(former.with_stem(f"{former.stem}-{mark}"))
    what = " and ".join(COMPARED[name] for name in changed)
    record.log(f"data changed at step {step}, as agreed: {what}")
    return {
        "step": step,
        "changed": changed,
        "before": before,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
