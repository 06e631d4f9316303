"""Charts as SVG, drawn here: no script and no picture from elsewhere. Pure: points in, markup out."""

import datetime
import itertools
import math
from collections.abc import Sequence

from markupsafe import Markup

from telemetry.console.html import exact, join

Points = Sequence[tuple[datetime.datetime, float]]
_WIDTH, _HEIGHT = 640, 160  # of a chart, in its own units
_LEFT, _BOTTOM, _TOP = 44, 20, 8
_GAP = 3.0  # times the usual distance between points: longer is drawn as a gap, not as a line


def sparkline(values: Sequence[float], title: str) -> Markup:
    """A few values as a line of a word's size; nothing for fewer than two."""
    if len(values) < 2:
        return Markup("")
    top = max(*values, 1e-9)
    step = 80 / (len(values) - 1)
    points = " ".join(f"{index * step:.1f},{20 - 18 * value / top:.1f}" for index, value in enumerate(values))
    form = '<svg class="spark" viewBox="0 0 80 21" role="img" aria-label="{}"><polyline points="{}"/></svg>'
    return Markup(form).format(title, points)


def chart(title: str, unit: str, lines: Sequence[tuple[str, Points]], marks: Points = ()) -> Markup:
    """Lines over time, with the marks (such as a new release) as vertical lines.

    Args:
        title: what is shown.
        unit: of the values; `%` shows values of 0..1 as percent.
        lines: (name, points by rising time).
        marks: moments; their value is the mark's kind, and is not drawn.
    """
    known = [point for _, points in lines for point in points]
    if len(known) < 2:
        return Markup(
            '<figure class="chart"><figcaption>{}</figcaption><p class="note">Nothing to draw yet.</p></figure>'
        ).format(title)
    first, last = min(at for at, _ in known), max(at for at, _ in known)
    span_s = max((last - first).total_seconds(), 1.0)
    top = _round_up(max(value for _, value in known))

    def x(at: datetime.datetime) -> float:
        return _LEFT + (_WIDTH - _LEFT) * (at - first).total_seconds() / span_s

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * value / top

    grid = join(_grid(y(share * top), _label(share * top, unit)) for share in (0.0, 0.5, 1.0))
    drawn = join(
        Markup('<path class="line line-{}" d="{}"/>').format(index, _path([(x(at), y(v)) for at, v in points]))
        for index, (_, points) in enumerate(lines)
    )
    crosses = join(
        Markup('<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            x(at), _TOP, _HEIGHT - _BOTTOM
        )
        for at, _ in marks
        if first <= at <= last
    )
    times = Markup('<text x="{}" y="{}">{}</text><text class="end" x="{}" y="{}">{}</text>').format(
        _LEFT, _HEIGHT - 4, f"{first:%d.%m. %H:%M}", _WIDTH, _HEIGHT - 4, f"{last:%H:%M} UTC"
    )
    names = join(
        Markup('<span class="key key-{}">{} {}</span>').format(
            index, name, _label(points[-1][1], unit) if points else "–"
        )
        for index, (name, points) in enumerate(lines)
    )
    described = f"{title}, {exact(first)} to {exact(last)}"
    form = (
        '<figure class="chart"><figcaption>{} {}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}{}</svg></figure>'
    )
    return Markup(form).format(title, names, _WIDTH, _HEIGHT, described, grid, crosses, drawn, times)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A line that is interrupted where points are missing."""
    steps = sorted(b[0] - a[0] for a, b in itertools.pairwise(points))
    usual = steps[len(steps) // 2] if steps else 0.0
    parts = []
    for index, (x, y) in enumerate(points):
        begins = index == 0 or x - points[index - 1][0] > _GAP * usual + 2
        parts.append(f"{'M' if begins else 'L'}{x:.1f} {y:.1f}")
    return "".join(parts)


def _grid(y: float, label: str) -> Markup:
    form = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/><text class="end" x="{}" y="{:.1f}">{}</text>'
    return Markup(form).format(_LEFT, _WIDTH, y, y, _LEFT - 6, y + 4, label)


def _label(value: float, unit: str) -> str:
    return f"{value:.0%}" if unit == "%" else f"{value:.3g} {unit}"


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... above; a value that is no positive number gives 1."""
    if not math.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value)
