"""Recovery, its law and its frontier, from sweeps made of a law that is known."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.judge.comparison import compare, layers
from analysis.judge.linearization_law import fit
from analysis.judge.recovery import LINEARIZED, equivalent, frontier, read, summarise
from analysis.judge.variants import variants
from analysis.report.linearization_report import without_share, write

SIZES = {"d16": 8_000, "d32": 40_000, "d64": 150_000}
BUDGETS = (25_000, 50_000, 100_000, 200_000, 400_000)
A, B, C = 0.2, 0.8, 0.3
TEACHER, SURGERY, STEP_FLOPS = 1.3, 3.3, 1e6
WINDOWS = {"window": 1.4, "window + sink": 1.42, "equal window": 1.31, "equal window + sink": 1.32}


def unrecovered(tokens: float, n: float) -> float:
    return A * (tokens / 1e5) ** -B * (n / 1e5) ** C


def write_run(
    root: Path, arch: str, size: str, seed: int, losses: dict[int, float], linear: bool,
    stages: dict[str, Any] | None = None, options: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    name = "-".join(
        [arch, size, str(seed), str(linear), *map(str, (options or stages or {}).values())]
    )
    folder, n = root / name, SIZES[size]
    folder.mkdir(parents=True)
    linearize = {"teacher": "t", **(stages or {})} if linear else {"teacher": ""}
    config = {
        "name": folder.name, "size": size, "seed": seed, "linearize": linearize,
        "model": {"arch": arch, "dim": 8, "layers": 2, "options": options or {}},
        "data": {"sequence_length": 64, "batch_sequences": 4, "corpus": "kjv",
                 "tokenizer": "bytes"},
        "optim": {"lr": 1e-3}, "schedule": {"kind": "wsd"}, "budget": {"tokens": max(losses)},
    }  # fmt: skip
    per_token = {"total": STEP_FLOPS * n}
    accounting: dict[str, Any] = {
        "n_total": n, "n_non_embedding": n, "n_paper": n,
        "flops_per_token": {"exact": per_token, "paper": per_token},
    }  # fmt: skip
    if linear:
        accounting["stages"] = {
            "transfer_tokens": 10_000,
            "transfer_flops_per_token": {"exact": STEP_FLOPS * n / 2, "paper": STEP_FLOPS * n / 2},
            "flops_per_token": {"exact": STEP_FLOPS * n, "paper": STEP_FLOPS * n},
        }
        linearization = {
            "teacher": {"tokens": 1_600_000, "flops": 1.6e6 * STEP_FLOPS * n},
            "parameters": {"total": n, "transfer": 10, "after": n},
            "tokens": {"transfer": 10_000, "path": max(losses)},
            "counts_from": "after surgery",
            "validation": {"teacher": {"loss": TEACHER}, "surgery": {"loss": SURGERY}},
        }
        if arch == "lolcats":
            linearization |= {
                "counts_from": "the window alone",
                "state_bytes": {"student": 3000, "teacher": 9000},
                "baselines": {
                    name: {"loss": loss, "window": 4, "sink_tokens": 0, "state_bytes": 1000}
                    for name, loss in WINDOWS.items()
                },
                "parts": {
                    str(max(losses)): {
                        "linear off": {"loss": 1.39, "difference": 0.04, "stderr": 0.01},
                        "window off": {"loss": 3.0, "difference": 1.6, "stderr": 0.1},
                        "layers": [
                            {"layer": 0, "linear off": {"difference": 0.01 * seed},
                             "window off": {"difference": 0.5}},
                        ],
                    }
                },
            }  # fmt: skip
        (folder / "linearization.json").write_text(json.dumps(linearization))
    environment = {"data": {"validation_sha256": "abc"}}
    for name, value in (
        ("config", config), ("accounting", accounting), ("environment", environment),
        ("status", {"state": "done"}),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(value))
    lines = [
        {"tokens": t, "val_loss": loss, "train_loss": loss, "val_loss_std": 0.1, "val_blocks": 64,
         "val_bpb": loss, "decayed": True} for t, loss in losses.items()
    ]  # fmt: skip
    (folder / "milestones.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metric = {"segment": "trunk", "split": "train", "step": 1, "tokens": 256, "flops": 1.0,
              "wall": 1.0, "loss": 5.0, "bpb": 5.0, "lr": 1e-3, "grad_norm": 1.0,
              "tokens_per_second": 100.0, "mfu": None}  # fmt: skip
    (folder / "metrics.jsonl").write_text(json.dumps(metric) + "\n")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """SUPRA at three sizes and seeds with 3 % noise, controls from scratch and trained on."""
    random, gap = np.random.default_rng(0), SURGERY - TEACHER
    for size, n in SIZES.items():
        for seed in (1, 2, 3):
            noise = np.exp(0.03 * random.standard_normal(len(BUDGETS)))
            losses = {
                t: TEACHER + gap * unrecovered(t, n) * e
                for t, e in zip(BUDGETS, noise, strict=True)
            }
            write_run(tmp_path / "loop", "supra", size, seed, losses, True)
            scratch = {t: 1.2 + 2 * (t / 25_000) ** -0.5 for t in BUDGETS}
            write_run(tmp_path / "loop", "supra", size, seed, scratch, False)
    write_run(tmp_path / "loop", "llama", "d64", 1, dict.fromkeys(BUDGETS, 1.29), True)
    return tmp_path / "loop"


def test_recovered_share(sweep: Path) -> None:
    recovery = read(sweep)
    linear = recovery.of(LINEARIZED)
    assert set(linear["group"]) == {"supra (linearized)"}
    assert len(linear) == 9 * len(BUDGETS)
    gap = SURGERY - TEACHER
    for point in recovery.points.to_dict("records"):
        if point["kind"] == "continued":
            assert math.isnan(point["recovered"])
        else:
            # From scratch, too: by the losses of the linearized runs of its size.
            assert point["recovered"] == pytest.approx((SURGERY - point["loss"]) / gap)


@pytest.fixture
def beside_windows(tmp_path: Path) -> Path:
    """LoLCATs with three seeds, and a teacher and a window that were trained alike."""
    for seed, loss in ((1, 1.34), (2, 1.35), (3, 1.36)):
        write_run(tmp_path / "w", "lolcats", "d64", seed, {50_000: 1.41, 100_000: loss}, True)
        alike = {"lora_rank": 8}
        write_run(tmp_path / "w", "llama", "d64", seed, {90_000: 1.3}, True, alike)
        options = {"feature_map": "none", "window": 4}
        write_run(tmp_path / "w", "lolcats", "d64", seed, {90_000: 1.37}, True, alike, options)
    return tmp_path / "w"


def test_a_run_without_attention_transfer_is_read(sweep: Path) -> None:
    """Its record says that the stage of no tokens costs nothing."""
    for file in sweep.glob("supra-*-True/accounting.json"):
        values = json.loads(file.read_text())
        values["stages"]["transfer_tokens"] = 0
        values["stages"]["transfer_flops_per_token"] = {"exact": 0.0, "paper": 0.0}
        file.write_text(json.dumps(values))
    assert len(read(sweep).of(LINEARIZED)) == 9 * len(BUDGETS)


def test_shares_beyond_a_window(beside_windows: Path) -> None:
    """By hand: the window alone loses 0.1 to the teacher, surgery 2.0."""
    recovery = read(beside_windows)
    students = recovery.points[recovery.points["group"] == "lolcats (linearized)"]
    share = {(p["seed"], p["tokens"]): p for p in students.to_dict("records")}
    assert share[2, 100_000]["recovered"] == pytest.approx((1.4 - 1.35) / 0.1)
    assert share[2, 100_000]["of_surgery"] == pytest.approx((3.3 - 1.35) / 2.0)
    assert share[1, 50_000]["recovered"] == pytest.approx(-0.1)  # worse than its window
    alike = recovery.points[recovery.points["group"] == "llama (trained alike)"]
    assert alike["recovered"].tolist() == pytest.approx([1.0] * 3)
    window = recovery.points[recovery.points["group"] == "lolcats (window of 4)"]
    assert window["recovered"].tolist() == pytest.approx([0.3] * 3)


def test_a_student_beside_windows(beside_windows: Path, tmp_path: Path) -> None:
    recovery = read(beside_windows)
    table = compare(recovery, "lolcats (linearized)", "d64").set_index("what")
    assert table["loss"].to_dict() == pytest.approx({
        "teacher": 1.3, "its window alone, untrained (4)": 1.4,
        "its window and the first token, untrained (4)": 1.42,
        "a window of equal state, untrained (4)": 1.31,
        "a window of equal state with the first token, untrained (4)": 1.32,
        "after surgery": 3.3, "student": 1.35, "student, linear part off": 1.39,
        "student, window off": 3.0, "teacher, trained alike": 1.3,
        "window of 4 alone, trained alike": 1.37,
    })  # fmt: skip
    # t_{0.95, 2} = 2.920, and the standard deviation of the three seeds is 0.01.
    assert table.loc["student", "high"] == pytest.approx(1.35 + 2.919986 * 0.01 / math.sqrt(3))
    assert table.loc["student", "recovered"] == pytest.approx(0.5)
    assert table.loc["student, linear part off", "recovered"] == pytest.approx(0.1)
    assert table.loc["student", "state bytes"] == 3000
    by_layer = layers(recovery, "lolcats (linearized)", "d64").to_dict("records")
    assert by_layer == [{"layer": 0, "linear part off": pytest.approx(0.02), "window off": 0.5}]
    page = write(beside_windows, tmp_path / "report").read_text()
    assert "beyond its window alone" in page
    assert "Beside windows alone" in page


def test_runs_of_other_options_are_no_seeds_of_one_another(tmp_path: Path) -> None:
    """Two windows and two seeds of each: two groups with zeros of their own."""
    for window, losses in ((4, (1.34, 1.36)), (16, (1.30, 1.32))):
        for seed, loss in enumerate(losses, start=1):
            options = {"window": window, "feature_map": "hedgehog", "llama": {"window": None}}
            write_run(tmp_path / "w", "lolcats", "d64", seed, {100_000: loss}, True, None, options)
    for file in (tmp_path / "w").glob("*16*/linearization.json"):
        values = json.loads(file.read_text())
        values["baselines"]["window"]["loss"] = 1.32
        file.write_text(json.dumps(values))
    points = read(tmp_path / "w").points
    rows = {r["group"]: r for r in summarise(points, "loss").to_dict("records")}
    assert {g: (r["mean"], r["seeds"]) for g, r in rows.items()} == {
        "lolcats-window=4 (linearized)": (pytest.approx(1.35), 2),
        "lolcats-window=16 (linearized)": (pytest.approx(1.31), 2),
    }
    zeros = {(p["group"], p["zero_loss"]) for p in points.to_dict("records")}
    assert zeros == {("lolcats-window=4 (linearized)", 1.4),
                     ("lolcats-window=16 (linearized)", 1.32)}  # fmt: skip
    assert set(points["base"]) == {"lolcats"}


def test_options_that_go_with_the_size_make_no_variant() -> None:
    def config(window: int, heads: int, budget: int) -> dict[str, Any]:
        return {"model": {"options": {"window": window, "feature_size": heads}},
                "linearize": {"teacher": f"t{heads}", "transfer_tokens": budget}}  # fmt: skip

    runs = {"a": ("lolcats", "s", config(4, 8, 10)), "b": ("lolcats", "s", config(4, 8, 20)),
            "c": ("lolcats", "m", config(4, 16, 10))}  # fmt: skip
    assert variants(runs) == {"a": "", "b": "", "c": ""}
    runs["d"] = ("lolcats", "m", config(8, 16, 10))
    assert variants(runs) == {"a": "-window=4", "b": "-window=4", "c": "-window=4",
                              "d": "-window=8"}  # fmt: skip


def test_a_record_without_windows_has_no_headline(tmp_path: Path) -> None:
    """Records from before windows were measured say only what they know."""
    write_run(tmp_path / "w", "lolcats", "d64", 1, {100_000: 1.4}, True)
    (file,) = tmp_path.glob("w/*/linearization.json")
    old = {k: v for k, v in json.loads(file.read_text()).items()
           if k in ("teacher", "parameters", "validation")}  # fmt: skip
    file.write_text(json.dumps(old))
    (point,) = read(tmp_path / "w").points.to_dict("records")
    assert math.isnan(point["recovered"])
    assert point["of_surgery"] == pytest.approx(0.95)
    assert "was not measured" in write(tmp_path / "w", tmp_path / "report").read_text()


def test_compute_counts_the_cheaper_stage(sweep: Path) -> None:
    points = read(sweep).points
    linear = points[(points["kind"] == LINEARIZED) & (points["tokens"] == 50_000)]
    for point in linear.to_dict("records"):
        expected = STEP_FLOPS * SIZES[point["size"]] * (10_000 / 2 + 40_000)
        assert point["flops"] == pytest.approx(expected)
    scratch = points[(points["kind"] == "scratch") & (points["tokens"] == 50_000)]
    for point in scratch.to_dict("records"):
        assert point["flops"] == pytest.approx(STEP_FLOPS * SIZES[point["size"]] * 50_000)


def test_intervals_over_seeds() -> None:
    frame = pd.DataFrame(
        [{"group": "g", "kind": "k", "size": "s", "n_params": 1, "tokens": 10, "loss": x}
         for x in (1.0, 2.0, 4.0)]
        + [{"group": "g", "kind": "k", "size": "s", "n_params": 1, "tokens": 20, "loss": 1.0}]
    )  # fmt: skip
    three, one = summarise(frame, "loss").to_dict("records")
    # t_{0.95, 2} = 2.920; standard deviation of 1, 2, 4 is 1.5275.
    half = 2.919986 * 1.527525 / math.sqrt(3)
    assert (three["mean"], three["seeds"]) == (pytest.approx(7 / 3), 3)
    assert (three["lo"], three["hi"]) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-5)
    assert math.isnan(one["lo"])


def test_law_is_found_again(sweep: Path) -> None:
    law = fit(read(sweep), "supra (linearized)")
    for name, true in (("a", A), ("b", B), ("c", C)):
        low, high = law.interval(name)
        # Nine clusters and 3 % noise: within three standard errors of the truth.
        assert low - (high - low) < true < high + (high - low)
        assert law.params[name] == pytest.approx(true, rel=0.05)
        assert low < law.params[name] < high
    assert 0.01 < law.residual < 0.05
    assert law.holdout < 0.1
    value, low, high = law.predict([1e5], 1e5)
    assert value[0] == pytest.approx(law.params["a"])
    assert low[0] < value[0] < high[0]
    text = " ".join(law.warnings)
    assert "uptraining tokens span a factor of 16.0" in text
    assert "all teachers saw 1,600,000 tokens" in text
    assert "holds 0" not in text
    assert (fit(read(sweep), "supra (linearized)").draws == law.draws).all()


def test_law_warns_of_milestones_at_the_teacher(sweep: Path) -> None:
    write_run(sweep, "supra", "d32", 9, dict.fromkeys(BUDGETS, TEACHER - 0.01), True)
    law = fit(read(sweep), "supra (linearized)")
    assert any("5 milestones are within 0.5%" in text for text in law.warnings)
    assert len(law.points) == 9 * len(BUDGETS)


def test_no_law_from_one_size(sweep: Path) -> None:
    for path in [*sweep.glob("supra-d16-*"), *sweep.glob("supra-d32-*")]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    with pytest.raises(AnalysisError, match="two budgets and two sizes; there are 15"):
        fit(read(sweep), "supra (linearized)")


def test_frontier_and_equivalent_compute() -> None:
    points = pd.DataFrame({"flops": [1.0, 10.0, 20.0, 100.0], "loss": [4.0, 2.0, 3.0, 1.0]})
    edge = frontier(points)
    assert edge["flops"].tolist() == [1.0, 10.0, 100.0]
    # Between (10, 2) and (100, 1) the logarithm of loss halves when that of compute does.
    assert equivalent(edge, [2.0, math.sqrt(2.0)]) == pytest.approx([10, 10**1.5])
    assert np.isnan(equivalent(edge, [5.0, 0.5])).all()


def test_report(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "quickstart"
    write_run(other, "llama", "d64", 0, {400_000: 1.6, 1_600_000: 1.25}, False)
    path = write(sweep, tmp_path / "report", scratch_dir=other)
    page = path.read_text()
    assert not re.search(r"(src|href)=\"https?:", page)
    for name in ("recovered", "frontier", "law"):
        assert (path.parent / "figures" / f"{name}.png").stat().st_size > 10_000
    compute = pd.read_csv(path.parent / "tables" / "compute.csv")
    assert (compute["with the teacher's"] > compute["FLOPs"]).all()
    known = compute["from scratch"].notna()
    assert known.any()
    ratio = compute["from scratch"] / compute["FLOPs"]
    assert compute["multiplier"][known].to_numpy() == pytest.approx(ratio[known].to_numpy())
    (record,) = json.loads((path.parent / "law.json").read_text())
    assert record["params"]["b"] == pytest.approx(B, rel=0.05)
    assert "nothing here says" in page
    again = write(sweep, tmp_path / "again", scratch_dir=other)
    assert again.read_bytes() == path.read_bytes()


def test_report_refuses_other_text(sweep: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_run(other, "llama", "d64", 0, {400_000: 1.6}, False)
    environment = next(other.glob("*/environment.json"))
    environment.write_text(json.dumps({"data": {"validation_sha256": "xyz"}}))
    with pytest.raises(AnalysisError, match="other text"):
        write(sweep, tmp_path / "report", scratch_dir=other)


def test_sweep_without_linearized_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "llama", "d64", 0, {400_000: 1.6}, False)
    with pytest.raises(AnalysisError, match="no finished linearized run"):
        read(tmp_path)


def test_controls_without_a_share_are_explained() -> None:
    points = pd.DataFrame({
        "group": ["lolcats-window=8 (linearized)", "llama (trained alike)", "llama (continued)"],
        "kind": ["linearized", "trained alike", "continued"],
        "recovered": [0.9, math.nan, math.nan],
    })  # fmt: skip
    text = without_share(points)
    assert "trained alike: no share" in text
    assert "of several variants of it each has its own" in text
    assert "continued" not in text
    assert without_share(points.iloc[[0, 2]]) == ""
