"""How pages look and what their script does: light and dark, from phone to desk, and on paper.

Words and controls have a contrast of at least 4.5 to what lies behind them, in both schemes.
Figures are drawn for white paper; in the dark their lightness is turned over and their hue kept.
"""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--ink:#1c1c1c;--soft:#555;--line:#d9d9d9;--wash:#f4f4f1;--paper:#fff;
--accent:#0a5a8a;--care:#b07700;--tip:#1c1c1c;--onTip:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e8e8e6;--soft:#b4b4b0;--line:#3c3c3c;--wash:#242424;
--paper:#161616;--accent:#7cc4f2;--care:#d9a441;--tip:#f0f0ee;--onTip:#161616}
figure svg{filter:invert(.915) hue-rotate(180deg)}}
*{box-sizing:border-box}
[hidden]{display:none!important}
body{margin:0;color:var(--ink);background:var(--paper);font:16px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;overflow-wrap:break-word}
main{max-width:1040px;margin:0 auto;padding:1rem 1rem 4rem}
h1{font-size:1.6rem;line-height:1.2;margin:.6rem 0 .2rem}
h2{font-size:1.2rem;margin:2.4rem 0 .5rem;padding-top:.4rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .3rem}
p,li,figcaption,caption{max-width:48em}
ul{padding-left:1.2rem}
.soft,figcaption,caption{color:var(--soft);font-size:.86rem}
.lead{list-style:none;padding:0;font-size:1.08rem}.lead li{margin:.5rem 0}
.box{background:var(--wash);border-left:4px solid var(--care);padding:.6rem .9rem;margin:1rem 0}
.box>:first-child{margin-top:0}.box>:last-child{margin-bottom:0}
nav{font-size:.9rem;margin:.6rem 0}nav a{margin-right:.9rem;white-space:nowrap}
a{color:var(--accent)}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.skip{position:absolute;left:-99em}.skip:focus{left:1rem;top:.3rem;background:var(--paper)}
figure{margin:1.2rem 0}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll.more{-webkit-mask-image:linear-gradient(90deg,#000 80%,#0002);
mask-image:linear-gradient(90deg,#000 80%,#0002)}
figure svg{display:block;width:100%;height:auto}
figure.wide svg{min-width:600px}
figure.wide{max-width:900px}figure.single{max-width:640px}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}
caption{text-align:left;caption-side:bottom;padding:.4rem 0}
th,td{padding:.22rem .5rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top;
overflow-wrap:normal}
thead th{border-bottom:1.5px solid var(--soft)}
tbody th{font-weight:600}
td.n,th.n{text-align:right}td.n{white-space:nowrap}
td.w{min-width:16em}td.s,th.s{white-space:pre-line}
details{margin:.8rem 0}summary{cursor:pointer;font-weight:600}
.pick{position:sticky;top:0;background:var(--paper);padding:.4rem 0;z-index:2;font-size:.9rem;
border:0;margin:0}
.pick label{display:inline-block;margin-right:1rem;padding:.2rem 0;white-space:nowrap}
.dot{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin:0 .15em}
.ask{background:var(--wash);padding:.7rem .9rem;border-radius:6px;max-width:900px}
.ask label{display:block;margin:.35rem 0}
.ask input[type=range]{width:100%;height:2rem;accent-color:var(--accent)}
.ask select{font:inherit;color:var(--ink);background:var(--paper);border:1px solid var(--soft);
padding:.3rem;max-width:100%}
.tip{position:fixed;z-index:3;max-width:min(20rem,90vw);padding:.25rem .5rem;background:var(--tip);
color:var(--onTip);font-size:.82rem;border-radius:4px;pointer-events:none}
code{font-size:.88em;background:var(--wash);padding:0 .2em}
@media(max-width:640px){figure.wide .scroll::before{content:"swipe sideways for the rest \\2192";
display:block;position:sticky;left:0;color:var(--soft);font-size:.86rem}
table,tbody,caption{display:block}thead{position:absolute;left:-999em}
tr{display:block;border-bottom:2px solid var(--line);padding:.35rem 0}
tbody th,td,td.n,td.w{display:flex;justify-content:space-between;gap:1rem;border:0;
padding:.1rem 0;text-align:right;white-space:pre-line;min-width:0;overflow-wrap:anywhere}
tbody th::before,td::before{content:attr(data-of);color:var(--soft);font-weight:400;text-align:left;
overflow-wrap:normal;flex:0 0 auto;max-width:45%}
tbody th{font-size:.95rem;text-align:left}tbody th::before{content:none}
td.w{display:block;text-align:left}td.w::before{display:block;max-width:none}td:empty{display:none}}
@media(max-width:480px){body{font-size:15px}main{padding:.6rem .8rem 3rem}}
@media print{.pick,.skip,.ask{display:none}details{display:block}figure svg{filter:none}}
"""
JS = """
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
  var wide=box.scrollWidth>box.clientWidth+2;
  if(wide)box.tabIndex=0;else box.removeAttribute('tabindex');
  box.classList.toggle('more',box.scrollLeft+box.clientWidth<box.scrollWidth-2);}
function fades(){boxes.forEach(fade);}
boxes.forEach(function(box){
  box.addEventListener('scroll',function(){fade(box);},{passive:true});});
addEventListener('resize',fades);document.addEventListener('toggle',fades,true);fades();
"""
