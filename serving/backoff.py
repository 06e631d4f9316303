"""How long to wait before something is tried again."""

import random


def backoff_s(failures: int, base_s: float, cap_s: float) -> float:
    """How long to wait after so many failures in a row: doubling up to `cap_s`, half of it by chance.

    The chance part keeps a fleet that lost the same server from coming back all at once.
    """
    return float(min(cap_s, base_s * 2 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0))
