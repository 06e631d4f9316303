"""/metrics of the release service, for Prometheus: what became of every attempt, and whether the service works."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ENDS = ("released", "refused", "withdrawn")  # present from the start, so that the first of each is seen to appear


def metrics(releases: Iterable[Mapping[str, Any]], healthy: bool) -> bytes:
    """The whole page.

    Args:
        releases: as `/api/releases` lists them.
        healthy: what /healthz says.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    labels = ("channel", "status")
    attempts = Gauge("jetloop_release_attempts", "Versions by what became of them.", labels, registry=registry)
    current = Gauge("jetloop_release_current_info", "What a channel runs.", ("channel", "release"), registry=registry)
    Gauge("jetloop_release_service_up", "What /healthz says.", registry=registry).set(healthy)
    listed = list(releases)
    counts = Counter((one["channel"], one["status"]) for one in listed)
    for channel in {one["channel"] for one in listed}:
        for status in _ENDS:
            counts.setdefault((channel, status), 0)
    for (channel, status), times in counts.items():
        attempts.labels(channel, status).set(times)
    for one in listed:
        if one["current"]:
            current.labels(one["channel"], one["release_id"]).set(1)
    return generate_latest(registry)
