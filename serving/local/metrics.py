"""/metrics: what the robot does, in Prometheus' text format 0.0.4."""

import itertools
from typing import Dict, List, Optional

from serving.status import StatusFile
from serving.window import LATENCY_BOUNDS_MS, Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODES = ("no-model", "driving", "standing", "loading", "stopped")


def metrics(status: StatusFile, totals: Totals) -> str:
    """The whole page.

    Args:
        status: as of now.
        totals: since the start of the daemon.
    """
    state = status.state
    capture = status.capture
    about = {"site": state.site, "robot": state.robot, "ring": state.ring, "release": state.release}
    lines: List[str] = []

    def one(name: str, kind: str, text: str, value: Optional[float], labels: Optional[Dict[str, str]] = None) -> None:
        if value is not None:  # what was not measured is not there; never a zero that passes for a reading
            lines.extend((*_head(name, kind, text), _line(name, value, labels or {})))

    one("jetloop_info", "gauge", "Who this robot is and what it runs.", 1, {**about, "engine": state.engine[:12]})
    lines += _head("jetloop_mode", "gauge", "1 for what the robot does now.")
    lines += [_line("jetloop_mode", float(mode == state.mode), {"mode": mode}) for mode in _MODES]
    one("jetloop_uptime_seconds", "gauge", "Since the daemon started.", state.uptime_s)
    one("jetloop_blocked_probability", "gauge", "Of the last decision.", status.p_blocked)
    lines += _histogram(totals)
    one("jetloop_blocked_decisions_total", "counter", "Decisions that were not `forward`.", totals.blocked)
    one("jetloop_stale_frames_total", "counter", "Frames too old, or missing.", totals.stale)
    one("jetloop_outbox_events", "gauge", "Events that wait for the broker.", state.outbox_depth)
    one("jetloop_temperature_celsius", "gauge", "The hottest sensor.", state.temperature_c)
    free_bytes = None if state.disk_free_mb is None else state.disk_free_mb * 1e6
    one("jetloop_disk_free_bytes", "gauge", "Of the disk of state_dir.", free_bytes)
    one("jetloop_troubles", "gauge", "What does not work, and does not keep it from driving.", len(status.troubles))
    if capture is not None:
        one("jetloop_capture_bytes", "gauge", "Labelled sessions on this robot.", capture.used_mb * 1e6)
        one("jetloop_capture_waiting_sessions", "gauge", "Finished, not yet uploaded.", len(capture.waiting))
    return "\n".join(lines) + "\n"


def _histogram(totals: Totals) -> List[str]:
    name = "jetloop_decision_latency_seconds"
    counts = list(itertools.accumulate(totals.by_latency))
    bounds = [f"{bound / 1e3:g}" for bound in LATENCY_BOUNDS_MS] + ["+Inf"]
    return [
        *_head(name, "histogram", "From having a frame to the motors."),
        *(_line(f"{name}_bucket", count, {"le": bound}) for bound, count in zip(bounds, counts, strict=True)),
        _line(f"{name}_sum", totals.latency_ms / 1e3, {}),
        _line(f"{name}_count", counts[-1], {}),
    ]


def _head(name: str, kind: str, text: str) -> List[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _line(name: str, value: float, labels: Dict[str, str]) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
