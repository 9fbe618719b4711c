"""Where does a ladder get enough real English without a hub? From documentation that Debian ships.

    python -m experiments.corpora build data/prose                 # Debian: fetch, unpack, clean
    python -m experiments.corpora build data/prose --folder NAME=DIR ...      # any folders of text
    python -m experiments.corpora leaks experiments/FILE.py        # does validation text recur?

`build` gathers prose of four kinds (essays, handbooks, manuals, kernel), cleans it
(`experiments.prose`) and writes one JSON-lines file a kind, apart, for a mixture; `sources.json`
records packages, versions, hashes and how many bytes were kept of each. It ends with the
`data.corpus` of the mixture, in proportion to the bytes of each kind. Packages are fetched with
`apt-get download` and unpacked with `dpkg -x`: nothing is installed. Their licences are inside
(usr/share/doc/NAME/copyright); do not commit the text.

`leaks` counts how many n-grams of the fixed validation blocks also stand within a training block.
Expected: some 60 MB in all, and few n-grams of 50 bytes that recur, quotations and headers mostly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.prose import Seen, documents

KINDS: dict[str, tuple[str, ...]] = {
    "essays": ("anarchism", "dict-jargon", "fortunes"),
    "handbooks": (
        "debian-handbook",
        "installation-guide-amd64",
        "gimp-help-en",
        "libreoffice-help-en-us",
        "debian-policy",
    ),
    "manuals": (
        "python3.11-doc",
        "postgresql-doc-15",
        "perl-doc",
        "git-doc",
        "rust-doc",
        "python-django-doc",
        "python-scipy-doc",
        "apache2-doc",
        "exim4-doc-html",
        "octave-doc",
        "r-doc-html",
        "bash-doc",
    ),
    "kernel": ("linux-doc-6.1",),
}
"""Packages of Debian 12 by kind; of duplicates, the first in this order stays."""
NGRAM = 50
"""Length of the n-grams that `leaks` compares, in tokens."""


def fetch(packages: Sequence[str], folder: Path) -> dict[str, dict[str, str]]:
    """Download and unpack packages into `folder/NAME`; version and SHA-256 of each.

    A package that lies unpacked is not fetched again.

    Raises:
        SystemExit: `apt-get` or `dpkg` is missing or refuses.
    """
    facts: dict[str, dict[str, str]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        note = folder / f"{package}.json"
        if not note.exists():
            print(f"fetching {package}", flush=True)
            _run("apt-get", "download", "-q", package, folder=folder)
            (archive,) = folder.glob(f"{package}_*.deb")
            _run("dpkg", "-x", archive.name, package, folder=folder)
            version = archive.name.split("_")[1].replace("%3a", ":")
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
            note.write_text(json.dumps({"version": version, "sha256": digest}))
            archive.unlink()
        facts[package] = json.loads(note.read_text())
    return facts


def _run(*command: str, folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(
            f"{command[0]} is not on this machine; give folders of text instead: --folder NAME=DIR."
        )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip().splitlines()[-1]}")


def build(out: Path, sources: Mapping[str, Mapping[str, Path]], facts: Mapping[str, Any]) -> str:
    """Clean the sources of every kind into `out/KIND.jsonl`; returns the mixture's `data.corpus`.

    Args:
        out: folder, made if it is missing.
        sources: kind -> name of a source -> folder of its files.
        facts: name of a source -> what is known about where it came from.
    """
    out.mkdir(parents=True, exist_ok=True)
    seen, record, sizes = Seen(), {}, {}
    for kind, folders in sources.items():
        path, size = out / f"{kind}.jsonl", 0
        with path.open("w", encoding="utf-8") as file:
            for name, folder in folders.items():
                kept = count = 0
                for text in documents(folder, seen):
                    file.write(json.dumps({"text": text, "source": name}, ensure_ascii=False))
                    file.write("\n")
                    kept, count = kept + len(text.encode()), count + 1
                record[name] = {"kind": kind, "documents": count, "bytes": kept} | facts.get(
                    name, {}
                )
                print(f"{kind:10} {name:26} {count:6} documents {kept / 1e6:7.2f} MB", flush=True)
                size += kept
        sizes[kind] = size
        record[kind] = {"bytes": size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (out / "sources.json").write_text(json.dumps(record, indent=1))
    return mixture(out, sizes)


def mixture(out: Path, sizes: Mapping[str, int]) -> str:
    """The `data.corpus` of the kinds that have text, weighted by their bytes."""
    total = sum(sizes.values())
    parts = [(kind, size / total) for kind, size in sizes.items() if size >= total / 1000]
    if not parts:
        sys.exit("no prose was found; are these folders of HTML or plain English text?")
    if len(parts) == 1:
        return f"jsonl:{out}/{parts[0][0]}.jsonl"
    return "mix:" + " + ".join(f"{share:.3f} jsonl:{out}/{kind}.jsonl" for kind, share in parts)


def hashes(tokens: NDArray[Any], length: int) -> NDArray[np.uint64]:
    """A 64-bit hash of every run of `length` tokens of one row; empty where the row is shorter."""
    count = len(tokens) - length + 1
    found = np.zeros(max(count, 0), dtype=np.uint64)
    factor = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        for start in range(length if count > 0 else 0):
            found = found * factor + tokens[start : start + count].astype(np.uint64) + np.uint64(1)
    return found


def overlap(
    validation: Sequence[NDArray[Any]], train: Iterator[NDArray[Any]], length: int = NGRAM
) -> float:
    """Share of the validation rows' n-grams that stand in the training rows, from 0 to 1."""
    wanted = np.concatenate([hashes(row, length) for row in validation])
    if not len(wanted):
        return 0.0
    distinct = np.unique(wanted)
    there = np.zeros(len(distinct), dtype=bool)
    for row in train:
        here = hashes(row, length)
        place = np.minimum(np.searchsorted(distinct, here), len(distinct) - 1)
        there[place[distinct[place] == here]] = True
    return float(there[np.searchsorted(distinct, wanted)].mean())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="gather and clean prose")
    builder.add_argument("out", type=Path)
    builder.add_argument(
        "--folder", action="append", default=[], metavar="NAME=DIR", help="in place of Debian"
    )
    finder = commands.add_parser("leaks", help="n-grams of validation that stand in training")
    finder.add_argument("experiment", type=Path)
    finder.add_argument("--ngram", type=int, default=NGRAM)
    arguments = parser.parse_args()
    if arguments.command == "leaks":
        _leaks(arguments.experiment, arguments.ngram)
        return
    out: Path = arguments.out
    if arguments.folder:
        given = dict(text.partition("=")[::2] for text in arguments.folder)
        if missing := [text for text in given.values() if not Path(text).is_dir()]:
            sys.exit(f"--folder: {missing[0]!r} is not a directory; write NAME=DIR.")
        print(build(out, {name: {name: Path(path)} for name, path in given.items()}, {}))
        return
    packages = out / "packages"
    facts = fetch([name for names in KINDS.values() for name in names], packages)
    sources = {kind: {name: packages / name for name in names} for kind, names in KINDS.items()}
    print(f"data.corpus={build(out, sources, facts)!r}")


def _leaks(experiment: Path, length: int) -> None:
    from scaling.config.experiment import load_experiment
    from scaling.data.prepare import prepare

    configs = {run.data.corpus: run.data for run in load_experiment(experiment, []).runs}
    for corpus, data in configs.items():
        prepared = prepare(data)
        train, blocks = prepared.train, prepared.train.n_blocks
        rows = (row for at in range(0, blocks, 512) for row in train.gather(_range(at, blocks)))
        share = overlap(list(prepared.validation), rows, length)
        print(f"{corpus}: {share:.2%} of the validation blocks' {length}-grams stand in training")


def _range(start: int, end: int) -> NDArray[np.int64]:
    return np.arange(start, min(start + 512, end))


if __name__ == "__main__":
    main()
