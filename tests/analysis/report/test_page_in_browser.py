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

import numpy as np
import pytest

from analysis.fit.fitting import fit_law
from analysis.io.frames import rows, where, words
from analysis.io.records import load_sweep
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
ASK = """
var seen={},budget=document.getElementById('budget'),choice=document.getElementById('choice');
var setting=document.getElementById('setting');
seen.settingHidden=getComputedStyle(document.getElementById('setting-line')).display==='none';
function pick(select,value){select.value=value;select.dispatchEvent(new Event('change'));}
function rows(){return [200,550,900].map(function(v){budget.value=v;
  budget.dispatchEvent(new Event('input'));
  var td=document.querySelectorAll('tr[data-arch=hgrn2] td');
  return [td[0].textContent,td[1].textContent,td[3].textContent];});}
seen.reported={rows:rows()};
pick(choice,'E held');pick(setting,setting.options[2].value);
seen.held={setting:setting.value,rows:rows()};
pick(choice,'one run left out');pick(setting,setting.options[0].value);
seen.run={setting:setting.value,rows:rows()};
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
        for width in (320, 380, 768, 1280)
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
    assert set(seen) == {"320", "380", "768", "1280"}
    for width, found in seen.items():
        assert found["page"] <= int(width)
        assert found["font"] >= 15  # readable without zooming
        assert found["figures"] >= 8
        # A wide figure scrolls on a phone: faded until its end is reached, and it says so.
        narrow = int(width) < 600
        assert set(found["more"]) == {narrow}
        assert set(found["atEnd"]) == {False}
        assert ("swipe" in found["hint"]) == narrow


def test_what_ifs_say_what_the_command_line_says(report: Path, tmp_path: Path) -> None:
    """The slider at three budgets, as reported, with E held, and one run left out: against
    `fit_law` on the same records."""
    page = tmp_path / "page.html"
    page.write_text(report.read_text("utf-8") + SEEN.format(code=ASK), "utf-8")
    seen, console = look(page, tmp_path / "profile")
    assert console == []
    points = load_sweep(RECORDS).points
    own = where(points, arch="hgrn2")
    usual: dict[str, Any] = {"clusters": "size_seed", "accounting": True}
    others = rows(own, np.asarray(words(own, "size_seed")) != seen["run"]["setting"])
    assert len(others) < len(own)
    laws = {
        "reported": fit_law("chinchilla", own, **usual),
        "held": fit_law("chinchilla", own, fix={"E": float(seen["held"]["setting"])}, **usual),
        "run": fit_law("chinchilla", others, **usual),
    }
    for name, law in laws.items():
        for place, (n, d, loss) in zip((0.2, 0.55, 0.9), seen[name]["rows"], strict=True):
            low, high = points["flops"].min(), points["flops"].max() * 3
            best = law.optimal(low * (high / low) ** place, extrapolate=True).iloc[0]
            assert amount(n) == pytest.approx(best["n"], rel=0.01)
            assert amount(d) == pytest.approx(best["d"], rel=0.01)
            assert float(loss.split(" ")[0]) == pytest.approx(best["loss"], rel=1e-3)
    assert "[" in seen["reported"]["rows"][0][2]
    assert seen["settingHidden"] is True


def amount(text: str) -> float:
    """35k, 1.78M -> numbers."""
    factor = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1.0)
    return float(text.rstrip("kMBT")) * factor


def test_every_run_has_a_page_without_console_messages(report: Path, tmp_path: Path) -> None:
    pages = sorted((report.parent / "runs").glob("*.html"))
    assert len(pages) == 20
    for each in pages:
        text = each.read_text("utf-8")
        for expected in ("Milestones", "model.arch", "optim.lr", "A run of quickstart", "<svg"):
            assert expected in text
        assert "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    page = tmp_path / "run.html"
    page.write_text(pages[0].read_text("utf-8") + SEEN.format(code="var seen={ok:1}"), "utf-8")
    seen, console = look(page, tmp_path / "profile")
    assert seen == {"ok": 1}
    assert console == []
