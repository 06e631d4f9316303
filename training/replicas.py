"""One optimiser step on several CPU cores: a copy of the network per core, each on its share of the batch.

The copies meet once a step, to add up their gradients. Training by whole processes on several machines is not here.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Callable

import torch
from torch import nn

from training.machine import cores
from training.model import Network

# (copy of the network, indices of its images, its own source of randomness) -> loss, averaged over its images
Loss = Callable[[Network, torch.Tensor, torch.Generator], torch.Tensor]
MOST = 8  # more copies would leave each too few images for its batch normalisation
FEWEST_IMAGES = 8  # of a copy's share


class Replicas:
    """Copies of a network that compute one gradient together. The first is the network itself.

    Batch normalisation sees each copy's share alone, as usual in data-parallel training; its running statistics are
    those of the first copy. The outcome depends on the number of copies, which is logged.
    """

    def __init__(self, network: Network, batch: int, seed: int) -> None:
        on_cpu = network.scale.device.type == "cpu"
        count = max(1, min(cores(), MOST, batch // FEWEST_IMAGES)) if on_cpu else 1
        self.networks = [network] + [copy.deepcopy(network) for _ in range(count - 1)]
        self._generators = [torch.Generator().manual_seed(seed + index) for index in range(count)]
        for index, replica in enumerate(self.networks):
            _give_dropout(replica, self._generators[index])
        self._parameters = [[p for p in replica.parameters() if p.requires_grad] for replica in self.networks]
        self._pool = ThreadPoolExecutor(count)

    def gradient(self, chosen: torch.Tensor, loss: Loss) -> float:
        """Leaves the gradient of the batch's loss in the first network's parameters and returns the loss."""
        shares = chosen.chunk(len(self.networks))

        def work(network: Network, share: torch.Tensor, generator: torch.Generator) -> float:
            network.zero_grad(set_to_none=True)
            value = loss(network, share, generator) * (len(share) / len(chosen))
            value.backward()  # type: ignore[no-untyped-call]
            return float(value.detach())

        values = list(self._pool.map(work, self.networks, shares, self._generators))
        with torch.no_grad():
            for index, own in enumerate(self._parameters[0]):
                for others in self._parameters[1 : len(shares)]:
                    own.grad.add_(others[index].grad)  # type: ignore[union-attr,arg-type]
        return sum(values)

    def spread(self) -> None:
        """Gives the first network's parameters to the others, after an optimiser step."""
        with torch.no_grad():
            for index, own in enumerate(self._parameters[0]):
                for others in self._parameters[1:]:
                    others[index].copy_(own)

    def train(self) -> None:
        for replica in self.networks:
            replica.train()
            for module in replica.modules():
                if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
                    module.eval()  # its layer does not learn, and its statistics belong to it


class _Dropout(nn.Module):
    """Dropout with its own source of randomness: the global one would be drawn from in the order of the threads."""

    def __init__(self, share: float, generator: torch.Generator) -> None:
        super().__init__()
        self.share = share
        self.generator = generator

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.share:
            return values
        kept = torch.rand(values.shape, generator=self.generator).to(values.device) >= self.share
        return values * kept / (1 - self.share)


def _give_dropout(network: nn.Module, generator: torch.Generator) -> None:
    for name, child in network.named_children():
        if isinstance(child, (nn.Dropout, _Dropout)):
            share = child.p if isinstance(child, nn.Dropout) else child.share
            setattr(network, name, _Dropout(share, generator).train(child.training))
        else:
            _give_dropout(child, generator)
