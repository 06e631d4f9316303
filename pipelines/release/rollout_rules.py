"""The block `rollout` of params.yaml while the service runs: read again when the file changes."""

import logging
from pathlib import Path

from pipelines.params import RolloutParams, block
from serving.errors import OperatorError

log = logging.getLogger(__name__)


class RolloutRules:
    """The rules in force; a broken edit keeps those before it. Without the block its defaults hold.

    Raises:
        OperatorError: the file is missing, or the block wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rules = self._read()
        self._stamp = self._stamped()

    def __call__(self) -> RolloutParams:
        """The rules in force."""
        stamp = self._stamped()
        if stamp != self._stamp:
            self._stamp = stamp  # also when it is broken: one line an edit is enough
            try:
                self._rules = self._read()
            except OperatorError as problem:
                log.warning("%s: the rules of the rollout stay as they were", problem)
        return self._rules

    def _read(self) -> RolloutParams:
        return block(RolloutParams, self._path, default=RolloutParams())

    def _stamped(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:  # gone: _read says so
            return 0, 0, 0
        return found.st_mtime_ns, found.st_size, found.st_ino
