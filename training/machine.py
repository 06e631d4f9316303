"""How torch uses this machine: cores that seldom wait for each other, and the same numbers every time."""

import os
import random


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread_per_operation() -> None:
    """Cores share a batch image by image (replicas.py, `fit.infer`), and not each operation in it.

    Splitting every operation, as torch does by default, is as fast on an idle machine, and up to three times slower
    once anything else runs on it, such as the rest of the loop: the threads wait for each other at every operation.
    """
    import torch

    torch.set_num_threads(1)


def seed_everything(seed: int) -> None:
    """The same seed gives the same network on the same machine (on another number of cores: another, as good)."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA asks of who wants the same numbers
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
