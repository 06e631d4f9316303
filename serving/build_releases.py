"""Builds what waits for this board: fetch, check, build, measure, report, hand in; one release after the other."""

import datetime
import logging
from pathlib import Path
from typing import List, Optional

from serving import build_engine, build_handin, build_order
from serving.config import RobotConfig
from serving.contracts.builds import BuildReport

log = logging.getLogger("build")


def build_all(
    config: RobotConfig, service: str, key_path: Path, release_id: Optional[str], limits: build_engine.Limits
) -> List[str]:
    """Builds one release, or all that wait, and hands each in.

    Returns:
        The releases that were handed in.

    Raises:
        RejectedError: an order, a network or an engine is no good, or the service does not take it.
        OperatorError: this board, its settings, the network or the service.
    """
    key = build_handin.read_key(key_path)
    target, timeout_s = config.engine.target, config.repository.timeout_s
    if release_id:
        wanted = [release_id]
    else:
        listed = build_order.open_builds(service, target, timeout_s)
        wanted = [one.release_id for one in listed if not one.builder]
    folder = Path(config.robot.state_dir) / "build"
    for release in wanted:
        ordered = build_order.fetch(config.repository, folder, release, target)
        build_engine.check_before(ordered, config.engine, limits)
        made = build_engine.make(ordered, config.engine, limits)
        report = report_of(config, ordered, made)
        build_handin.hand_in(service, report, made.engine, key, timeout_s)
        log.info(
            "%s: handed in, a logit off by %.2g at most, %.1f ms a frame (p99 %.1f ms), %s",
            release,
            made.measured.parity_max_abs,
            made.measured.latency_p50_ms,
            made.measured.latency_p99_ms,
            made.measured.machine,
        )
    return wanted


def report_of(config: RobotConfig, ordered: build_order.Ordered, made: build_engine.Made) -> BuildReport:
    """What this builder says of an engine."""
    sha256, size = build_engine.digest(made)
    return BuildReport(
        release_id=ordered.order.release_id,
        target=ordered.order.target,
        builder=config.robot.name,
        engine_sha256=sha256,
        engine_bytes=size,
        golden_sha256=ordered.order.golden.sha256,
        key=made.key,
        measured=made.measured,
        built_at=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
