"""Training by several processes that torchrun started: one per GPU, or several on CPUs; alone, all of it does nothing.

Every process has the same network and draws the same batches; each takes its share of a batch, and their gradients are
added up before the step, which therefore is the same everywhere. The first process alone reads what is written and
writes: MLflow, files, the terminal. Sharing a batch among the cores of one process is replicas.py.

    torchrun --nproc-per-node=2 -m training.train
"""

import contextlib
import os
from datetime import timedelta
from typing import Iterator, List, TypeVar

import torch
from torch import distributed, nn

from serving.errors import OperatorError, first_line

Part = TypeVar("Part")
TIMEOUT = timedelta(minutes=30)  # the first process may decode a hundred thousand images while the others wait


@contextlib.contextmanager
def group() -> Iterator[None]:
    """Joins the processes that torchrun started, for the time of the `with`; does nothing where it did not.

    Where one of them fails, it leaves the group, and the others fail at their next step together.

    Raises:
        OperatorError: the others cannot be reached.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    on_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _together("join"):
        distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _joined() else 0


def is_main() -> bool:
    """Is this the process that logs and writes?"""
    return rank() == 0


def share(batch: torch.Tensor) -> torch.Tensor:
    """This process's part of a batch (N, ...) that all drew alike; empty where there are too few for everyone."""
    return batch.tensor_split(size())[rank()]


def add_gradients(model: nn.Module, loss: float, weight: float) -> float:
    """Leaves in every process the gradient of the whole batch, and returns its loss.

    Args:
        model: with the gradient of this process's share; a parameter without one counts as zero.
        loss: averaged over the share.
        weight: images of the share divided by those of the batch.

    Raises:
        OperatorError: another process ended.
    """
    if size() == 1:
        return loss
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    # One message instead of one for each parameter, with the loss as its last number.
    flat = torch.cat([part.reshape(-1) for part in parts] + [parts[0].new_tensor([loss])]) * weight
    with _together("add up the gradients"):
        distributed.all_reduce(flat)
    start = 0
    for parameter, part in zip(parameters, parts):  # noqa: B905 (Python 3.8)
        parameter.grad = flat[start : start + part.numel()].view_as(part)
        start += part.numel()
    return float(flat[-1])


def broadcast(model: nn.Module) -> None:
    """Gives every process the first one's parameters and buffers (the statistics of batch normalisation).

    Raises:
        OperatorError: another process ended.
    """
    if size() == 1:
        return
    with _together("share the network"):
        for tensor in model.state_dict().values():
            plain = tensor.contiguous()  # gloo knows no channels-last
            distributed.broadcast(plain, src=0)
            tensor.copy_(plain)


def gather(part: Part) -> List[Part]:
    """What every process has, in the order of their numbers, in all of them.

    Raises:
        OperatorError: another process ended.
    """
    if size() == 1:
        return [part]
    parts: List[Part] = [part] * size()
    with _together("put their answers together"):
        distributed.all_gather_object(parts, part)
    return parts


def wait() -> None:
    """Goes on when every process is here.

    Raises:
        OperatorError: another process ended.
    """
    if size() > 1:
        with _together("wait for each other"):
            distributed.barrier()


@contextlib.contextmanager
def _together(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as problem:  # what gloo and nccl raise when another process is gone
        raise OperatorError(
            f"the training processes cannot {what}; another one failed and says why ({first_line(problem)[:120]})"
        ) from None


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()  # some builds for the Jetson are without
