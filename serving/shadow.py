"""Shadow mode: an engine of another channel sees the same frames as the one that drives, and drives nothing.

It has slots, an updater and an engine worker of its own, so that nothing of it can stand in the way of the engine that
drives; what it sees and says is watcher.py. Wired here from robot.toml.
"""

from pathlib import Path
from typing import Any, Callable, Dict, Optional

from serving.config import RobotConfig
from serving.decide import Action
from serving.engine.loading import Loaded
from serving.hardware.base import Frame
from serving.slots import Slots
from serving.updater import Updater
from serving.watcher import Watcher


class Shadow:
    """The shadow of one robot.

    Args:
        config: robot.toml, with a `shadow.channel`.
        refused: told of each release that the shadow does not run: release_id, engine digest, why.

    Raises:
        OperatorError: state_dir cannot be written, or root.json not be read.
    """

    def __init__(self, config: RobotConfig, refused: Callable[[str, str, str], None]) -> None:
        state = Path(config.robot.state_dir)
        self._target = config.engine.target
        self._watcher = Watcher(config.shadow, config.engine, state / "disagreements")
        self._slots = Slots(state / "shadow")
        self._updater = Updater(
            config.repository,
            self._target,
            config.shadow.channel,
            self._slots,
            self._watcher.activate,
            refused,
            robot=config.robot.name,
        )

    @classmethod
    def of(cls, config: RobotConfig, refused: Callable[[str, str, str], None]) -> "Optional[Shadow]":
        """The shadow that robot.toml asks for, or none."""
        return cls(config, refused) if config.shadow.channel else None

    def start(self) -> None:
        """Goes on with the engine that watched last, then looks for a newer one."""
        candidate = self._slots.current()
        if candidate is not None and candidate.passport.target == self._target:
            self._watcher.boot(candidate)
        self._watcher.start()
        self._updater.start()

    def wake(self) -> None:
        """Look for a newer release now; from any thread, returns at once."""
        self._updater.wake()

    def close(self) -> None:
        self._watcher.close()
        self._updater.stop(timeout_s=0.1)

    def offer(self, loaded: Loaded, frame: Frame, action: Action) -> None:
        """A frame that was decided on. For the control thread: never waits."""
        self._watcher.offer(loaded, frame, action)

    def take(self) -> Dict[str, Any]:
        """What was compared since the last call, for the `metrics` event."""
        return self._watcher.take()
