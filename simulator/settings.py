"""The settings of a drive in the arena, and of the suite that the stage `simulate` drives: names, defaults, limits."""

from typing import Annotated

import msgspec
from msgspec import Meta

from serving.config import ControlSettings

FIRST_JUDGING_SEED = 9_000_000  # rooms from here on are for judging networks, and never for training them


class LoopSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The pace of the loop, and how the robot decides."""

    frames_per_s: Annotated[float, Meta(ge=5, le=60)] = 20.0
    latency_ms: Annotated[float, Meta(ge=0, lt=200)] = 40.0  # from the light on the sensor to the new command
    control: ControlSettings = ControlSettings()  # as in robot.toml

    def __post_init__(self) -> None:
        if self.latency_ms > 1e3 / self.frames_per_s:
            raise ValueError(
                f"latency_ms ({self.latency_ms:g}) must not be longer than a frame at {self.frames_per_s:g} a second"
            )


class SuiteSettings(LoopSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which rooms, from how many places, for how long."""

    rooms: Annotated[int, Meta(ge=2, le=1000)] = 10  # as many are driven at least
    max_rooms: Annotated[int, Meta(ge=2, le=1000)] | None = None  # while the gate is in doubt; None: `rooms`, no more
    starts: Annotated[int, Meta(ge=1, le=100)] = 2  # places in each room
    seconds: Annotated[float, Meta(ge=5, le=3600)] = 12.0  # of driving from each place
    seed: Annotated[int, Meta(ge=FIRST_JUDGING_SEED, lt=2**31)] = FIRST_JUDGING_SEED  # of the first room
    site: Annotated[int, Meta(ge=0)] | None = None  # seed of the lab whose rooms these are; None: every room another
    safety_distance_m: Annotated[float, Meta(ge=0.05, le=2)] = 0.35  # nearer is blocked: what the images were sorted by

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_rooms is not None and self.max_rooms < self.rooms:
            raise ValueError(f"max_rooms ({self.max_rooms}) must not be less than rooms ({self.rooms})")

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.rooms)

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many rooms the figures are looked at: twice as many each time, `max_rooms` at last."""
        most, rooms = self.max_rooms or self.rooms, self.rooms
        found = []
        while rooms < most:
            found.append(rooms)
            rooms *= 2
        return (*found, most)

    def of(self, rooms: int) -> "SuiteSettings":
        """The same suite with as many rooms, no more and no fewer."""
        return msgspec.structs.replace(self, rooms=rooms, max_rooms=None)

    @property
    def driven_s(self) -> float:
        """Seconds of driving in all of it."""
        return self.rooms * self.starts * self.seconds
