"""Plans by measured speeds, against numbers worked out by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from models.config import ConfigError, paper_config
from scaling.cli.main import app
from scaling.config.recipes import paper_recipe
from scaling.plan.plan import rung, trained_tokens
from scaling.plan.speeds import Speeds, speeds
from scaling.system.devices import GIB, Device, find_device

HOST = Device(name="box", peak_flops=1e12, memory=64 * GIB, efficiency=0.4, is_host=True)


def logs(*runs: tuple[str, str, float, list[float], str, int]) -> Speeds:
    """Speeds of (run, arch, FLOPs a token, tokens a second of each line, device, devices)."""
    table = pd.DataFrame(
        [(r, a, f, d, n) for r, a, f, _, d, n in runs],
        columns=["run_id", "arch", "flops_per_token_exact", "device", "devices"],
    )
    lines = [(r, "train", s) for r, _, _, every, _, _ in runs for s in (1.0, 1.0, 1.0, *every)]
    curves = pd.DataFrame(lines, columns=["run_id", "split", "tokens_per_second"])
    return speeds(table, curves, HOST, "there")


def test_between_sizes_by_hand() -> None:
    """FLOP/s 1e9 at 1e4 and 4e9 at 1e6 FLOPs a token: at 1e5, their geometric mean."""
    found = logs(
        ("a", "tnl", 1e4, [1e5] * 5, "cpu", 1), ("b", "tnl", 1e6, [8e3] * 5, "cpu", 2)
    )  # fmt: skip
    middle = found.of("tnl", 1e5)
    assert middle is not None
    assert middle.within
    assert middle.flops == pytest.approx(2e9)


def test_beyond_sizes_the_nearest() -> None:
    found = logs(("a", "tnl", 1e4, [1e5] * 5, "cpu", 1))
    there = found.of("tnl", 1e7)
    assert there is not None
    assert not there.within
    assert there.flops == pytest.approx(1e9)
    assert found.of("llama", 1e4) is None


def test_range_is_of_the_lines_without_the_start() -> None:
    """Eleven lines 1 to 11: tenths at 2 and 10, the median 6; the first three do not count."""
    found = logs(("a", "tnl", 100.0, [float(x) for x in range(1, 12)], "cpu", 1)).of("tnl", 100.0)
    assert found is not None
    assert [found.low, found.flops, found.high] == pytest.approx([200, 600, 1000])


def test_hours_follow_the_speed() -> None:
    run = paper_recipe("tnl", "70M", paper_config("tnl", "70M"))
    device = find_device("h100")
    cost = rung(run, device).flops_per_token
    measured = Speeds(source="there", points={"tnl": np.array([[cost], [1e14], [2e14], [4e14]])})
    row = rung(run, device, speeds=measured)
    total = trained_tokens(run) * cost
    assert row.device_hours == pytest.approx(total / 2e14 / 3600)
    assert row.device_hours_low == pytest.approx(total / 4e14 / 3600)
    assert row.device_hours_high == pytest.approx(total / 1e14 / 3600)
    assert row.utilization == pytest.approx(2e14 / 989.4e12)
    assert (row.speed, rung(replace(run, seed=1), device).speed) == ("measured", "assumed")


def test_other_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ran on NVIDIA H100.*the plan is for box"):
        logs(("a", "tnl", 1e4, [1e5] * 5, "NVIDIA H100 80GB HBM3", 1))
    with pytest.raises(ConfigError, match="no finished run"):
        logs(("a", "tnl", 1e4, [], "cpu", 1))


def test_by_command_on_kept_records(tmp_path: Path) -> None:
    """The quickstart by its own kept records: every size has been measured."""
    arguments = ["plan", "quickstart", "--speeds", "experiments/results/quickstart.zip", "-o"]
    rows = json.loads(CliRunner().invoke(app, [*arguments, str(tmp_path), "--json"]).stdout)
    assert {row["speed"] for row in rows} == {"measured"}
    assert len({round(row["utilization"], 6) for row in rows}) > 4
    text = " ".join(CliRunner().invoke(app, [*arguments, str(tmp_path)]).stdout.split())
    assert "speeds logged in experiments/results/quickstart.zip" in text
