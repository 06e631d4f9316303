"""How torch uses this machine: threads that wait quietly, and the same numbers every time."""

import os
import random


def quiet_threads() -> None:
    """Call before torch is imported, where libgomp reads it: threads sleep while they wait instead of spinning.

    Spinning makes training several times slower (three times, measured on two cores) once anything else runs on the
    machine, such as the rest of the loop. A variable that is already set wins.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def seed_everything(seed: int) -> None:
    """The same seed gives the same network on the same machine.

    Threads change the order of sums, hence the last digits: their number is logged. Set OMP_NUM_THREADS to fix it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA asks of who wants the same numbers
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
