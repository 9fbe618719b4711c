"""What the last line of a test run says about the tests that were skipped."""

from __future__ import annotations

from tests.conftest import in_words, kinds_of


def test_skips_by_kind_with_their_remedy() -> None:
    kinds = kinds_of([
        "Skipped: needs Chromium on the path",
        "Skipped: public data sets not found at /x (set LINSCALE_DATA)",
        "Skipped: no CUDA device",
        "Skipped: no CUDA device",
        "Skipped: could not import 'fla': No module named 'fla'",
        "Skipped: /proc",
    ])  # fmt: skip
    assert kinds == {
        "browser": 1, "public data": 1, "GPU": 2, "optional packages": 1, "other reasons": 1,
    }  # fmt: skip
    line = in_words(kinds)
    assert line.startswith("NOT TESTED HERE: 6 skipped: ")
    assert "2 GPU (run `make gpu-check` on a machine with a GPU)" in line
    assert "1 public data (set LINSCALE_DATA" in line
