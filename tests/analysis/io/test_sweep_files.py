"""A sweep in a zip file reads as its folder does, and a zip from elsewhere can do no harm."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from analysis.errors import AnalysisError
from analysis.io.evals import load_evals
from analysis.io.frames import words
from analysis.io.records import load_sweep
from analysis.io.sweep_files import find_sweep, open_sweep, pack, report_folder, unpacked
from analysis.report.report import write_report
from scaling.cli.main import app
from tests.support.make_runs import write_sweep


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "demo"
    return write_sweep(root, dims=(32, 64, 96, 128), log_lines=20)


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "demo.zip"
    pack(folder, out)
    return out


def zipped(path: Path, names: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in names.items():
            archive.writestr(name, text)
    return path


def test_points_curves_and_evaluations_are_the_folders(folder: Path, packed: Path) -> None:
    plain, zipped_ = load_sweep(folder), load_sweep(packed)
    for name in ("runs", "points", "curves", "exclusions"):
        pd.testing.assert_frame_equal(getattr(zipped_, name), getattr(plain, name))
    assert zipped_.name == plain.name == "demo"
    assert zipped_.notes == plain.notes
    pd.testing.assert_frame_equal(load_evals(packed, zipped_), load_evals(folder, plain))


def test_a_report_has_a_page_for_every_run(folder: Path, packed: Path, tmp_path: Path) -> None:
    page = write_report(packed, tmp_path / "out", bootstrap=100)
    runs = {path.stem for path in (page.parent / "runs").glob("*.html")}
    assert runs == {path.parent.name for path in folder.glob("*/config.json")}


def test_the_path_of_the_folder_finds_the_zip_beside_it(packed: Path) -> None:
    assert find_sweep(packed.with_suffix("")) == packed
    assert len(load_sweep(packed.with_suffix("")).points) == len(load_sweep(packed).points)
    assert find_sweep(packed.parent / "other") is None
    assert report_folder(packed) == report_folder(packed.with_suffix(""))
    assert report_folder(packed) == packed.with_name("demo-report")


def test_commands_take_it(packed: Path) -> None:
    status = CliRunner().invoke(app, ["status", str(packed), "--json"])
    assert status.exit_code == 0, status.output
    assert {row["state"] for row in json.loads(status.stdout)} == {"done"}
    fit = CliRunner().invoke(app, ["fit", str(packed.with_suffix("")), "--bootstrap", "0"])
    assert fit.exit_code == 0, fit.output


def test_without_a_folder_inside_and_with_a_systems_own_files(folder: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat.zip"
    shutil.make_archive(str(flat.with_suffix("")), "zip", folder)
    assert len(load_sweep(flat).points) == len(load_sweep(folder).points)
    nested = tmp_path / "nested.zip"
    shutil.make_archive(str(nested.with_suffix("")), "zip", folder.parent, folder.name)
    with zipfile.ZipFile(nested, "a") as archive:
        archive.writestr("__MACOSX/._demo", "")
    assert len(load_sweep(nested).points) == len(load_sweep(folder).points)


@pytest.mark.parametrize(
    "name", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "a//b", "C:/evil", "a\\..\\b"]
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    path = zipped(tmp_path / "inner" / "bad.zip", {"sweep.json": "{}", name: "x"})
    with pytest.raises(AnalysisError, match="no plain relative path"):
        load_sweep(path)
    with pytest.raises(AnalysisError, match="no plain relative path"), unpacked(path):
        pass
    assert [each.name for each in tmp_path.rglob("*") if each.is_file()] == ["bad.zip"]


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b")])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_occur_twice_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(AnalysisError, match="twice"):
        open_sweep(path)


def test_damage_is_an_error_in_words(packed: Path, tmp_path: Path) -> None:
    data = bytearray(packed.read_bytes())
    half = tmp_path / "half.zip"
    half.write_bytes(data[: len(data) // 2])
    with pytest.raises(AnalysisError, match="cannot be read as a zip file"):
        load_sweep(half)
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo(f"demo/{words(load_sweep(packed).runs, 'run_id')[0]}/config.json")
    for at in range(info.header_offset + 80, info.header_offset + 100):
        data[at] ^= 0xFF
    bad = tmp_path / "bad.zip"
    bad.write_bytes(data)
    sweep = load_sweep(bad)
    assert len(sweep.runs) == len(load_sweep(packed).runs) - 1
    assert "config.json" in sweep.exclusions["reason"][0]
