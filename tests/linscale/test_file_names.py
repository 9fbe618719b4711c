"""Names read from files never lead out of their folder, wherever they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from linscale.file_names import FileNameError, find_inside
from models.interop.tensors import shard_files
from scaling.data.prepare import prepare
from scaling.data.token_store import INDEX, Index
from scaling.evaluation.targets import targets
from scaling.record.checkpoint_files import CheckpointError, read_manifest
from scaling.record.pretrained import find_checkpoint
from scaling.sweep.status import status_rows
from tests.support.small_corpora import sample_documents, write_corpus

OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "..", "", "a\\..\\x", "C:/x", "a\0b", 7, None, ["a"]]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: Any) -> None:
    with pytest.raises(FileNameError):
        find_inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "a.bin", "a/b", "..a", "a..b", "./a", "名"])
def test_names_inside_are_paths(tmp_path: Path, name: str) -> None:
    assert find_inside(tmp_path, name) == tmp_path / name


def test_links_that_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "real").write_text("y")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "within").symlink_to(folder / "real")
    assert find_inside(folder, "within").read_text() == "y"
    for name in ("out", "up/secret"):
        with pytest.raises(FileNameError, match="is a link that leads out"):
            find_inside(folder, name)
        assert find_inside(folder, name, links=True).read_text() == "x"
    (tmp_path / "alias").symlink_to(folder)  # the folder itself may be one
    assert find_inside(tmp_path / "alias", "real").read_text() == "y"


@pytest.mark.parametrize("name", ["../../x.bin", "/x.bin"])
def test_an_index_of_shards(tmp_path: Path, name: str) -> None:
    folder = prepare(write_corpus(tmp_path, sample_documents(60)), tmp_path / "cache").folder
    content = json.loads((folder / INDEX).read_text())
    content["train"]["shards"][0]["file"] = name
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(FileNameError, match="leads out of it"):
        Index.load(folder)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_remote_index_writes_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absolute: bool
) -> None:
    """The storage is somebody else's: its index names a file beside the cache."""
    data = write_corpus(tmp_path, sample_documents(60))
    storage, cache = tmp_path / "storage", tmp_path / "cache"
    monkeypatch.setenv("LINSCALE_REMOTE", f"file://{storage}")
    folder = prepare(data, tmp_path / "first").folder.name
    content = json.loads((storage / folder / INDEX).read_text())
    shard = content["train"]["shards"][0]
    source = storage / folder / shard["file"]
    (source.parent / "stolen.bin").write_bytes(source.read_bytes())
    shard["file"] = f"{tmp_path}/stolen.bin" if absolute else "../../stolen.bin"
    (storage / folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(FileNameError, match="leads out of it"):
        prepare(data, cache)
    assert not (tmp_path / "stolen.bin").exists()
    assert not list(cache.glob("*/*.bin"))


@pytest.mark.parametrize("name", ["../other/model.pt", "/etc/passwd"])
def test_milestones(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"run_id": tmp_path.name, "schema": 1}))
    line = {"tokens": 5, "flops": 1.0, "checkpoint": name}
    (tmp_path / "milestones.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(FileNameError):
        find_checkpoint(tmp_path)
    with pytest.raises(FileNameError):
        targets(tmp_path)


@pytest.mark.parametrize("place", ["files", "file", "trunk_file"])
def test_manifests(tmp_path: Path, place: str) -> None:
    point = {"segment": 0, "step": 1, "file": "a.pt", "wall": 0.0, "trunk_file": "a.pt"}
    entry = {"sha256": "0", "bytes": 1}
    manifest = {"run_id": "r", "files": {"a.pt": entry}, "resume": [point]}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    assert read_manifest(path).run_id == "r"
    if place == "files":
        manifest["files"] = {"../a.pt": entry}
    else:
        manifest["resume"] = [point | {place: "/a.pt"}]
    path.write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="leads out of it"):
        read_manifest(path)


def test_sweeps(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": ["../other"]}))
    (row,) = status_rows(tmp_path)  # shown as bad, and not followed
    assert row["state"] == "unreadable"
    assert row["run_id"] == "../other"


def test_weight_maps(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("../a.safetensors", "/a.safetensors"):
        index.write_text(json.dumps({"weight_map": {"w": name}}))
        with pytest.raises(FileNameError):
            shard_files(tmp_path)
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "1").write_bytes(b"")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.safetensors").symlink_to(blobs / "1")  # as the hub's cache has them
    (tmp_path / "snapshot" / index.name).write_text(
        json.dumps({"weight_map": {"w": "a.safetensors"}})
    )
    assert [path.name for path in shard_files(tmp_path / "snapshot")] == ["a.safetensors"]
