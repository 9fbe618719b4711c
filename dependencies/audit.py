"""`make audit`: the locked versions against stored advisories. Asks nobody; reads files alone.

    python -m dependencies.audit             against advisories.json
    python -m dependencies.audit FOLDER      against a checkout of an advisory database in OSV's
                                             form (YAML, JSON), as the Python Packaging Authority
                                             keeps one; stores what it has on the locked packages

Exit codes: 0, nothing is known against them; 1, something is; 2, the audit did not run. An audit
knows what its list knows: which packages it covers, and how old it is, is said each time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from dependencies.lock import CUDA, FOLDER, LOCK, TORCH, read

STORED = FOLDER / "advisories.json"
OLD = 30
"""Days after which a list is called old."""


@dataclass(frozen=True)
class Advisory:
    """What is known against some versions of one package."""

    id: str
    aliases: tuple[str, ...]
    package: str
    ranges: tuple[tuple[str, str, bool], ...]
    """The first version that is affected, the one at which that ends (empty: never), and whether
    this one is affected, too."""
    versions: tuple[str, ...]
    """Versions that are affected outside of the ranges."""

    def affects(self, version: str) -> bool:
        """Whether a version is affected."""
        here = Version(Version(version).public)  # 2.13.0+cpu is a build of 2.13.0
        if any(here == Version(each) for each in self.versions if _is_version(each)):
            return True
        return any(
            Version(first) <= here
            and (not end or here < Version(end) or (included and here == Version(end)))
            for first, end, included in self.ranges
        )


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def records(folder: Path) -> Iterator[dict[str, Any]]:
    """All records in a folder, at any depth, that are not withdrawn."""
    import yaml

    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".yaml", ".json"):
            continue
        text = path.read_text(encoding="utf-8")
        record = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if isinstance(record, dict) and "affected" in record and "withdrawn" not in record:
            yield record


def advisories(record: dict[str, Any], names: set[str]) -> Iterator[Advisory]:
    """What a record in OSV's form says of these packages of Python's index."""
    for affected in record["affected"]:
        package = affected.get("package", {})
        name = canonicalize_name(str(package.get("name", "")))
        if package.get("ecosystem") != "PyPI" or name not in names:
            continue
        ranges = tuple(
            span
            for part in affected.get("ranges", ())
            if part["type"] == "ECOSYSTEM"
            for span in _spans(part["events"])
        )
        listed = [] if ranges else affected.get("versions", ())  # else they repeat the ranges
        yield Advisory(
            id=str(record["id"]),
            aliases=tuple(map(str, record.get("aliases", ()))),
            package=name,
            ranges=ranges,
            versions=tuple(map(str, listed)),
        )


def _spans(events: list[dict[str, Any]]) -> Iterator[tuple[str, str, bool]]:
    """Events in order of versions: where it begins, and the next event that ends it."""
    first = ""
    for event in events:
        if "introduced" in event:
            first = str(event["introduced"])
        elif first and (event.keys() & {"fixed", "last_affected"}):
            included = "last_affected" in event
            yield first, str(event["last_affected" if included else "fixed"]), included
            first = ""
    if first:
        yield first, "", False


def locked() -> dict[str, set[str]]:
    """Package -> the versions that some platform gets."""
    found: dict[str, set[str]] = {}
    for path in (LOCK, TORCH, CUDA):
        for entry in read(path):
            found.setdefault(entry.name, set()).add(entry.version)
    return found


def store(folder: Path) -> None:
    """Keep what a database says of the locked packages; it is as old as its newest record."""
    names = set(locked())
    found = list(records(folder))
    if not found:
        print(f"Not audited: {folder} has no records in OSV's form.")
        raise SystemExit(2)
    known = [asdict(each) for record in found for each in advisories(record, names)]
    state = max(str(record.get("modified", ""))[:10] for record in found)
    document = {"state": state, "covers": sorted(names), "advisories": known}
    STORED.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def audit(document: dict[str, Any], versions: dict[str, set[str]], today: date) -> list[str]:
    """Lines to print; the last says what was compared, those before it what was found."""
    known = [
        Advisory(
            item["id"], tuple(item["aliases"]), item["package"],
            tuple((first, end, included) for first, end, included in item["ranges"]),
            tuple(item["versions"]),
        )
        for item in document["advisories"]
    ]  # fmt: skip
    lines = [
        f"{advisory.package} {version}: {', '.join((advisory.id, *advisory.aliases))}"
        for advisory in known
        for version in sorted(versions.get(advisory.package, ()))
        if advisory.affects(version)
    ]
    covered = set(document["covers"]) & set(versions)
    left = len(versions) - len(covered)
    age = (today - date.fromisoformat(document["state"])).days
    said = f"{len(known)} stored advisories, {len(covered)} packages, list of {document['state']}"
    said += f" ({age} days old: store a newer one)" if age > OLD else ""
    said += f"; NOT audited: the other {left} packages" if left else ""
    return [*lines, f"{len(lines)} known against what is locked. {said}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="of an advisory database")
    folder = parser.parse_args().folder
    if folder:
        store(folder)
    if not STORED.is_file():
        print(f"Not audited: {STORED} is not there; give the folder of an advisory database.")
        raise SystemExit(2)
    lines = audit(json.loads(STORED.read_text(encoding="utf-8")), locked(), date.today())
    print("\n".join(lines))
    raise SystemExit(1 if lines[1:] else 0)


if __name__ == "__main__":
    main()
