"""How torch uses this machine: cores that seldom wait for each other, and the same numbers every time."""

import os
import random
from collections import deque
from concurrent.futures import Executor, Future
from typing import Callable, Deque, Iterable, Iterator, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def cores() -> int:
    """Cores that this process may use; processes that torchrun started beside it have their share of them."""
    all_of_them = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, all_of_them // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def in_order(pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int = 8) -> Iterator[Result]:
    """`pool.map` for long inputs: at most `ahead` items are taken before their turn, so that memory does not grow."""
    waiting: Deque["Future[Result]"] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def one_thread_per_operation() -> None:
    """Cores share a batch image by image (replicas.py, inference.py), and not each operation in it.

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
