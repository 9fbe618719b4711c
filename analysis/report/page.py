"""Pieces of a self-contained HTML page: text, tables, figures. No request leaves the page.

The page works without a script, which adds two things: switches for architectures, and what a
point is, shown at once for the nearest point under a pointer or a finger (without it, the browser's
own titles on hover). Readable at phone width: tables and wide figures scroll inside their own box,
never the page; what lies beyond the edge is faded, and wide figures say so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape

import pandas as pd

from analysis.figures.hover import group_class
from analysis.io.looks import look

_CSS = """
:root{--ink:#1c1c1c;--soft:#5d5d5d;--line:#dedede;--wash:#f6f6f4;--accent:#0a5a8a}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:#fff;font:16px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word}
main{max-width:860px;margin:0 auto;padding:1rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.2;margin:.6rem 0 .2rem}
h2{font-size:1.2rem;margin:2.4rem 0 .5rem;padding-top:.4rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p,li{max-width:44em}
ul{padding-left:1.2rem}
.soft,figcaption{color:var(--soft);font-size:.86rem}
.box{background:var(--wash);border-left:4px solid #c98a00;padding:.6rem .9rem;margin:1rem 0}
.box>:first-child{margin-top:0}.box>:last-child{margin-bottom:0}
nav{font-size:.9rem;margin:.6rem 0}nav a{margin-right:.9rem;white-space:nowrap}
a{color:var(--accent)}
figure{margin:1.2rem 0}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll.more{-webkit-mask-image:linear-gradient(90deg,#000 80%,#0002);
mask-image:linear-gradient(90deg,#000 80%,#0002)}
figure svg{display:block;width:100%;height:auto}
figure.wide svg{min-width:600px}
figure.single{max-width:640px}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:.22rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
overflow-wrap:normal}
th{white-space:nowrap;border-bottom:1.5px solid #999}
td.n,th.n{text-align:right;white-space:nowrap}
td.w{min-width:16em}td.s{white-space:pre}
details{margin:.8rem 0}summary{cursor:pointer;font-weight:600}
.pick{position:sticky;top:0;background:#fffffff2;padding:.4rem 0;z-index:2;font-size:.9rem}
.pick label{margin-right:1rem;white-space:nowrap}
.tip{position:fixed;z-index:3;max-width:min(20rem,90vw);padding:.25rem .5rem;background:#1c1c1cee;
color:#fff;font-size:.82rem;border-radius:4px;pointer-events:none}
code{font-size:.88em;background:var(--wash);padding:0 .2em}
@media(max-width:640px){figure.wide .scroll::before{content:"swipe sideways for the rest \\2192";
display:block;position:sticky;left:0;color:var(--soft);font-size:.86rem}}
@media(max-width:480px){body{font-size:15px}main{padding:.6rem .8rem 3rem}}
@media print{.pick{display:none}details{display:block}}
"""
_JS = """
document.querySelectorAll('.pick input').forEach(function(box){
  box.addEventListener('change',function(){
    document.querySelectorAll('.'+box.value).forEach(function(el){
      el.style.display=box.checked?'':'none';});});});
var tip=document.createElement('div');tip.className='tip';tip.hidden=true;document.body.append(tip);
document.querySelectorAll('figure svg').forEach(function(svg){
  var marks=[];
  svg.querySelectorAll('title').forEach(function(title){
    var mark=title.parentNode;marks.push(mark);mark.dataset.tip=title.textContent;title.remove();});
  function seek(event){
    var reach=event.pointerType==='touch'?32:14,best=null;
    marks.forEach(function(mark){
      if(mark.closest('[style*="display: none"]'))return;
      var box=mark.getBoundingClientRect();
      var far=Math.hypot(event.clientX-box.x-box.width/2,event.clientY-box.y-box.height/2);
      if(far<reach){reach=far;best=mark;}});
    tip.hidden=!best;if(!best)return;
    tip.textContent=best.dataset.tip;
    var at=best.getBoundingClientRect(),own=tip.getBoundingClientRect();
    tip.style.left=Math.max(4,Math.min(innerWidth-own.width-4,at.x-own.width/2))+'px';
    tip.style.top=(at.y>own.height+10?at.y-own.height-8:at.bottom+8)+'px';}
  svg.addEventListener('pointermove',seek);svg.addEventListener('pointerdown',seek);
  svg.addEventListener('pointerleave',function(event){
    if(event.pointerType!=='touch')tip.hidden=true;});});
addEventListener('scroll',function(){tip.hidden=true;},{passive:true});
var boxes=document.querySelectorAll('.scroll');
function fade(box){
  box.classList.toggle('more',box.scrollLeft+box.clientWidth<box.scrollWidth-2);}
function fades(){boxes.forEach(fade);}
boxes.forEach(function(box){
  box.addEventListener('scroll',function(){fade(box);},{passive:true});});
addEventListener('resize',fades);document.addEventListener('toggle',fades,true);fades();
"""


@dataclass
class Page:
    """An HTML page that grows section by section."""

    title: str
    parts: list[str] = field(default_factory=list[str])
    sections: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def section(self, title: str) -> None:
        """A heading that the navigation lists."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self.sections.append((anchor, title))
        self.parts.append(f'<h2 id="{anchor}">{escape(title)}</h2>')

    def heading(self, title: str) -> None:
        """A minor heading."""
        self.parts.append(f"<h3>{escape(title)}</h3>")

    def text(self, text: str, *, soft: bool = False) -> None:
        """A paragraph; `bold`, `code` and `link` mark up parts of it."""
        self.parts.append(f'<p class="soft">{prose(text)}</p>' if soft else f"<p>{prose(text)}</p>")

    def bullets(self, items: Iterable[str]) -> None:
        """A list of paragraphs."""
        self.parts.append("<ul>" + "".join(f"<li>{prose(i)}</li>" for i in items) + "</ul>")

    def box(self, title: str, items: Iterable[str]) -> None:
        """A list that must not be overlooked."""
        rows = "".join(f"<li>{prose(i)}</li>" for i in items)
        self.parts.append(
            f'<div class="box"><p><strong>{escape(title)}</strong></p><ul>{rows}</ul></div>'
        )

    def figure(self, svg: str, caption: str, *, wide: bool, files: Mapping[str, str]) -> None:
        """An inline SVG with its caption and links to its files (format -> relative path)."""
        links = " · ".join(f'<a href="{escape(p)}">{escape(f)}</a>' for f, p in files.items())
        kind = "wide" if wide else "single"
        self.parts.append(
            f'<figure class="{kind}"><div class="scroll">{svg}</div>'
            f"<figcaption>{prose(caption)} {links}</figcaption></figure>"
        )

    def table(self, frame: pd.DataFrame, *, caption: str = "", folded: str = "") -> None:
        """A table; `folded` is the title of a fold that it is put into."""
        body = html_table(frame)
        if caption:
            body += f'<p class="soft">{prose(caption)}</p>'
        if folded:
            body = f"<details><summary>{escape(folded)}</summary>{body}</details>"
        self.parts.append(body)

    def switches(self, groups: Iterable[str]) -> None:
        """Check boxes that show and hide the artists of a group in every figure."""
        boxes = "".join(
            f'<label style="color:{look(g).color}"><input type="checkbox" checked '
            f'value="{group_class(g)}"> {escape(look(g).label)}</label>'
            for g in groups
        )
        self.parts.append(f'<div class="pick">{boxes}</div>')

    def render(self) -> str:
        """The whole document."""
        links = "".join(f'<a href="#{a}">{escape(t)}</a>' for a, t in self.sections)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<link rel="icon" href="data:,">'
            f"<title>{escape(self.title)}</title><style>{_CSS}</style></head><body><main>\n"
            f"<h1>{escape(self.title)}</h1><nav>{links}</nav>\n"
            + "\n".join(self.parts)
            + f"\n</main><script>{_JS}</script></body></html>\n"
        )


_MARKS = {"\ue000": "<strong>", "\ue001": "</strong>", "\ue002": "<code>", "\ue003": "</code>"}
"""Private characters that `linscale.texts.clean` lets no file bring in."""
_LINK = re.compile("\ue004([^\ue004-\ue006]*)\ue005([^\ue004-\ue006]*)\ue006")


def bold(text: str) -> str:
    """The text in bold, for `prose`."""
    return f"\ue000{text}\ue001"


def code(text: str) -> str:
    """The text as code, for `prose`."""
    return f"\ue002{text}\ue003"


def link(text: str, path: str) -> str:
    """A link to a page of the report, for `prose`."""
    return f"\ue004{path}\ue005{text}\ue006"


def prose(text: str) -> str:
    """Escaped text with the parts that `bold`, `code` and `link` made; nothing else is markup."""
    safe = escape(text)
    for mark, tag in _MARKS.items():
        safe = safe.replace(mark, tag)
    return _LINK.sub(r'<a href="\1">\2</a>', safe)


def html_table(frame: pd.DataFrame) -> str:
    """A data frame as a table in a scroll box: numbers to the right, long text wrapped."""
    numeric = {c for c in frame.columns if pd.api.types.is_numeric_dtype(frame[c])}
    head = "".join(
        f"<th{' class=n' if c in numeric else ''}>{escape(str(c))}</th>" for c in frame.columns
    )
    rows: list[str] = []
    for record in frame.to_dict("records"):
        cells: list[str] = []
        for column, value in record.items():
            if column in numeric:
                cells.append(f"<td class=n>{number(float(value))}</td>")
            else:
                text = "" if value is None else str(value)
                kind = "w" if len(text) > 40 else "s"
                cells.append(f"<td class={kind}>{prose(text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def number(value: float) -> str:
    """Four significant digits; whole numbers with separators; exponents outside 1e-3...1e7."""
    if math.isnan(value):
        return "–"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3e}".replace("e+", "e")
    return f"{value:.4g}"
