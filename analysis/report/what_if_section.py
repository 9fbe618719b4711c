"""A page's own what-ifs: a budget, and what N*, D* and loss are under one choice or another.

    add_what_ifs(page, result)     a section with controls, and a table that stands without a script

The numbers are tabulated by `analysis.judge.what_if`; the script interpolates them, log N, log D
and loss linearly in log C, and computes nothing else.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from analysis.io.frames import numbers, where, words
from analysis.io.looks import look
from analysis.judge.study import Study
from analysis.judge.what_if import REPORTED, what_ifs
from analysis.report.page import Page
from analysis.units import LEVEL
from linscale.si import si

_START = 0.6
"""Where along the budgets (share of their logarithms) the slider stands at first."""
_NOTE = (
    "Point estimates but for the choice as reported, whose brackets are its "
    f"{LEVEL:.0%} interval. E held: every law with that irreducible loss. Counting of C also "
    "counts the budget. One run left out: of each architecture the runs that move its law most; "
    "the others stay as reported. Within the data: N, D and C were all trained."
)
_JS = """
(function(){
var box=document.getElementById('ask');
var known=JSON.parse(document.getElementById('what-if-data').textContent);
var budget=box.querySelector('#budget'),choice=box.querySelector('#choice');
var setting=box.querySelector('#setting'),line=box.querySelector('#setting-line');
var said=box.querySelector('#budget-words'),body=box.querySelector('tbody');
function si(v){var s=[[1e12,'T'],[1e9,'B'],[1e6,'M'],[1e3,'k']];
  for(var i=0;i<4;i++)if(v>=.9995*s[i][0])return three(v/s[i][0])+s[i][1];return three(v);}
function three(v){return String(Number(v.toPrecision(3)));}
function power(v){var e=Math.floor(Math.log10(v));return (v/Math.pow(10,e)).toFixed(2)+' × 10'+
  String(e).split('').map(function(d){return '⁰¹²³⁴⁵⁶⁷⁸⁹'[d]||'⁻';}).join('');}
function at(row,x){var c=known.c,i=0;while(i<c.length-2&&c[i+1]<x)i++;
  var t=(x-c[i])/(c[i+1]-c[i]),out={};
  ['n','d','loss','lo','hi'].forEach(function(k){
    out[k]=row[k]?row[k][i]+t*(row[k][i+1]-row[k][i]):null;});
  out.inside=t<1e-9?row.inside[i]:t>1-1e-9?row.inside[i+1]:row.inside[i]&&row.inside[i+1];
  return out;}
function fill(){var names=Object.keys(known.choices[choice.value]);
  setting.replaceChildren.apply(setting,names.map(function(n){
    var o=document.createElement('option');o.textContent=o.value=n;return o;}));
  line.hidden=names.length<2&&names[0]==='';show();}
function show(){
  var c=known.c,x=c[0]+(c[c.length-1]-c[0])*budget.value/budget.max;
  said.textContent=power(Math.pow(10,x))+' FLOPs';
  budget.setAttribute('aria-valuetext',said.textContent);
  var rows=known.choices[choice.value][setting.value]||{},usual=known.choices[known.reported][''];
  [].forEach.call(body.rows,function(tr){
    var arch=tr.dataset.arch,own=rows[arch],cells=tr.querySelectorAll('td');
    var v=at(own||usual[arch],x),n=Math.pow(10,v.n),d=Math.pow(10,v.d),base=at(usual[arch],x);
    cells[0].textContent=si(n);cells[1].textContent=si(d);cells[2].textContent=three(d/n);
    cells[3].textContent=v.loss.toFixed(4)+(v.lo===null?'':' ['+v.lo.toFixed(4)+', '+
      v.hi.toFixed(4)+']');
    cells[4].textContent=own?(v.loss-base.loss>=0?'+':'−')+Math.abs(v.loss-base.loss).toFixed(4):
      'as reported';
    cells[5].textContent=v.inside?'yes':'no';});}
budget.addEventListener('input',show);choice.addEventListener('change',fill);
setting.addEventListener('change',show);
box.querySelector('form').addEventListener('submit',function(e){e.preventDefault();});
box.querySelector('form').hidden=false;fill();})();
"""


def add_what_ifs(page: Page, result: Study) -> None:
    """The section, its data and its script."""
    table = what_ifs(result)
    known = tabulated(table)
    choices = "".join(f"<option>{escape(name)}</option>" for name in known["choices"])
    place = int(_START * (len(known["c"]) - 1))
    page.section("What if")
    page.parts.append(
        '<div class="ask" id="ask"><form hidden>'
        '<label for="budget">Budget: <strong id="budget-words"></strong></label>'
        f'<input type="range" id="budget" min="0" max="1000" value="{_slider(known, place)}">'
        f'<label>Choice <select id="choice">{choices}</select></label>'
        '<label id="setting-line">Setting <select id="setting"></select></label></form>'
        f"{_static(result, table, known, place)}</div>"
    )
    page.text(_NOTE, soft=True)
    text = json.dumps(known, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page.parts.append(f'<script type="application/json" id="what-if-data">{text}</script>')
    page.scripts.append(_JS)


def tabulated(table: pd.DataFrame) -> dict[str, Any]:
    """What the page carries: log10 of c, n, d to five places, losses to six, by choice, setting and
    architecture."""
    grid = sorted(set(numbers(table, "c")))
    choices: dict[str, dict[str, dict[str, Any]]] = {}
    keys = [words(table, name) for name in ("choice", "setting", "arch")]
    for choice, setting, arch in dict.fromkeys(zip(*keys, strict=True)):
        own = where(table, choice=choice, setting=setting, arch=arch)
        if len(own) != len(grid):
            continue  # a law that has no optimum at some budget
        row: dict[str, Any] = {
            **{k: np.log10(numbers(own, k)).round(5).tolist() for k in ("n", "d")},
            "loss": numbers(own, "loss").round(6).tolist(),
            "inside": np.asarray(own["inside"], dtype=int).tolist(),
        }
        if np.isfinite(numbers(own, "lo")).all() and np.isfinite(numbers(own, "hi")).all():
            row |= {k: numbers(own, k).round(6).tolist() for k in ("lo", "hi")}
        choices.setdefault(choice, {}).setdefault(setting, {})[arch] = row
    return {"reported": REPORTED, "c": np.log10(grid).round(5).tolist(), "choices": choices}


def _slider(known: dict[str, Any], place: int) -> int:
    c = known["c"]
    return round(1000 * (c[place] - c[0]) / (c[-1] - c[0]))


def _static(result: Study, table: pd.DataFrame, known: dict[str, Any], place: int) -> str:
    """The table as the page comes, at one budget as reported."""
    columns = ("N*", "D*", "D*/N*", "loss", "against reported", "within the data")
    head = "".join(f'<th scope="col">{name}</th>' for name in ("architecture", *columns))
    rows: list[str] = []
    for group in result.groups:
        if group not in known["choices"][REPORTED][""]:
            continue
        own = where(table, arch=group, choice=REPORTED)
        n, d, loss, low, high = (float(numbers(own, k)[place]) for k in
                                 ("n", "d", "loss", "lo", "hi"))  # fmt: skip
        cells = (si(n), si(d), f"{d / n:.3g}", f"{loss:.4f} [{low:.4f}, {high:.4f}]",
                 "+0.0000", "yes" if bool(own["inside"].to_numpy()[place]) else "no")  # fmt: skip
        body = "".join(f'<td data-of="{name}">{cell}</td>'
                       for name, cell in zip(columns, cells, strict=True))  # fmt: skip
        rows.append(f'<tr data-arch="{escape(group)}"><th scope="row">{escape(look(group).label)}'
                    f"</th>{body}</tr>")  # fmt: skip
    budget = 10 ** known["c"][place]
    return (
        f'<div class="scroll"><table aria-live="polite"><caption>Compute-optimal model of a budget '
        f"(without a script: {budget:.2e} FLOPs, as reported)</caption><thead><tr>{head}</tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
