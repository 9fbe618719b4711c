"""evals.jsonl read back with costs, and the average of commonsense reasoning."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis.io.evals import CSR, csr_average, load_evals


def line(task, metric, value, checkpoint="checkpoints/a.pt", tokens=100):
    return {
        "task": task, "metric": metric, "value": value, "stderr": None, "n": 4, "tokens": tokens,
        "flops": 1.0, "checkpoint": checkpoint, "settings": {"limit": None},
    }  # fmt: skip


def test_evals_join_costs_and_average(tmp_path):
    run = {"run_id": "r", "arch": "tnl", "size": "d32", "seed": 0, "n_params": 9.0,
           "counting": "exact", "stages": None}  # fmt: skip
    runs = pd.DataFrame([run | {"flops_per_token_exact": 6.0}, run | {"run_id": "none"}])
    (tmp_path / "r").mkdir()
    lines = [line(task, metric, 0.1 * i) for i, (task, metric) in enumerate(CSR.items())]
    lines += [line("boolq", "acc_norm", 9.0), line("boolq", "acc", 0.7)]  # the last number counts
    lines += [line("boolq", "acc", 1.0, "checkpoints/b.pt", 200)]
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (tmp_path / "r" / "evals.jsonl").write_text(text + '{"task": "torn')
    evals = load_evals(tmp_path, SimpleNamespace(runs=runs, notes=[]))
    assert len(evals) == 9
    assert set(evals["flops"]) == {600.0, 1200.0}
    average = csr_average(evals)
    assert average["checkpoint"].tolist() == ["checkpoints/a.pt"]
    assert average["csr"].item() == pytest.approx((0.7 + 0.1 * sum(range(1, 7))) / 7)
    assert csr_average(evals.iloc[:0]).empty


def test_average_of_other_tasks_has_its_error(tmp_path):
    run = {"run_id": "r", "arch": "tnl", "size": "d32", "seed": 0, "n_params": 9.0,
           "counting": "exact", "stages": None}  # fmt: skip
    (tmp_path / "r").mkdir()
    lines = [line("piqa", "acc", 0.5) | {"stderr": 0.03}, line("boolq", "acc", 0.6)]
    lines[1]["stderr"] = 0.04
    (tmp_path / "r" / "evals.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    evals = load_evals(
        tmp_path,
        SimpleNamespace(runs=pd.DataFrame([run | {"flops_per_token_exact": 6.0}]), notes=[]),
    )
    average = csr_average(evals, {"piqa": "acc", "boolq": "acc"})
    assert average["csr"].item() == pytest.approx(0.55)
    assert average["stderr"].item() == pytest.approx(0.05 / 2)  # 3-4-5, over two tasks
    assert csr_average(evals).empty


def test_linearized_checkpoints_cost_what_their_stages_cost(tmp_path):
    """Ten tokens of attention transfer at 2 FLOPs, the others at 6: as in the milestones."""
    stages = {"transfer_tokens": 10, "transfer_flops_per_token": {"exact": 2.0},
              "flops_per_token": {"exact": 6.0}}  # fmt: skip
    run = {"run_id": "r", "arch": "tnl (linearized)", "size": "d32", "seed": 0, "n_params": 9.0,
           "counting": "exact", "stages": stages, "flops_per_token_exact": 7.0}  # fmt: skip
    (tmp_path / "r").mkdir()
    text = json.dumps(line("boolq", "acc", 0.5)) + '\n{"task": "boolq", "metric": "f1"}\n'
    (tmp_path / "r" / "evals.jsonl").write_text(text)
    sweep = SimpleNamespace(runs=pd.DataFrame([run]), notes=[])
    evals = load_evals(tmp_path, sweep)
    assert evals["flops"].tolist() == [10 * 2.0 + 90 * 6.0]
    assert sweep.notes == ["r: evals.jsonl: the field value is missing; left out"]
