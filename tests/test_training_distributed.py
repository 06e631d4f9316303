"""Several training processes: two real gloo ones, as torchrun starts them, on a small network."""

import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from training import distributed  # noqa: E402

PROGRAM = """
import os, sys
import torch
from torch import nn
from training import distributed
from serving.command_line import run

def network():
    torch.manual_seed(distributed.rank())  # differently in each process, until the first one's is shared
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

def main(**_):
    fails_in = int(sys.argv[2])
    with distributed.group():
        model = network()
        distributed.broadcast(model)
        model.eval()  # batch normalisation would see the shares alone
        generator = torch.Generator().manual_seed(7)
        inputs = torch.randn(30, 4, generator=generator)
        labels = (inputs.sum(1) > 0).long()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        losses = []
        for step in range(20):
            if step == 10 and fails_in == distributed.rank():
                from serving.errors import RejectedError
                raise RejectedError("the loss became nan")
            chosen = torch.randperm(30, generator=generator)[: 7 if step % 2 else 1]  # 7: unequal; 1: one has none
            mine = distributed.share(chosen)
            optimiser.zero_grad(set_to_none=True)
            value = 0.0
            if len(mine):
                loss = nn.functional.cross_entropy(model(inputs[mine]), labels[mine])
                loss.backward()
                value = float(loss.detach())
            losses.append(distributed.add_gradients(model, value, len(mine) / len(chosen)))
            optimiser.step()
        distributed.wait()
        gathered = distributed.gather(distributed.rank() * 10)
        state = {"losses": losses, "gathered": gathered, "size": distributed.size(), "main": distributed.is_main()}
        state.update(model.state_dict())
        torch.save(state, os.path.join(sys.argv[1], f"{distributed.rank()}.pt"))

run(main)
"""


def train(folder: Path, processes: int, fails_in: int = -1) -> "subprocess.CompletedProcess[str]":
    (folder / "program.py").write_text(PROGRAM)
    command = [str(folder / "program.py"), str(folder), str(fails_in)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launcher, *command]
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=120, cwd=folder
    )


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """The same batches, shared: the same losses and the same network, in both processes, up to rounding."""
    for name, processes in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        done = train(tmp_path / name, processes)
        assert done.returncode == 0, done.stderr
    alone = torch.load(tmp_path / "one/0.pt", weights_only=True)
    first, second = (torch.load(tmp_path / f"two/{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (alone["size"], first["size"], first["main"], second["main"]) == (1, 2, True, False)
    assert (alone["gathered"], first["gathered"], second["gathered"]) == ([0], [0, 10], [0, 10])
    for name in ("losses", "0.weight", "3.bias"):
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)
        torch.testing.assert_close(torch.as_tensor(first[name]), torch.as_tensor(alone[name]), rtol=1e-4, atol=1e-5)


def test_processes_fail_together(tmp_path: Path) -> None:
    """What one refuses ends all of them, soon, and is said in one line; the trace that follows is torchrun's own."""
    done = train(tmp_path, 2, fails_in=1)
    assert done.returncode == 1
    assert "error: the loss became nan" in done.stderr
    assert 'program.py", line' not in done.stderr
    assert not list(tmp_path.glob("*.pt"))


def test_alone_nothing_changes() -> None:
    """Without torchrun there is one process, the whole batch is its own, and its gradient stays as it is."""
    model = torch.nn.Linear(2, 1)
    model(torch.ones(3, 2)).sum().backward()
    before = model.weight.grad.clone()
    with distributed.group():
        assert (distributed.size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
        assert distributed.share(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
        assert distributed.add_gradients(model, 0.5, 1.0) == 0.5
        distributed.broadcast(model)
        distributed.wait()
        assert distributed.gather("mine") == ["mine"]
    assert torch.equal(model.weight.grad, before)
