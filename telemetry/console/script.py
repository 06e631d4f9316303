"""What the browser does by itself: the dark page, how long ago, and the keyboard. A few lines, no library."""

SCRIPT = """
<script>
addEventListener('load', () => {
  const kept = localStorage.getItem('jetloop-dark');
  if (kept !== null) Quasar.Dark.set(kept === 'true');
});
(() => {
  const units = [[86400, 'd'], [3600, 'h'], [60, 'min']];
  const skew = Date.now() - JETLOOP_NOW_MS;  // the browser's clock against the console's
  const words = moment => {
    const seconds = Math.max(0, Math.floor((Date.now() - skew - Date.parse(moment)) / 1000));
    if (seconds < 2) return 'now';
    for (const [size, unit] of units) if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
    return `${seconds} s ago`;
  };
  const age = () => document.querySelectorAll('time.ago').forEach(one => {
    const text = words(one.dateTime);
    if (one.textContent !== text) one.textContent = text;
  });
  setInterval(age, 1000);
  addEventListener('DOMContentLoaded', () =>
    new MutationObserver(age).observe(document.body, {childList: true, subtree: true}));

  // "/" goes to the search, j and k or the arrows through the rows, Enter opens, Escape leaves.
  addEventListener('keydown', event => {
    const typing = event.target.closest('input, select, textarea');
    if (event.key === 'Escape' && typing) return event.target.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === '/') {
      const search = document.getElementById('search');
      if (search) { event.preventDefault(); search.focus(); search.select(); } else location.href = '/events';
    }
    const step = {j: 1, ArrowDown: 1, k: -1, ArrowUp: -1}[event.key];
    const rows = [...document.querySelectorAll('tbody tr')].filter(row => row.querySelector('a'));
    const at = rows.findIndex(row => row.contains(document.activeElement));
    if (!step || !rows.length || (at < 0 && event.key.startsWith('Arrow'))) return;
    event.preventDefault();
    const next = rows[Math.min(Math.max(at + step, 0), rows.length - 1)];
    next.querySelector('a').focus();
    next.scrollIntoView({block: 'nearest'});
  });
})();
</script>
"""

TOGGLE_DARK = "() => { Quasar.Dark.toggle(); localStorage.setItem('jetloop-dark', Quasar.Dark.isActive); }"


def script(now_ms: int) -> str:
    """The script of a page that leaves at `now_ms` (Unix time)."""
    return SCRIPT.replace("JETLOOP_NOW_MS", str(now_ms))
