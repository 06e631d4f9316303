"""The console's looks: one style sheet, light and dark, wide and phone. No font or image from elsewhere."""

STYLE = """
<style>
:root { --ink:#1b1f24; --soft:#667080; --line:#e3e6ea; --paper:#fff; --back:#f6f7f9; --link:#1259b5;
  --good:#157347; --good-b:#e2f3e9; --warn:#8a5a00; --warn-b:#fdf0d3; --bad:#b3261e; --bad-b:#fce6e4;
  --busy:#2457a6; --busy-b:#e4edfb; --off:#59626e; --off-b:#eceef1; }
body.body--dark { --ink:#e4e7eb; --soft:#98a2b0; --line:#2c323a; --paper:#1a1e23; --back:#121518; --link:#7db4ff;
  --good:#7fd6a4; --good-b:#16311f; --warn:#f0c36a; --warn-b:#382a0c; --bad:#ff9d95; --bad-b:#3d1714;
  --busy:#9dc2ff; --busy-b:#17294a; --off:#aab3bf; --off-b:#272c33; }
:root:has(body.body--dark) { color-scheme:dark; }
body, body.body--dark { background:var(--back); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",Arial,sans-serif; font-variant-numeric:tabular-nums; }
.nicegui-content { padding:0; gap:0; align-items:stretch; }
a { color:var(--link); text-decoration:none; } a:hover { text-decoration:underline; }
  a.plain:hover .chip { outline:1px solid; }
a:focus-visible, button:focus-visible { outline:2px solid var(--link); outline-offset:2px; }
.mono, code, pre { font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
  font-size:.87em; }
.top { display:flex; align-items:center; gap:28px; height:56px; padding:0 28px; background:var(--paper);
  border-bottom:1px solid var(--line); position:sticky; top:0; z-index:5; box-sizing:border-box; }
.top .name { font-weight:700; font-size:17px; letter-spacing:-.02em; color:var(--ink); }
.top nav { display:flex; gap:4px; flex:1; }
.top nav a { color:var(--soft); padding:6px 12px; border-radius:6px; font-weight:500; }
.top nav a:hover { color:var(--ink); text-decoration:none; background:var(--back); }
.top nav a.here { color:var(--ink); background:var(--off-b); }
.top .live { font-size:13px; color:var(--soft); white-space:nowrap; }
.top .live::before { content:""; display:inline-block; width:8px; height:8px; border-radius:50%;
  margin-right:7px; background:#2da164; }
.top .live.down::before { background:#d0453b; }
.main { width:100%; max-width:1280px; margin:0 auto; padding:28px; box-sizing:border-box; }
h1 { font-size:22px; line-height:1.3; font-weight:650; letter-spacing:-.02em; margin:0 0 18px; }
h2 { font-size:15px; line-height:1.3; font-weight:650; margin:32px 0 10px; }
.figures { display:grid; grid-template-columns:repeat(auto-fit,minmax(170px,1fr)); gap:12px; margin-bottom:20px; }
.figure, .sheet, .card { background:var(--paper); border:1px solid var(--line); border-radius:10px; }
.figure { padding:12px 16px; } .figure b { display:block; font-size:20px; line-height:1.35; font-weight:650;
  letter-spacing:-.02em; }
.figure span { color:var(--soft); font-size:13px; } .figure.warn b { color:var(--warn); }
.card { padding:18px 20px; }
.sheet { overflow-x:auto; }
table { width:100%; border-collapse:collapse; }
th { text-align:left; font-size:12.5px; font-weight:550; color:var(--soft); padding:10px 16px 8px;
  white-space:nowrap; }
td { padding:9px 16px; border-top:1px solid var(--line); vertical-align:baseline; }
th.number, td.number { text-align:right; white-space:nowrap; }
table.events td:not(:nth-child(5)), table.releases td:nth-child(1), .robots td:nth-child(1),
  .robots td:nth-child(4), .robots td:nth-child(8) { white-space:nowrap; }
.details { color:var(--soft); overflow-wrap:anywhere; }
.note { color:var(--soft); font-size:13px; } .none { color:var(--soft); }
.chip { display:inline-block; padding:1px 9px; border-radius:20px; font-size:13px; font-weight:550;
  white-space:nowrap;
  color:var(--off); background:var(--off-b); }
.chip.good { color:var(--good); background:var(--good-b); }
  .chip.warn { color:var(--warn); background:var(--warn-b); }
.chip.bad { color:var(--bad); background:var(--bad-b); } .chip.busy { color:var(--busy); background:var(--busy-b); }
.gate { white-space:nowrap; font-size:13px; } .gate::before { content:"✓"; margin-right:6px; color:var(--good); }
.gate.bad { color:var(--bad); } .gate.bad::before { content:"✕"; color:var(--bad); }
.empty { padding:36px 28px; text-align:center; background:var(--paper); border:1px dashed var(--line);
  border-radius:10px; }
.empty p { color:var(--soft); margin:4px 0 12px; }
.empty pre { display:inline-block; margin:0; padding:7px 14px; border-radius:7px; background:var(--back);
  border:1px solid var(--line); }
.problem { margin-bottom:16px; padding:11px 16px; border-radius:9px; color:var(--bad); background:var(--bad-b);
  overflow-wrap:anywhere; }
dl { display:grid; grid-template-columns:max-content 1fr; gap:5px 24px; margin:0; }
dt { color:var(--soft); } dd { margin:0; overflow-wrap:anywhere; }
ol.origin { list-style:none; margin:0; padding:0; }
ol.origin li { display:grid; grid-template-columns:84px 1fr; gap:4px 16px; padding:10px 0;
  border-top:1px solid var(--line); }
ol.origin li:first-child { border-top:0; padding-top:0; } ol.origin li:last-child { padding-bottom:0; }
ol.origin .what { color:var(--soft); } ol.origin .mono { overflow-wrap:anywhere; }
.get { display:block; font-size:13px; overflow-wrap:anywhere; } code.get { color:var(--soft); }
code.get::before { content:"$ "; }
.tools { display:flex; gap:18px; align-items:center; margin-bottom:12px; color:var(--soft); font-size:13px; }
.tools h1 { flex:1; margin:0; color:var(--ink); }
.head { display:flex; gap:12px; align-items:center; margin-bottom:18px; flex-wrap:wrap; } .head h1 { margin:0; }
.dark-toggle { padding:0; border:1px solid var(--line); background:none; color:var(--soft); border-radius:7px;
  width:32px; height:32px; font-size:15px; cursor:pointer; }
button, .button { font:inherit; font-size:14px; padding:6px 14px; border-radius:7px; border:1px solid var(--line);
  background:var(--paper); color:var(--ink); cursor:pointer; } button:hover { border-color:var(--soft); }
input, select { font:inherit; font-size:14px; padding:6px 10px; border-radius:7px; border:1px solid var(--line);
  background:var(--paper); color:var(--ink); min-width:0; }
input:focus-visible, select:focus-visible, tr:focus-visible { outline:2px solid var(--link); outline-offset:1px; }
.search { display:flex; flex-wrap:wrap; gap:8px; align-items:center; margin-bottom:14px; }
  .search input[type=search] { flex:1 1 220px; }
th button { all:unset; cursor:pointer; } th button:hover { color:var(--ink); }
  th button:focus-visible { outline:2px solid var(--link); outline-offset:2px; } th[aria-sort] { color:var(--ink); }
  th[aria-sort=ascending] button::after { content:" ↑"; } th[aria-sort=descending] button::after { content:" ↓"; }
.pager { display:flex; gap:10px; align-items:center; margin:12px 0; color:var(--soft); font-size:13px; }
.spark { width:80px; height:21px; vertical-align:middle; } .spark polyline { fill:none; stroke:var(--busy);
  stroke-width:1.5; }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr)); gap:12px; margin-top:12px; }
.chart { margin:0; padding:14px 16px; background:var(--paper); border:1px solid var(--line); border-radius:10px; }
.chart figcaption { font-weight:600; margin-bottom:6px; } .chart svg { width:100%; height:auto; display:block; }
.chart text { font-size:11px; fill:var(--soft); } .chart text.end { text-anchor:end; }
.chart .grid { stroke:var(--line); } .chart .mark { stroke:var(--warn); stroke-dasharray:3 3; }
.chart .line { fill:none; stroke:var(--busy); stroke-width:1.6; stroke-linejoin:round; }
  .chart .line-1 { stroke:var(--bad); }
.key { font-weight:400; font-size:13px; color:var(--busy); margin-left:12px; } .key-1 { color:var(--bad); }
ol.timeline, ul.notes, ul.refusals { list-style:none; margin:0; padding:0; }
.timeline li, .notes li, .refusals li { padding:6px 0 6px 14px; border-left:2px solid var(--line);
  overflow-wrap:anywhere; } .timeline li.release { border-left-color:var(--busy); }
.notes p, .refusals p { margin:2px 0 0; } .add-note { display:flex; gap:8px; margin-top:10px; }
  .add-note input[name=text] { flex:1; }
.ring { margin-bottom:12px; } .ring h2 { margin:0; } .ring .note { margin:2px 0 8px; }
  .ring .sheet { border:0; margin-top:10px; }
.bar { height:8px; border-radius:4px; background:var(--off-b); overflow:hidden; }
  .bar i { display:block; height:100%; background:#2da164; }
.nearest { display:grid; grid-template-columns:repeat(auto-fill,minmax(min(230px,100%),1fr)); gap:12px;
  margin-top:12px; }
.nearest figure { margin:0; } .nearest img { width:96px; height:96px; border-radius:7px; image-rendering:auto; }
.who { display:flex; gap:8px; align-items:center; font-size:13px; color:var(--soft); white-space:nowrap; }
  .who form { margin:0; } .who button { padding:3px 9px; font-size:13px; }
body.plain { margin:0; } .signin { max-width:320px; margin:12vh auto; } .signin label { display:block;
  font-size:13px; color:var(--soft); margin-bottom:12px; } .signin input { display:block; width:100%;
  box-sizing:border-box; margin-top:4px; }
@media (prefers-color-scheme:dark) { body.plain { --ink:#e4e7eb; --soft:#98a2b0; --line:#2c323a; --paper:#1a1e23;
  --back:#121518; --link:#7db4ff; --bad:#ff9d95; --bad-b:#3d1714; } }
.skip { position:absolute; left:-9999px; } .skip:focus { left:8px; top:8px; z-index:9; background:var(--paper);
  padding:6px 12px; }
@media (max-width:760px) {
  .top { gap:8px; padding:0 12px; } .top .name, .who:not(:has(form)) { display:none; }
  .top nav { gap:0; } .top nav a { padding:6px; } .top .live { font-size:0; }
  .main { padding:18px 14px; } .figures { grid-template-columns:1fr 1fr; }
  .sheet { background:none; border:0; } thead { display:none; }
  table, tbody, tr, td { display:block; }
  tr { background:var(--paper); border:1px solid var(--line); border-radius:10px; padding:8px 0; margin-bottom:10px; }
  td, td.number { display:grid; grid-template-columns:104px 1fr; gap:10px; border:0; padding:3px 14px;
  text-align:left; white-space:normal; }
  td::before { content:attr(data-label); color:var(--soft); font-size:13px; }
  .who span { display:none; } thead.keep { display:none; }
  dl { grid-template-columns:1fr; gap:0; } dd { margin-bottom:8px; } ol.origin li { grid-template-columns:1fr; }
}
</style>
"""

FAVICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7"
  fill="#157347"/>
<path d="M22 11a8 8 0 1 0 2 6M24 7v6h-6" fill="none" stroke="#fff" stroke-width="3" stroke-linecap="round"
stroke-linejoin="round"/></svg>"""

FAVICON_LINK = '<link rel="icon" href="data:,">'  # of the pages without NiceGUI: no request for one
