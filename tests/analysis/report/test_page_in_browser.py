"""The report in a real browser: no console message, no sideways scroll, points that answer.

A script is appended to a copy of the page that plays the user and leaves what it saw in the
document, which headless Chromium prints.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from analysis.report.report import write_report

RECORDS = Path(__file__).resolve().parents[3] / "experiments" / "results" / "quickstart.zip"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the path")

SEEN = "<script>{code};document.body.insertAdjacentHTML('beforeend','<pre id=seen></pre>');\
document.getElementById('seen').textContent=JSON.stringify(seen);</script>"
POINTS = """
var seen={};var mark=document.querySelector('figure svg [data-tip]');
mark.scrollIntoView({block:'center'});
var box=mark.getBoundingClientRect(),svg=mark.closest('svg'),tip=document.querySelector('.tip');
function point(kind,type,dx){svg.dispatchEvent(new PointerEvent(kind,{bubbles:true,
  pointerType:type,clientX:box.x+box.width/2+dx,clientY:box.y+box.height/2}));}
seen.before=tip.hidden;point('pointermove','mouse',1);
seen.shown=!tip.hidden;seen.text=tip.textContent;
var at=tip.getBoundingClientRect();seen.inside=at.left>=0&&at.right<=innerWidth;
point('pointerleave','mouse',0);seen.after=tip.hidden;
point('pointerdown','touch',1);seen.touched=tip.textContent;
seen.titles=document.querySelectorAll('figure svg title').length;
var box1=document.querySelector('.pick input[value="g-tnl"]');
function visible(){return [...document.querySelectorAll('.g-tnl')]
  .filter(e=>getComputedStyle(e).display!=='none').length;}
seen.tnl=visible();box1.click();seen.hidden=visible();box1.click();seen.back=visible();
"""
WIDTHS = """
var seen={};for(var f of document.querySelectorAll('iframe')){var d=f.contentDocument;
var wide=[...d.querySelectorAll('figure.wide .scroll')];
var before=wide.map(b=>b.classList.contains('more'));
var hint=getComputedStyle(wide[0],'::before').content;
wide.forEach(b=>{b.scrollLeft=b.scrollWidth;b.dispatchEvent(new Event('scroll'));});
seen[f.width]={page:d.documentElement.scrollWidth,
  font:parseFloat(getComputedStyle(d.body).fontSize),
  figures:d.querySelectorAll('figure svg').length,hint:hint,more:before,
  atEnd:wide.map(b=>b.classList.contains('more'))};}
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    return write_report(RECORDS, out, bootstrap=50)


def look(page: Path, profile: Path) -> tuple[dict[str, Any], list[str]]:
    """What the appended script saw, and the messages on the console."""
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
         "--enable-logging=stderr", "--virtual-time-budget=4000", "--window-size=1000,900",
         "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return (json.loads(unescape(seen[1])) if seen else {}), console


def test_points_and_switches_answer(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(report.read_text("utf-8") + SEEN.format(code=POINTS), "utf-8")
    seen, console = look(page, tmp_path / "profile")
    assert console == []
    assert seen["before"] is True
    assert seen["shown"] is True
    assert re.fullmatch(r"\w+ d\d+: N \S+, D \S+, C \S+ FLOPs, loss \d\.\d{4}", seen["text"])
    assert seen["inside"] is True
    assert seen["after"] is True
    assert seen["touched"] == seen["text"]
    assert seen["titles"] == 0  # the browser's own titles would come as well
    assert seen["hidden"] == 0 < seen["tnl"] == seen["back"]


def test_no_sideways_scroll_from_phone_to_desk(report: Path, tmp_path: Path) -> None:
    content = escape(report.read_text("utf-8"), quote=True)
    frames = "".join(
        f'<iframe width="{width}" height="700" srcdoc="{content}"></iframe>'
        for width in (320, 390, 768, 1280)
    )
    # Frames load after the script would run, so it waits for the window.
    code = WIDTHS.replace("var seen={};", "").strip()
    script = SEEN.format(code=code)
    body = script.removeprefix("<script>").removesuffix("</script>")
    page = tmp_path / "frames.html"
    page.write_text(
        f"<!doctype html><body>{frames}<script>var seen={{}};addEventListener('load',function()"
        f"{{{body}}});</script></body>",
        "utf-8",
    )
    seen, console = look(page, tmp_path / "profile")
    assert console == []
    assert set(seen) == {"320", "390", "768", "1280"}
    for width, found in seen.items():
        assert found["page"] <= int(width)
        assert found["font"] >= 15  # readable without zooming
        assert found["figures"] >= 8
        # A wide figure scrolls on a phone: faded until its end is reached, and it says so.
        narrow = int(width) < 600
        assert set(found["more"]) == {narrow}
        assert set(found["atEnd"]) == {False}
        assert ("swipe" in found["hint"]) == narrow


def test_every_run_has_a_page_without_console_messages(report: Path, tmp_path: Path) -> None:
    links = set(re.findall(r'href="(runs/[^"]+\.html)"', report.read_text("utf-8")))
    assert len(links) == 20
    for link in links:
        text = (report.parent / link).read_text("utf-8")
        for expected in ("Milestones", "model.arch", "optim.lr", "../index.html", "<svg"):
            assert expected in text
        assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    first = report.parent / sorted(links)[0]
    page = tmp_path / "run.html"
    page.write_text(first.read_text("utf-8") + SEEN.format(code="var seen={ok:1}"), "utf-8")
    seen, console = look(page, tmp_path / "profile")
    assert seen == {"ok": 1}
    assert console == []
