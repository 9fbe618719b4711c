"""How architectures are drawn that only their run records know."""

from __future__ import annotations

import pytest

from analysis.io import looks
from analysis.io.looks import Look, learn, look


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looks, "_RECORDED", {})


def test_a_record_says_how_an_unknown_architecture_is_drawn() -> None:
    assert look("my.gla") == Look("my.gla", "#4D4D4D", "v")
    learn("my.gla", {"label": "GLA", "colour": "#8C6D31", "marker": "P"})
    assert look("my.gla") == Look("GLA", "#8C6D31", "P")
    learn("other", {"label": "Other", "colour": None, "marker": None})
    assert look("other") == Look("Other", "#4D4D4D", "v")


def test_known_architectures_and_older_records_stay_as_they_are() -> None:
    learn("tnl", {"label": "mine", "colour": "#000000", "marker": "x"})
    assert look("tnl") == Look("TNL", "#D55E00", "s")
    for record in (None, "GLA", 3, {"label": 7}):
        learn("gla", record)
    assert look("gla").label == "gla"


def test_hybrids_beside_what_they_are_made_of_are_told_apart() -> None:
    learn("gla", {"label": "GLA", "colour": "#8C6D31", "marker": "<"})
    learn("mamba2", {"label": "Mamba-2", "colour": "#E69F00", "marker": "v"})
    learn("gla*3+llama", {"label": "GLA*3+LLaMA"})
    among = ("llama", "gla", "mamba2", "gla*3+llama", "mamba2*3+llama", "a", "b", "c", "d")
    colors = [look(group, among).color for group in among]
    assert len(set(colors)) == len(among)
    assert look("gla", among).color == "#8C6D31"
