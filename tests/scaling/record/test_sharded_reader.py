"""A sharded checkpoint from elsewhere is data: nothing in it is run, nothing outside is read."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import filesystem, metadata

from scaling.config.schedule import segments
from scaling.record.checkpoint_files import CheckpointError, flush, write_checkpoint
from scaling.record.checkpoints import MANIFEST, Checkpoints
from scaling.record.sharded_reader import METADATA, TensorReader, read_metadata

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


TENSORS = {
    "model.a": torch.arange(12.0).reshape(3, 4),
    "exp_avg.a": torch.ones(4, dtype=torch.bfloat16),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound checkpoint."""
    from torch.distributed.checkpoint.state_dict_saver import save

    path = tmp_path / "checkpoints" / "resume-trunk-5.dcp"
    path.mkdir(parents=True)
    save(dict(TENSORS), checkpoint_id=path, no_dist=True)
    return path


def load(folder: Path) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.state_dict_loader import load

    wanted = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    load(wanted, storage_reader=TensorReader(folder), no_dist=True)
    return wanted


def test_reads_what_pytorch_wrote(folder: Path) -> None:
    for name, tensor in load(folder).items():
        assert torch.equal(tensor, TENSORS[name])


def test_code_in_a_description_is_not_run(folder: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    sound = pickle.loads((folder / METADATA).read_bytes())
    for content in (Trap(sprung), [sound, Trap(sprung)]):
        (folder / METADATA).write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match=r"names .*mkdir.*nothing of it was run"):
            read_metadata(folder)
    sound.planner_data = Trap(sprung)
    (folder / METADATA).write_bytes(pickle.dumps(sound))
    with pytest.raises(CheckpointError, match="mkdir"):
        read_metadata(folder)
    assert not sprung.exists()


def test_entries_that_pytorch_would_unpickle_are_refused(folder: Path) -> None:
    """PyTorch reads an entry of bytes with `torch.load(weights_only=False)`."""
    sound = pickle.loads((folder / METADATA).read_bytes())
    sound.state_dict_metadata["model.a"] = metadata.BytesStorageMetadata()
    (folder / METADATA).write_bytes(pickle.dumps(sound))
    with pytest.raises(CheckpointError, match="BytesStorageMetadata"):
        read_metadata(folder)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "sub/../../../x"])
def test_shares_lie_in_the_folder(folder: Path, name: str) -> None:
    sound = pickle.loads((folder / METADATA).read_bytes())
    index = next(iter(sound.storage_data))
    sound.storage_data[index] = filesystem._StorageInfo(name, 0, 100)
    (folder / METADATA).write_bytes(pickle.dumps(sound))
    with pytest.raises(CheckpointError, match="leads out of it"):
        read_metadata(folder)


@pytest.mark.slow
def test_damaged_descriptions_are_told_in_one_sentence(folder: Path) -> None:
    """2,000 of them, by seed: bits flipped, bytes cut out, repeated or replaced."""
    good = (folder / METADATA).read_bytes()
    draw = random.Random(15)
    refused = 0
    for _ in range(2000):
        bad = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            at, size = draw.randrange(len(bad)), draw.randint(1, 40)
            kind = draw.randrange(4)
            if kind == 0:
                bad[at] ^= 1 << draw.randrange(8)
            elif kind == 1 and len(bad) > size + 8:
                del bad[at : at + size]
            elif kind == 2:
                bad[at:at] = bad[at : at + size]
            else:
                bad[at : at + size] = draw.randbytes(size)
        (folder / METADATA).write_bytes(bytes(bad))
        try:
            read_metadata(folder)
        except CheckpointError:
            refused += 1
    assert refused > 1000


def run_folder(folder: Path, make_run: Any) -> tuple[Path, Any]:
    """The checkpoints of a run, whose resume point is the sharded one."""
    run = make_run()
    common = write_checkpoint(
        folder / "common.pt", {"config": {}, "losses": torch.zeros(0), "step": 5}
    )
    files = {f"{folder.name}/{p.name}": flush(p) for p in folder.iterdir() if p.suffix != ".pt"}
    point = {"segment": 0, "step": 5, "file": folder.name, "wall": 0.0, "trunk_file": folder.name}
    manifest = {
        "schema": 1,
        "run_id": run.run_id,
        "files": files | {f"{folder.name}/common.pt": common},
        "resume": [point],
    }
    (folder.parent / MANIFEST).write_text(json.dumps(manifest))
    return folder.parent, run


@pytest.mark.parametrize("harm", ["none", "unlisted", "not named", "trap"])
def test_files_that_the_manifest_does_not_name_are_not_read(
    folder: Path, make_run: Any, tmp_path: Path, harm: str
) -> None:
    checkpoints, run = run_folder(folder, make_run)
    if harm == "unlisted":
        (folder / "__9_0.distcp").write_bytes(b"x")
    if harm == "trap":  # listed with its hash, as who made the folder would
        (folder / METADATA).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    manifest = json.loads((checkpoints / MANIFEST).read_text())
    if harm == "not named":
        del manifest["files"][f"{folder.name}/{METADATA}"]
    if harm == "trap":
        manifest["files"][f"{folder.name}/{METADATA}"] = flush(folder / METADATA)
    (checkpoints / MANIFEST).write_text(json.dumps(manifest))
    said: list[str] = []
    opened = Checkpoints(checkpoints, run.run_id, segments(run))
    point, content = opened.newest(said.append)
    assert not (tmp_path / "sprung").exists()
    if harm == "none":
        assert point is not None
        assert content["folder"] == str(folder)
        return
    assert point is None
    words = {"unlisted": "does not name", "not named": "does not name", "trap": "mkdir"}
    assert words[harm] in said[0]
    assert "Falling back to the very beginning" in said[0]
    shutil.rmtree(folder)
