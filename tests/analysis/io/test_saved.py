"""Damaged records of results are refused with the name of what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from analysis.errors import AnalysisError
from analysis.fit.downstream import DownstreamFit
from analysis.fit.envelope import EnvelopeFit
from analysis.fit.fitting import fit_law
from analysis.fit.isoflop import IsoflopFit
from analysis.fit.law_fit import LawFit
from analysis.judge.compare import CompareResult
from tests.support.worlds import suite

KINDS = (CompareResult, DownstreamFit, EnvelopeFit, IsoflopFit, LawFit)
FOR_PEOPLE = {"schema", "formula", "parameters", "intervals_90", "criteria", "compute_model"}
"""Fields that follow from the others."""
LATER = {"held"}
"""Fields that fits of older versions lack."""


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads(fit_law("chinchilla", suite(noise=0.003), bootstrap=5).to_json())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{'E': 1.7", "not JSON"),
        ("[1, 2]", "holds a list, not an object"),
        ("{}", "has no field '"),
        ('{"schema": 1}', "has no field '"),
    ],
)
def test_garbage(kind: Any, text: str, message: str) -> None:
    with pytest.raises(AnalysisError, match=message) as caught:
        kind.from_json(text)
    assert f"no saved {kind.__name__}: " in str(caught.value)
    assert "to_json" in str(caught.value)


def test_each_missing_field_is_named(record: dict[str, Any]) -> None:
    for name in set(record) - FOR_PEOPLE - LATER:
        rest = {key: value for key, value in record.items() if key != name}
        with pytest.raises(AnalysisError, match=f"has no field '{name}'"):
            LawFit.from_json(json.dumps(rest))
    for name in set(record["points"]) - {"d", "c", "name"}:  # without d the law misses its column
        points = {key: value for key, value in record["points"].items() if key != name}
        with pytest.raises(AnalysisError, match=f"'{name}'"):
            LawFit.from_json(json.dumps(record | {"points": points}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"theta": "abc"}, "field 'theta' is 'abc', not numbers"),
        ({"theta": [1.0, [2.0]]}, "field 'theta'"),
        ({"lower": {"a": 1}}, "field 'lower'"),
        ({"form": "nonsense"}, "form 'nonsense' is not known; choose one of"),
        ({"evidence": {}}, "missing .* required"),
        ({"warnings": [{"code": "x"}]}, "has no field 'message'"),
        ({"draws": [1]}, "no saved LawFit"),
    ],
)
def test_fields_of_another_kind(
    record: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(AnalysisError, match=message):
        LawFit.from_json(json.dumps(record | change))
