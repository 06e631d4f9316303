"""robot.toml: the settings of one robot, read once at the start and checked as a whole.

Each table is a frozen struct with its defaults, units and limits; a wrong key or value is refused in one line.
Relative paths mean: relative to the folder of robot.toml.
"""

import ipaddress
import tomllib
from pathlib import Path
from typing import Annotated, Any, Dict, List, Literal

import msgspec
from msgspec import Meta

from serving.contracts.names import NAME_PATTERN, Name
from serving.contracts.releases import Target
from serving.errors import OperatorError, RejectedError
from serving.settings import convert

Text = Annotated[str, Meta(min_length=1, max_length=1000)]
Url = Annotated[str, Meta(pattern=r"^https?://[^\s/]+", max_length=1000)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Megabytes = Annotated[float, Meta(gt=0, le=1_000_000)]
Speed = Annotated[float, Meta(ge=0, le=1)]  # of a motor, as a share of its full speed
NameOrNone = Annotated[str, Meta(pattern=rf"^\Z|{NAME_PATTERN}")]  # as `Name`, or empty
Share = Annotated[float, Meta(ge=0, lt=1)]


class RobotSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who this robot is, and where it keeps what must survive a reboot."""

    name: Name
    site: Name
    ring: Literal["champion", "canary"] = "champion"
    state_dir: Text


class HardwareSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The robot's body: an entry point of the group `jetloop.hardware`, and the arguments it takes."""

    kind: Name
    options: Dict[str, Any] = {}


class RepositorySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where signed releases come from. Nothing of it is trusted but what `root` leads to."""

    url: Url  # serves metadata/ and targets/
    root: Text  # path of the root.json that this robot trusts at its first start
    poll_s: Seconds = 30.0  # looks this often, with jitter, also when no wake-up comes
    timeout_s: Seconds = 10.0  # of one HTTP request


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The broker that events go to. TLS is on when `tls` is true or `ca` is given."""

    host: Text
    port: Annotated[int, Meta(ge=1, le=65_535)] = 1883
    username: str = ""
    password: str = ""
    tls: bool = False
    ca: str = ""  # path: PEM of the authority that signed the broker's certificate; empty: the system's authorities
    certificate: str = ""  # path: PEM of this robot's own certificate
    key: str = ""  # path: PEM of its private key
    keepalive_s: Annotated[int, Meta(ge=1, le=3600)] = 15
    reconnect_max_s: Seconds = 30.0  # longest pause between two attempts
    max_in_flight: Annotated[int, Meta(ge=1, le=1000)] = 20  # events sent and not yet acknowledged
    max_events_per_s: Annotated[float, Meta(ge=1, le=100_000)] = 500.0  # after an outage: deciding comes first
    settle_s: Annotated[float, Meta(ge=0, le=3600)] = 5.0  # from an acknowledgement to the broker having it on disk

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("`certificate` and `key` come together; set both or neither")


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What runs the network: a worker process under an interpreter that can import the runtime of `target`."""

    target: Name = "cpu-ort-fp32"
    python: str = ""  # path of the interpreter; empty: the one that runs the daemon
    threads: Annotated[int, Meta(ge=1, le=64)] = 1
    start_timeout_s: Seconds = 30.0  # until an engine is loaded and warm
    decide_timeout_ms: Annotated[float, Meta(gt=0, le=10_000)] = 150.0  # a worker that takes longer is hung
    max_latency_ratio: Annotated[float, Meta(gt=0)] = 10.0  # median here against the passport's; boards differ
    max_latency_ms: Annotated[float, Meta(gt=0, le=10_000)] = 100.0  # median of a new engine; slower ones are refused
    max_memory_mb: Megabytes = 1500.0  # a worker that holds more is ended and started again
    max_failures: Annotated[int, Meta(ge=1, le=1000)] = 3  # in a row; then the engine before it takes over

    def __post_init__(self) -> None:
        try:
            Target.parse(self.target)
        except RejectedError as problem:
            raise ValueError(str(problem)) from None


class ControlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """From what the network says to what the motors do."""

    max_age_ms: Annotated[float, Meta(gt=0, le=2000)] = 200.0  # no decision on a frame younger than this: motors zero
    forward_speed: Speed = 0.4
    turn_speed: Speed = 0.35
    back_speed: Speed = 0.3
    smoothing: Share = 0.3  # weight of the past in the smoothed probability; 0 takes each frame as it is
    hysteresis: Annotated[float, Meta(ge=0, lt=0.5)] = 0.05  # half width around the passport's threshold
    turn: Literal["left", "right", "alternate"] = "left"  # where to turn when blocked, as the Jetbot notebook: left
    stuck_after_s: Seconds = 6.0  # turning for longer than this: back off a little, then turn the other way
    back_off_s: Seconds = 0.5


class RecorderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The flight recorder: one line of CSV a decision, in two files of at most `max_mb` together."""

    path: str = ""  # empty: decisions.csv in robot.state_dir
    max_mb: Megabytes = 20.0


class OutboxSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Events that wait for the broker."""

    max_mb: Megabytes = 64.0
    max_age_h: Annotated[float, Meta(gt=0, le=100_000)] = 720.0  # of running time; older events are dropped


class ProbationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a new engine must drive at first, or the robot goes back to the one before it."""

    duration_s: Annotated[float, Meta(ge=0, le=86_400)] = 120.0  # of driving, after each swap; 0: no probation
    max_latency_p99_ms: Annotated[float, Meta(gt=0, le=10_000)] = 120.0  # from having the frame to the motors
    min_blocked_rate: Annotated[float, Meta(ge=0, le=1)] = 0.0  # share of decisions that are not `forward`
    max_blocked_rate: Annotated[float, Meta(ge=0, le=1)] = 0.95
    max_spin_s: Seconds = 40.0  # of driving without one `forward`, backing off included
    max_restarts: Annotated[int, Meta(ge=0, le=1000)] = 1  # of the engine, after it crashed, hung or answered nonsense
    max_starts: Annotated[int, Meta(ge=1, le=1000)] = 5  # of the daemon that did not end as they should


class ShadowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An engine of another channel that sees the same frames, without driving."""

    channel: Literal["", "champion", "canary"] = ""  # empty: none
    frames_per_s: Annotated[float, Meta(gt=0, le=120)] = 5.0  # at most; the engine that drives comes first
    keep_frames: Annotated[int, Meta(ge=0, le=10_000)] = 200  # the most disagreeing ones, in disagreements/
    keep_mb: Megabytes = 20.0


class PageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The robot's own page, with /metrics for Prometheus."""

    bind: Text = "127.0.0.1"  # address to listen on; anything but loopback asks for a token
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8420  # 0: no page
    token: str = ""  # who knows it may look and stop; at least 16 characters
    hosts: List[Text] = []  # names under which a browser finds this robot, beside its own
    frames_per_s: Annotated[float, Meta(gt=0, le=30)] = 5.0  # of the picture, for all who look together

    def __post_init__(self) -> None:
        if self.token and len(self.token) < 16:
            raise ValueError("`token` has fewer than 16 characters; `openssl rand -hex 16` makes one")
        if not self.token and not is_loopback(self.bind):
            raise ValueError(f"`bind` is {self.bind}, which others can reach: set `token` too")


class CaptureSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Images that people label on the robot. What is said here goes into each session."""

    source: NameOrNone = ""  # person or house; empty: each session is a source of its own
    place: str = "unknown"
    camera: str = "unknown"
    licence: str = "unknown"
    safety_distance_cm: Annotated[float, Meta(ge=0, le=1000)] = 0.0  # nearer than this is `blocked`; 0: unknown
    max_mb: Megabytes = 500.0  # of all sessions on this robot; then a label is refused
    min_free_mb: Annotated[float, Meta(ge=0, le=1_000_000)] = 200.0  # that capturing leaves of the disk


class UploadSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where finished sessions go."""

    # s3://bucket/folder, or http(s)://host/folder; empty: they stay until someone fetches them
    url: Annotated[str, Meta(pattern=r"^(s3|https?)://[^\s/]+|^\Z", max_length=1000)] = ""
    token: str = ""  # for http(s): sent as `Authorization: Bearer`
    endpoint: Annotated[str, Meta(pattern=r"^https?://[^\s/]+|^\Z", max_length=1000)] = ""  # of S3; empty: Amazon's
    part_mb: Annotated[float, Meta(ge=6, le=1000)] = 8.0  # of an S3 upload: what is lost when the network breaks
    timeout_s: Seconds = 30.0  # of one request
    retry_max_s: Seconds = 300.0  # longest pause between two attempts


class RobotConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """robot.toml as a whole."""

    robot: RobotSettings
    hardware: HardwareSettings
    repository: RepositorySettings
    mqtt: MqttSettings
    engine: EngineSettings = msgspec.field(default_factory=EngineSettings)
    control: ControlSettings = msgspec.field(default_factory=ControlSettings)
    probation: ProbationSettings = msgspec.field(default_factory=ProbationSettings)
    shadow: ShadowSettings = msgspec.field(default_factory=ShadowSettings)
    recorder: RecorderSettings = msgspec.field(default_factory=RecorderSettings)
    outbox: OutboxSettings = msgspec.field(default_factory=OutboxSettings)
    page: PageSettings = msgspec.field(default_factory=PageSettings)
    capture: CaptureSettings = msgspec.field(default_factory=CaptureSettings)
    upload: UploadSettings = msgspec.field(default_factory=UploadSettings)
    metrics_interval_s: Seconds = 10.0


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def load(path: Path) -> RobotConfig:
    """Reads robot.toml.

    Raises:
        OperatorError: the file cannot be read, is not TOML, or holds a key or value that is not allowed.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise OperatorError(
            f"{path}: {problem.strerror}; `jetloop-robot example-config` prints one to begin with"
        ) from None
    except UnicodeDecodeError:
        raise OperatorError(f"{path}: this is not text in UTF-8") from None
    except tomllib.TOMLDecodeError as problem:
        raise OperatorError(f"{path}: this is not TOML: {problem}") from None
    return _with_absolute_paths(convert(raw, RobotConfig, str(path)), path.absolute().parent)


def _with_absolute_paths(config: RobotConfig, folder: Path) -> RobotConfig:
    def absolute(value: str) -> str:
        return str(folder / Path(value).expanduser()) if value else ""

    replace = msgspec.structs.replace
    mqtt = config.mqtt
    return replace(
        config,
        robot=replace(config.robot, state_dir=absolute(config.robot.state_dir)),
        repository=replace(config.repository, root=absolute(config.repository.root)),
        mqtt=replace(mqtt, ca=absolute(mqtt.ca), certificate=absolute(mqtt.certificate), key=absolute(mqtt.key)),
        engine=replace(config.engine, python=absolute(config.engine.python)),
        recorder=replace(config.recorder, path=absolute(config.recorder.path)),
    )
