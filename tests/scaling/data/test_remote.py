"""Prepared corpora on remote storage: fetched instead of tokenised, checked, resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from linscale.errors import LinscaleError
from scaling.config.run import DataConfig
from scaling.data import remote
from scaling.data import tokenised as shards
from scaling.data.prepare import prepare
from scaling.data.token_store import INDEX

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A file system in memory, named as the remote storage."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    monkeypatch.setenv("LINSCALE_REMOTE", "memory://bucket/prepared/")
    yield files
    files.store.clear()


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were tokenised."""
    done: list[Path] = []

    class Spy(shards.ShardWriter):
        def __init__(self, folder: Path, *arguments: Any) -> None:
            done.append(folder)
            super().__init__(folder, *arguments)

    monkeypatch.setattr(shards, "ShardWriter", Spy)
    return done


@pytest.fixture
def data(corpus: Path) -> DataConfig:
    return DataConfig(
        corpus=f"text:{corpus}/*.txt",
        tokenizer="bpe:290",
        sequence_length=32,
        validation_fraction=0.2,
        validation_blocks=4,
    )


def test_the_second_machine_tokenises_nothing(
    storage: Any, tokenised: list[Path], data: DataConfig, tmp_path: Path
) -> None:
    first = prepare(data, tmp_path / "one")
    second = prepare(data, tmp_path / "two")
    assert len(tokenised) == 1
    assert second.fingerprint() == first.fingerprint()
    assert second.tokenizer().fingerprint == first.tokenizer().fingerprint
    second.verify()
    names = {Path(name).name for name in storage.find("/bucket/prepared")}
    assert names == {INDEX, "tokenizer.json", "train-00000.bin", "validation-00000.bin"}


def test_a_copy_goes_on_where_it_stopped(
    storage: Any,
    tokenised: list[Path],
    data: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = prepare(data, tmp_path / "one")
    folder = tmp_path / "two" / first.folder.name
    folder.mkdir(parents=True)
    (folder / "train-00000.bin").write_bytes((first.folder / "train-00000.bin").read_bytes())
    real, opened = storage.open, []

    def spy(path: str, *arguments: Any, **options: Any) -> Any:
        opened.append(Path(path).name)
        return real(path, *arguments, **options)

    monkeypatch.setattr(storage, "open", spy)
    prepare(data, tmp_path / "two").verify()
    assert len(tokenised) == 1
    assert "validation-00000.bin" in opened
    assert "train-00000.bin" not in opened


def test_damage_on_the_way_is_found(
    storage: Any, tokenised: list[Path], data: DataConfig, tmp_path: Path
) -> None:
    first = prepare(data, tmp_path / "one")
    path = f"/bucket/prepared/{first.folder.name}/train-00000.bin"
    content = bytearray(storage.cat_file(path))
    content[10] ^= 1
    storage.pipe_file(path, bytes(content))
    with pytest.raises(LinscaleError, match=r"train-00000\.bin does not have the content"):
        prepare(data, tmp_path / "two")
    assert not list((tmp_path / "two").glob("*/train-*"))
    assert len(tokenised) == 1


def test_storage_that_is_not_there_is_explained(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setenv("LINSCALE_REMOTE", "nowhere://bucket")
    with pytest.raises(LinscaleError, match=r"cannot be used .* Check LINSCALE_REMOTE"):
        prepare(data, tmp_path / "one")
    assert waits == []


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds between attempts, which are not waited."""
    taken: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", taken.append)
    return taken


class Failing:
    """A method of the storage that fails so many times, and keeps the names that it did serve."""

    def __init__(self, method: Any, times: float, error: Exception) -> None:
        self.method, self.left, self.error = method, times, error
        self.served: list[str] = []

    def __call__(self, path: str, *arguments: Any, **options: Any) -> Any:
        if self.left > 0 and not path.endswith("train-00000.bin"):
            self.left -= 1
            raise self.error
        self.served.append(Path(path).name)
        return self.method(path, *arguments, **options)


def test_a_storage_that_stutters_is_asked_again(
    storage: Any,
    tokenised: list[Path],
    data: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    put = Failing(storage.put_file, 3, ConnectionError("reset by peer"))
    monkeypatch.setattr(storage, "put_file", put)
    first = prepare(data, tmp_path / "one")
    assert waits == [1.0, 2.0, 4.0]
    assert put.served == ["train-00000.bin", "validation-00000.bin", "tokenizer.json", INDEX]
    assert "reset by peer; trying again in 1 s" in capsys.readouterr().err
    waits.clear()
    monkeypatch.setattr(storage, "open", Failing(storage.open, 2, TimeoutError("no answer")))
    second = prepare(data, tmp_path / "two")
    assert waits == [1.0, 2.0]
    assert second.fingerprint() == first.fingerprint()
    second.verify()
    assert len(tokenised) == 1


def test_what_could_not_be_put_there_is_put_there_later(
    storage: Any,
    tokenised: list[Path],
    data: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
) -> None:
    real = storage.put_file
    monkeypatch.setattr(storage, "put_file", Failing(real, float("inf"), OSError("unreachable")))
    for _ in range(2):
        with pytest.raises(LinscaleError, match=r"unreachable.* run the same command again"):
            prepare(data, tmp_path / "one")
    assert waits == [1.0, 2.0, 4.0, 8.0] * 2
    later = Failing(real, 0, OSError())
    monkeypatch.setattr(storage, "put_file", later)
    prepare(data, tmp_path / "one")
    assert later.served == ["validation-00000.bin", "tokenizer.json", INDEX]
    prepare(data, tmp_path / "one")
    prepare(data, tmp_path / "two").verify()
    assert len(later.served) == 3
    assert len(tokenised) == 1


def test_what_was_tokenised_before_the_storage_was_named_is_put_there(
    storage: Any, data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LINSCALE_REMOTE")
    folder = prepare(data, tmp_path / "one").folder
    assert not storage.find("/bucket")
    monkeypatch.setenv("LINSCALE_REMOTE", "memory://bucket/prepared")
    prepare(data, tmp_path / "one")
    assert storage.exists(f"/bucket/prepared/{folder.name}/{INDEX}")


def test_a_refusal_is_not_asked_again(
    storage: Any,
    data: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    waits: list[float],
) -> None:
    refuse = Failing(storage.put_file, 1, PermissionError("read-only"))
    monkeypatch.setattr(storage, "put_file", refuse)
    with pytest.raises(LinscaleError, match="PermissionError: read-only"):
        prepare(data, tmp_path / "one")
    assert waits == []
