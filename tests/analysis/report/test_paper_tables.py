"""The paper's own numbers through our tables: its means must come out as printed."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from analysis.errors import AnalysisError
from analysis.io.evals import CSR, SCROLLS, scrolls_official, scrolls_paper
from analysis.report.paper_tables import DASH, NUMBERS, paper_table

ARCHS = ("llama", "tnl", "hgrn2", "cosformer2")
# arXiv 2406.16690, table 4: seven tasks, their average, WikiText and LAMBADA, needles, SCROLLS
TABLE4 = {
    "0.07": """46.48 58.87 27.82 48.46 39.98 21.42 25.60 38.38 82.7 291.3 0.4 7.43
               43.18 58.87 27.77 50.12 39.77 21.76 23.80 37.90 77.0 369.1 0.6 6.13
               56.57 59.19 28.05 52.01 38.64 22.61 26.00 40.44 73.0 270.1 0.2 7.32
               47.61 60.94 28.12 49.72 37.33 22.18 23.60 38.50 88.8 369.9 0.1 6.67""",
    "0.16": """52.94 63.66 30.67 51.78 44.32 23.29 26.60 41.89 51.1 69.9 6.0 8.37
               53.82 63.82 31.22 50.20 45.92 23.21 28.80 42.43 44.9 71.1 7.5 7.77
               54.01 63.06 31.04 52.41 45.08 23.38 27.00 42.28 43.8 52.8 0.2 8.29
               45.47 63.28 29.72 52.41 44.49 22.53 27.20 40.73 49.0 83.8 1.3 7.71""",
    "0.41": """54.04 67.19 38.75 52.17 49.24 23.72 30.00 45.02 29.8 25.1 52.3 10.51
               60.31 66.65 38.98 51.70 52.61 25.17 30.00 46.49 28.0 23.3 14.2 7.55
               60.86 67.74 40.32 51.78 54.21 24.83 31.20 47.28 27.0 19.3 4.8 10.93
               57.40 66.27 36.65 50.59 51.81 23.72 29.00 45.06 30.3 30.3 9.6 9.06""",
    "1":    """56.42 69.97 47.04 52.72 57.07 28.16 32.60 49.14 26.5 12.8 44.1 11.01
               59.85 71.49 48.70 52.57 57.07 27.73 33.20 50.09 21.7 12.2 28.0 9.65
               59.17 71.65 49.52 54.38 60.27 28.07 33.40 50.92 21.0 10.9 10.0 11.08
               44.28 70.73 45.55 50.51 55.22 27.30 31.00 46.37 21.2 15.5 10.9 10.88""",
    "3":    """61.31 73.18 57.88 59.59 63.93 31.40 34.00 54.47 23.0 7.4 45.1 13.88
               56.76 75.03 60.87 61.33 65.49 33.02 36.40 55.56 16.4 6.6 11.1 12.26
               55.47 74.10 61.48 58.64 65.61 34.47 35.60 55.06 15.6 6.5 17.9 15.43
               50.92 74.27 57.38 57.30 63.22 31.40 35.20 52.81 16.0 8.4 25.8 12.75""",
    "7":    """57.46 75.19 64.39 61.88 67.55 35.41 35.00 56.70 15.2 5.9 59.7 14.57
               62.63 76.22 66.29 61.48 67.76 38.23 37.80 58.63 14.1 5.5 20.5 10.74
               62.69 76.50 66.96 61.40 69.02 36.86 38.00 58.78 13.8 5.2 30.8 13.46
               65.02 76.33 63.93 59.19 66.96 36.43 37.60 57.92 13.5 6.4 23.6 15.15""",
}  # fmt: skip
# table 8, 7B: 3 x ROUGE, Qasper, NarrativeQA, QuALITY, ContractNLI, and the average of table 4
SCROLLS_7B = {
    "llama": "17.4 7.33 11.43 12.92 1.75 9.95 14.59 3.7 11.8 32.35 22.31 33.84 10.03",
    "tnl": "5.36 2.29 4.41 11.17 1.72 8.46 12.02 3.1 9.46 24.12 19.24 29.15 9.16",
    "hgrn2": "14.93 5.21 10.16 15.43 2.4 11.1 14.3 2.97 11.78 27.07 19.60 30.06 10.03",
    "cosformer2": "19.97 7.36 12.92 14.31 2.4 10.57 13.72 3.27 11.34 23.94 18.70 30.73 27.68",
}
# table 11, 7B: @2k @4k @8k @16k <=4k <=8k, average, weighted average, score
NEEDLES_7B = {
    "llama": "100 100 87.0 0.0 100 98.4 62.9 59.7 44.7",
    "tnl": "43.5 14.3 12.4 18.1 38.8 26.8 20.2 20.5 7.8",
    "hgrn2": "100 28.6 14.6 11.4 83.8 50.1 31.3 30.8 17.1",
    "cosformer2": "97.1 37.1 8.6 0.0 78.6 48.0 25.1 23.6 11.6",
}
NEEDLE = ("acc@2048", "acc@4096", "acc@8192", "acc@16384", "acc<=4096", "acc<=8192", "accuracy",
          "weighted_accuracy", "niah_score")  # fmt: skip
ITEMS = [(task, metric) for task, metrics in SCROLLS.items() for metric in metrics]
LABELS = {"llama": "LLaMA", "tnl": "TNL", "hgrn2": "HGRN2", "cosformer2": "cosFormer2"}


def run(arch, size, n, dim=64, layers=2, length=8192):
    run_id = f"{arch}-{size}-{dim}x{layers}-{length}"
    return {"run_id": run_id, "arch": arch, "size": size, "n_params": n, "dim": dim,
            "layers": layers, "sequence_length": length}  # fmt: skip


def number(run_id, task, metric, value, tokens=100, settings="{'limit': None}", n=1000):
    return {"run_id": run_id, "checkpoint": f"c/{tokens}", "task": task, "metric": metric,
            "value": value, "stderr": None, "n": n, "tokens": tokens, "settings": settings,
            "grid": None}  # fmt: skip


@pytest.fixture(scope="module")
def paper():
    """Evaluations and runs that hold what the paper prints, before its averages."""
    evals, runs = [], []
    for size, text in TABLE4.items():
        for place, (arch, line) in enumerate(zip(ARCHS, text.splitlines(), strict=True)):
            values = list(map(float, line.split()))
            one = run(arch, size, float(size) * (1 + place / 100))
            runs.append(one)
            for (task, metric), value in zip(CSR.items(), values[:7], strict=True):
                evals.append(number(one["run_id"], task, metric, value / 100))
                evals.append(number(one["run_id"], task, metric, 0.1, tokens=50))  # an earlier one
            evals.append(number(one["run_id"], "wikitext", "word_perplexity", values[8]))
            evals.append(number(one["run_id"], "lambada_openai", "perplexity", values[9]))
            if size != "7":
                evals.append(number(one["run_id"], "needle", "weighted_accuracy", values[10] / 100))
    for arch in ARCHS:
        name = run(arch, "7", 7.0)["run_id"]
        for (task, metric), value in zip(ITEMS, SCROLLS_7B[arch].split(), strict=True):
            evals.append(number(name, task, metric, float(value)))
        for metric, value in zip(NEEDLE, NEEDLES_7B[arch].split(), strict=True):
            evals.append(number(name, "needle", metric, float(value) / 100))
    return pd.DataFrame(evals), pd.DataFrame(runs)


def test_table_4_gives_the_printed_averages(paper):
    frame = paper_table(4, *paper).frame
    assert list(frame) == ["size", "arch", "BoolQ", "PIQA", "HS", "WG", "ARC-e", "ARC-c", "OBQA",
                           "CSR", "WIKI", "λ", "NIAH", "SCROLLS"]  # fmt: skip
    printed = [(size, line.split()) for size, text in TABLE4.items() for line in text.splitlines()]
    assert len(frame) == len(printed) == 24
    for row, (size, values), arch in zip(frame.to_dict("records"), printed, ARCHS * 6, strict=True):
        assert (row["size"], row["arch"]) == (size, LABELS[arch])
        assert [row[name] for name in list(frame)[2:9]] == values[:7]
        # the printed average is of unrounded numbers: half a unit of each rounding apart
        assert float(row["CSR"]) == pytest.approx(float(values[7]), abs=0.0101)
        assert (row["WIKI"], row["λ"], row["NIAH"]) == tuple(values[8:11])
        if size == "7":
            assert float(row["SCROLLS"]) == pytest.approx(float(values[11]), abs=0.0101)
        else:
            assert row["SCROLLS"] == DASH


def test_table_8_gives_both_averages(paper):
    table = paper_table(8, *paper)
    row = table.frame[table.frame["size"] == "7"].iloc[0]
    assert (row["arch"], row["GovReport"], row["QMSum"]) == ("LLaMA", "17.40/7.33/11.43",
                                                             "14.59/3.70/11.80")  # fmt: skip
    values = dict(zip(ITEMS, map(float, SCROLLS_7B["llama"].split()), strict=True))
    assert float(row["AVG"]) == pytest.approx(14.57, abs=0.006)
    by_hand = [(17.4 * 7.33 * 11.43) ** (1 / 3), (12.92 * 1.75 * 9.95) ** (1 / 3),
               (14.59 * 3.7 * 11.8) ** (1 / 3), 32.35, 22.31, 33.84, 10.03]  # fmt: skip
    assert scrolls_official(values) == pytest.approx(sum(by_hand) / 7)
    assert float(row["SCROLLS score"]) == pytest.approx(sum(by_hand) / 7, abs=0.006)
    assert any("plain mean" in note and "geometric" in note for note in table.notes)


def test_a_failed_data_set_is_left_out_of_the_paper_average_only():
    """As the paper does: the mean of the ten numbers that are left."""
    values = dict(zip(ITEMS, map(float, SCROLLS_7B["tnl"].split()), strict=True))
    for metric in SCROLLS["scrolls_govreport"]:
        del values["scrolls_govreport", metric]
    assert scrolls_paper(values) == pytest.approx(sum(values.values()) / 10)
    assert math.isnan(scrolls_official(values))
    assert math.isnan(scrolls_paper({}))


def test_table_11_has_the_paper_columns(paper):
    table = paper_table(11, *paper)
    assert list(table.frame)[2:] == ["@2k", "@4k", "@8k", "@16k", "<=4k", "<=8k", "avg", "w.a.",
                                     "NIAH"]  # fmt: skip
    assert "easy mode" in table.title
    for row, arch in zip(table.frame.iloc[-4:].to_dict("records"), ARCHS, strict=True):
        printed = list(map(float, NEEDLES_7B[arch].split()))
        assert [float(row[name]) for name in list(table.frame)[2:]] == printed
    evals, runs = paper
    both = pd.concat([evals, evals[evals["task"] == "needle"].assign(task="needle_standard")])
    names = list(paper_table(11, both, runs).frame)
    assert names[2:4] == ["@2k easy", "@4k easy"]
    assert names[11] == "@2k standard"
    short = evals[~evals["metric"].isin(NEEDLE[:6])]
    more = [number(runs["run_id"][0], "needle", m, 0.5) for m in ("acc<=1024", "acc@1024",
                                                                  "acc@512")]  # fmt: skip
    table = paper_table(11, pd.concat([short, pd.DataFrame(more)]), runs)
    assert list(table.frame)[2:5] == ["@512", "@1k", "<=1k"]


def test_tables_5_and_6_find_their_runs():
    shapes = [run("llama", "1B", n, dim, layers) for n, dim, layers in
              ((906.2, 1536, 32), (924.8, 1792, 24), (906.1, 3072, 8))]  # fmt: skip
    lengths = [run("tnl", "1B", 918.6, 1536, 32, length) for length in (4096, 2048, 16384)]
    runs = pd.DataFrame([*shapes, *lengths, run("llama", "70M", 20.5, 512, 6)])
    evals = pd.DataFrame(
        [number(one, "wikitext", "word_perplexity", 20.0 + i) for i, one in enumerate(runs.run_id)]
    )
    five = paper_table(5, evals, runs)
    assert five.frame["shape"].tolist() == ["1536x32", "1792x24", "3072x8"]
    assert five.frame["WIKI"].tolist() == ["20.0", "21.0", "22.0"]
    assert set(five.frame["CSR"]) == {DASH}
    assert any("not evaluated: boolq, piqa" in note for note in five.notes)
    six = paper_table(6, evals, runs)
    assert six.frame["context"].tolist() == ["2k", "4k", "16k"]
    assert six.frame["WIKI"].tolist() == ["24.0", "23.0", "25.0"]
    with pytest.raises(AnalysisError, match="table 6 would be empty: no run"):
        paper_table(6, evals, pd.DataFrame(shapes))


def test_formats(paper):
    table = paper_table(4, *paper)
    assert table.csv().splitlines()[1].endswith("82.7,291.3,0.4,")
    assert len(table.csv().splitlines()) == 25
    lines = table.markdown().splitlines()
    assert lines[2].startswith("| size | arch | BoolQ |")
    assert {line.count("|") for line in lines[2:28]} == {15}
    tex = table.latex()
    assert tex.count(r"\\") == 25
    assert tex.count(r"\midrule") == 6  # under the head and between six sizes
    assert r"$\lambda$" in tex
    assert "0.07 & LLaMA & 46.48" in tex
    assert tex.count("&") == 25 * 13


def test_subsets_and_nothing_are_said(paper):
    _, runs = paper
    some = [number(runs["run_id"][0], "piqa", "acc", 0.5, settings="{'limit': 20}", n=20)]
    notes = paper_table(4, pd.DataFrame(some), runs).notes
    assert any("first questions only: piqa (n = 20)" in note for note in notes)
    nothing = [number(runs["run_id"][0], "sliding", "nats_per_token", 0.5)]
    for table in (4, 8, 11):
        with pytest.raises(AnalysisError, match=r"nothing of it has been evaluated.*suite paper"):
            paper_table(table, pd.DataFrame(nothing), runs)
    with pytest.raises(AnalysisError, match="choose 4, 5, 6, 8, 11"):
        paper_table(7, *paper)
    assert NUMBERS == (4, 5, 6, 8, 11)
