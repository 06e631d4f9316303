"""How torch uses this machine: cores that seldom wait for each other, and the same numbers every time."""

import contextlib
import os
import random
import re
from collections import deque
from concurrent.futures import Executor, Future
from typing import Callable, Deque, Iterable, Iterator, TypeVar

from serving.errors import OperatorError, first_line
from training.settings import TrainSettings

Item = TypeVar("Item")
Result = TypeVar("Result")
# Of a CPU, of CUDA, and of its libraries, which have no kind of error of their own in every torch from 2.1 on.
_NO_MEMORY = re.compile("out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)


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


@contextlib.contextmanager
def enough_memory(settings: TrainSettings) -> Iterator[None]:
    """Turns what torch and NumPy raise where memory ends into one line.

    Raises:
        OperatorError: there is not enough, with what to set.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not isinstance(problem, MemoryError) and not _NO_MEMORY.search(str(problem)):
            raise
        reason = first_line(problem)[:300]
        raise OperatorError(
            f"no memory left at train.batch {settings.batch} and train.resolution {settings.resolution} ({reason}): "
            "lower one, or end what else holds memory. No model was written"
        ) from None


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
