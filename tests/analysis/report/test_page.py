"""Pieces of a page: contrast, tables and figures for those who do not see them, no dead links."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from analysis.report.page import Page, html_table
from analysis.report.page_style import CSS
from tests.support.contrast import contrast


def schemes() -> dict[str, dict[str, str]]:
    """Colours by name, of the light scheme and of the dark one."""
    found = re.findall(r":root\{([^}]*)\}", CSS)
    light, dark = (dict(re.findall(r"--(\w+):(#[0-9a-f]+)", text)) for text in found)
    return {"light": light, "dark": light | dark}


def test_black_on_white_is_21() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#fff") == pytest.approx(4.54, abs=0.01)  # WCAG's own example


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_controls_can_be_read(scheme: str) -> None:
    colours = schemes()[scheme]
    for ink in ("ink", "soft", "accent"):
        for behind in ("paper", "wash"):
            assert contrast(colours[ink], colours[behind]) >= 4.5, (ink, behind)
    assert contrast(colours["onTip"], colours["tip"]) >= 4.5
    assert contrast(colours["paper"], colours["ink"]) >= 7


def test_switches_are_written_in_ink() -> None:
    """The colour of an architecture is a dot beside its name, not the colour of the name."""
    page = Page("x")
    page.switches(["llama", "tnl"])
    (part,) = page.parts
    assert part.count('class="dot" style="background:#') == 2
    assert "color:#" not in part.replace("background:#", "")
    assert "aria-label" in part


def test_tables_say_what_each_cell_is() -> None:
    table = html_table(pd.DataFrame({"run": ["a<b"], "N": [1234.0]}), "What & why")
    assert "<caption>What &amp; why</caption>" in table
    assert table.count('<th scope="col"') == 2
    assert '<th scope="row" class=s data-of="run">a&lt;b</th>' in table
    assert '<td class=n data-of="N">1,234</td>' in table


def test_a_figure_is_named_by_its_caption() -> None:
    page = Page("x")
    for _ in range(2):
        page.figure('<svg role="img" aria-label="a"></svg>', "What it shows.", wide=False,
                    files=["figures/a.png"])  # fmt: skip
    text = page.render()
    for name in ("figure-1", "figure-2"):
        assert text.count(f'<svg role="img" aria-labelledby="{name}">') == 1
        assert text.count(f'<figcaption id="{name}">What it shows.') == 1
    assert "<code>figures/a.png</code>" in text
    assert 'href="figures' not in text
