"""Heads on frozen features for the benchmarks: the project's own training (`finetune: head`), features computed once.

`training.fit` computes the features of its images anew at each training; a benchmark that trains dozens of heads on the
same images keeps them, in build/bench.
"""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from torch import nn

from training.dataset import Images, Row
from training.fit import fit
from training.inference import infer
from training.model import Network, backbone_of, last_layer, load_weights, replace_layer
from training.settings import TrainSettings

CACHE = Path("build/bench")


class Frozen(nn.Module):
    """In the place of a Network: what it takes for frames are the features of each image and of its mirror image."""

    scale: torch.Tensor  # tells the device, as Network's

    def __init__(self, features: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(OrderedDict(head=nn.Linear(features, 2)))
        self.register_buffer("scale", torch.zeros(1), persistent=False)

    def forward(self, pairs: torch.Tensor) -> torch.Tensor:
        """(N, 1, 2, F) to (N, 2); the axis of 2 is where `infer` mirrors frames."""
        logits: torch.Tensor = self.backbone(pairs[:, 0, 0])
        return logits


def settings_of(weights: Path, resolution: int, epochs: int, learning_rate: float, finetune: str) -> TrainSettings:
    """Settings as the block `train` of params.yaml has them."""
    chosen: Any = {"backbone": backbone_of(weights), "resolution": resolution, "finetune": finetune}
    return TrainSettings(weights=str(weights), epochs=epochs, learning_rate=learning_rate, **chosen)


def features_of(pixels: np.ndarray, settings: TrainSettings) -> np.ndarray:
    """(N, 224, 224, 3) uint8 to (N, 1, 2, F) float32, from the folder CACHE where it holds them."""
    digest = hashlib.sha256(Path(settings.weights).read_bytes() + str(settings.resolution).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    kept = CACHE / f"features-{digest.hexdigest()[:16]}.npy"
    if kept.exists():
        return np.asarray(np.load(kept))
    network = _pretrained(settings)
    name, _ = last_layer(network.backbone)
    replace_layer(network.backbone, name, nn.Identity())
    sides = [infer(network, pixels, "features", mirror) for mirror in (False, True)]
    found: np.ndarray = np.stack(sides, axis=1)[:, None]
    CACHE.mkdir(parents=True, exist_ok=True)
    np.save(kept, found)
    return found


def train_head(
    rows: Sequence[Row], features: np.ndarray, labels: np.ndarray, settings: TrainSettings, seed: int
) -> Frozen:
    """A head, by `training.fit`."""
    import msgspec

    torch.manual_seed(seed)
    network: Any = Frozen(features.shape[-1])
    images = Images(list(rows), features, labels)
    fitted = fit(network, msgspec.structs.replace(settings, finetune="head", seed=seed), images, None)
    trained: Any = fitted.network
    assert isinstance(trained, Frozen)
    return trained


def logits_of(network: Frozen, features: np.ndarray) -> np.ndarray:
    """(N, 2) float32, blocked first."""
    stands_for: Any = network
    return infer(stands_for, features)


def whole(network: Frozen, settings: TrainSettings) -> Network:
    """The backbone with this head: what a robot would run."""
    made = _pretrained(settings)
    name, _ = last_layer(made.backbone)
    _, head = last_layer(network.backbone)
    replace_layer(made.backbone, name, head)
    return made.eval()


def _pretrained(settings: TrainSettings) -> Network:
    torch.manual_seed(0)
    network = Network(settings.backbone, settings.resolution)
    load_weights(network, settings.weights)
    return network
