"""The two families of errors, told apart by who can act on them.

Every message is one line for a person and says what to do next. Command lines print it without a traceback.
"""


class JetloopError(Exception):
    """Base of all errors that jetloop raises on purpose."""


class OperatorError(JetloopError):
    """The person who runs this machine can act: configuration, disk, network, a missing program."""


class RejectedError(JetloopError):
    """The author of what came in must act: a bad image set, a bad release, a malformed event."""


def first_line(problem: BaseException) -> str:
    """What another library's error says, for a line of ours; the error's name where it says nothing."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
