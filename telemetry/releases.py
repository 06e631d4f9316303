"""What the release service tells: `GET /api/releases`."""

import urllib.error
import urllib.request

import msgspec

from serving.contracts.releases import GateResult, Passport
from serving.errors import OperatorError

TIMEOUT_S = 3.0


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One decision of the release service: a version was released on a channel, or refused."""

    issued_at: str  # RFC 3339, UTC
    channel: str
    version: str  # of the registered model
    status: str  # released, refused, rolled-back
    release_id: str = ""
    sequence: int | None = None  # of the channel
    reason: str = ""
    current: bool = False  # what the channel's robots are to run now
    passports: dict[str, Passport] = {}  # by target; empty when refused

    def gates(self) -> list[GateResult]:
        """All gates of all targets, each named once with the value of the first target that has it."""
        by_name: dict[str, GateResult] = {}
        for passport in self.passports.values():
            for gate in passport.gates:
                by_name.setdefault(gate.name, gate)
        return list(by_name.values())


def fetch(url: str, timeout_s: float = TIMEOUT_S) -> list[Release]:
    """All decisions, newest first.

    Args:
        url: address of the release service, without `/api/releases`.

    Raises:
        OperatorError: it does not answer, or with something else.
    """
    address = f"{url.rstrip('/')}/api/releases"
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as answer:
            return msgspec.json.decode(answer.read(), type=list[Release])
    except urllib.error.HTTPError as problem:
        raise OperatorError(f"the release service answers {problem.code} at {address}; its log says why") from None
    except (OSError, ValueError) as problem:
        if isinstance(problem, msgspec.MsgspecError):
            raise OperatorError(
                f"{address} answers, but not with releases ({problem}); --releases is the address of "
                "`jetloop release serve`"
            ) from None
        why = getattr(problem, "reason", problem)
        raise OperatorError(f"no release service at {url} ({why}); `jetloop release serve` starts it") from None
