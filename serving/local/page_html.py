"""The page as one string: no file to install, nothing from elsewhere. page.py fills NONCE and SHOWN_TOKEN in."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="token" content="SHOWN_TOKEN">
<title>jetloop robot</title>
<style nonce="NONCE">
  :root { color-scheme: light dark; --ink: #1a1c1e; --soft: #5b6167; --paper: #f6f7f8; --card: #fff; --line: #dcdfe3;
    --go: #1a7f4b; --stop: #c0342b; --blocked: #c0342b; --free: #1a7f4b; }
  @media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa3ab; --paper: #121416; --card: #1c1f23;
    --line: #33383e; --go: #37a76d; --stop: #d4554c; --blocked: #e0726a; --free: #4fbf85; } }
  * { box-sizing: border-box; }
  body { margin: 0 auto; max-width: 860px; padding: 16px; background: var(--paper); color: var(--ink);
    font: 16px/1.45 system-ui, sans-serif; }
  header { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; margin-bottom: 12px; }
  h1 { font-size: 1.15rem; margin: 0; }
  #mode { font-weight: 650; padding: 1px 10px; border-radius: 99px; background: var(--line); }
  #mode.driving { background: var(--go); color: #fff; }
  #mode.stopped { background: var(--stop); color: #fff; }
  #reason, .soft { color: var(--soft); }
  main { display: grid; gap: 14px; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
  @media (max-width: 620px) { main { grid-template-columns: minmax(0, 1fr); } }
  section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px; }
  #picture { display: block; width: 100%; aspect-ratio: 1; border-radius: 6px; background: #000; }
  .bar { height: 12px; border-radius: 6px; background: var(--line); overflow: hidden; margin: 10px 0 2px; }
  #level { height: 100%; width: 100%; transform-origin: left; transform: scaleX(0); background: var(--blocked); }
  dl { display: grid; grid-template-columns: auto 1fr; gap: 4px 14px; margin: 0; }
  dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
  .row { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; margin-top: 12px; }
  button { font: inherit; font-weight: 600; padding: 12px 8px; border-radius: 8px; border: 1px solid var(--line);
    background: var(--paper); color: var(--ink); cursor: pointer; touch-action: manipulation; }
  button:active { filter: brightness(0.88); } button:focus-visible { outline: 3px solid #3b82f6; outline-offset: 1px; }
  button:disabled { opacity: 0.45; cursor: default; }
  #stop { background: var(--stop); border-color: var(--stop); color: #fff; }
  #resume { background: var(--go); border-color: var(--go); color: #fff; }
  .blocked { color: var(--blocked); } .free { color: var(--free); }
  kbd { font: inherit; font-size: 0.8em; font-weight: 400; color: var(--soft); border: 1px solid var(--line);
    border-radius: 4px; padding: 0 5px; }
  #stop kbd { color: #fff; border-color: #fff8; }
  #said { min-height: 1.5em; margin: 12px 0 0; } #said.bad, #troubles { color: var(--stop); }
  input { font: inherit; width: 100%; padding: 8px; } [hidden] { display: none !important; }
</style>
</head>
<body>
<header><h1 id="robot">robot</h1><span id="mode">…</span><span id="reason"></span></header>
<form id="login" hidden><label>Token of this robot (page.token)<input id="given" type="password"
  autocomplete="current-password"></label><p><button>Enter</button></p></form>
<main id="all">
  <section>
    <img id="picture" alt="What the camera sees">
    <div class="bar" role="img" aria-label="probability of blocked"><div id="level"></div></div>
    <div><span id="probability">–</span> <span class="soft">blocked</span> · <span id="action">–</span></div>
    <div class="row"><button id="stop">Stop <kbd>space</kbd></button><button id="resume">Resume</button></div>
  </section>
  <section>
    <dl><dt>Release</dt><dd id="release">–</dd><dt>Latency</dt><dd id="latency">–</dd>
      <dt>Temperature</dt><dd id="temperature">–</dd><dt>Disk free</dt><dd id="disk">–</dd>
      <dt>Outbox</dt><dd id="outbox">–</dd><dt>Up</dt><dd id="up">–</dd></dl>
    <p id="troubles"></p>
    <div class="soft">Label what the camera sees</div>
    <div class="row">
      <button id="blocked"><span class="blocked">Blocked</span> <b id="n-blocked">0</b> <kbd>b</kbd></button>
      <button id="free"><span class="free">Free</span> <b id="n-free">0</b> <kbd>f</kbd></button></div>
    <div class="row"><button id="finish">Finish session</button><span class="soft" id="waiting"></span></div>
    <p id="said" role="status"></p>
  </section>
</main>
<script nonce="NONCE">
"use strict";
const at = id => document.getElementById(id);
let token = document.querySelector("meta[name=token]").content || sessionStorage.getItem("token") || "";
let picture = "";
const ask = (path, more = {}) => fetch(path, {signal: AbortSignal.timeout(5000), ...more, cache: "no-store",
  headers: {Authorization: "Bearer " + token}});
const text = (id, value) => { const node = at(id); if (node.textContent !== value) node.textContent = value; };
const wait = ms => new Promise(done => setTimeout(done, ms));
function say(words, bad) { text("said", words); at("said").className = bad ? "bad" : ""; }
function login(needed) { at("login").hidden = !needed; at("all").hidden = needed; }
async function order(request) {
  try {
    const answer = await ask("/do", {method: "POST", body: JSON.stringify(request),
      signal: AbortSignal.timeout(60000)});
    if (answer.status === 401) return login(true);
    const told = await answer.json();
    say(told.said, !told.ok);
  } catch (problem) { say("The robot does not answer: " + problem.message, true); }
  await refresh();
}
function show(s) {
  text("robot", s.site + "/" + s.robot);
  text("mode", s.mode); at("mode").className = s.mode;
  text("reason", s.reason);
  const known = s.p_blocked !== null && s.mode !== "no-model" && s.mode !== "loading";
  at("level").style.transform = "scaleX(" + (known ? s.p_blocked : 0) + ")";
  text("probability", known ? (100 * s.p_blocked).toFixed(0) + " %" : "–");
  text("action", known ? s.action : "–");
  text("release", s.release || "none");
  text("latency", known ? s.latency_ms.toFixed(1) + " ms" : "–");
  text("temperature", s.temperature_c === null ? "–" : s.temperature_c.toFixed(0) + " °C");
  text("disk", s.disk_free_mb === null ? "–" : (s.disk_free_mb / 1000).toFixed(1) + " GB");
  text("outbox", s.outbox_depth + " waiting");
  text("up", (s.uptime_s / 60).toFixed(0) + " min");
  text("troubles", s.troubles.join("; "));
  at("resume").disabled = s.mode !== "stopped";
  const c = s.capture;
  text("n-blocked", String(c.blocked)); text("n-free", String(c.free));
  at("finish").disabled = !c.session;
  text("waiting", c.waiting.length ? c.waiting.length + " to upload" : "");
}
async function refresh() {
  try {
    const answer = await ask("/status");
    login(answer.status === 401);
    if (answer.ok) show(await answer.json());
  } catch (problem) { text("mode", "away"); at("mode").className = "stopped"; text("reason", "no answer"); }
}
async function look() {
  try {
    const answer = await ask("/frame.jpg");
    if (answer.ok) {
      const next = URL.createObjectURL(await answer.blob());
      at("picture").src = next;
      if (picture) URL.revokeObjectURL(picture);
      picture = next;
    } else await wait(800);
  } catch (problem) { await wait(800); }
}
const forever = async (act, ms) => { for (;;) { if (!document.hidden) await act(); await wait(ms); } };
at("login").onsubmit = event => { event.preventDefault(); token = at("given").value;
  sessionStorage.setItem("token", token); refresh(); };
at("stop").onclick = () => order({do: "stop"});
at("resume").onclick = () => order({do: "resume"});
at("blocked").onclick = () => order({do: "label", label: "blocked"});
at("free").onclick = () => order({do: "label", label: "free"});
at("finish").onclick = () => order({do: "capture-finish"});
document.addEventListener("keydown", event => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || event.target === at("given")) return;
  const button = {b: "blocked", f: "free", " ": "stop"}[event.key];
  if (button && at("login").hidden) { event.preventDefault(); at(button).click(); }
});
forever(refresh, 500); forever(look, 150);
</script>
</body>
</html>
"""
