"""The two doors for a person beside the robot: the local socket and the page. Both lead to the same orders."""

import logging
from pathlib import Path
from typing import Callable, List, Union

from serving.capture import Capture
from serving.config import RobotConfig
from serving.control import Control
from serving.errors import OperatorError
from serving.local.endpoint import Endpoint
from serving.local.glimpse import Glimpse
from serving.local.orders import Orders
from serving.local.page import Page
from serving.probation import Probation
from serving.reporter import Tells
from serving.slots import Slots
from serving.teller import Teller
from serving.upload import Uploads

log = logging.getLogger("robot")

_Door = Union[Endpoint, Page]


class Doors:
    """Opens both. One that does not open is told as a trouble, and keeps nothing from driving.

    What a person said before the last restart holds from here on: see Orders.

    Args:
        control: not yet started.
    """

    def __init__(
        self,
        config: RobotConfig,
        *,
        control: Control,
        probation: Probation,
        slots: Slots,
        reporter: Tells,
        glimpse: Glimpse,
        capture: Capture,
        uploads: Uploads,
        teller: Teller,
    ) -> None:
        state_dir = Path(config.robot.state_dir)
        self._troubles = teller.troubles
        self._doors: List[_Door] = []
        orders = Orders(state_dir, control, probation, slots, reporter, glimpse, capture, uploads, teller.status)
        self._open("socket", lambda: Endpoint(state_dir, orders.do))
        if config.page.port:
            totals = control.window.totals
            self._open("page", lambda: Page(config.page, orders.do, teller.status, totals, glimpse))

    def start(self) -> None:
        for door in self._doors:
            door.start()

    def close(self) -> None:
        for door in self._doors:
            door.close()

    def _open(self, name: str, make: Callable[[], _Door]) -> None:
        try:
            self._doors.append(make())
        except OperatorError as problem:
            log.error("%s", problem)
            self._troubles[name] = str(problem)
