"""The two ways to train: all layers on varied images, or the last layer alone on features computed once.

Both are pure of files and of MLflow: images in, the best network and its history out. Reading, logging and writing
are in train.py.
"""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, List, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from serving.errors import RejectedError
from training import augment, distributed, metrics
from training.dataset import Images
from training.machine import cores, in_order, one_thread_per_operation
from training.model import Network, last_layer, replace_layer
from training.progress import track
from training.replicas import Loss, Replicas
from training.settings import TrainSettings

INFERENCE_BATCH = 16
WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.05  # labels at the edge of the safety distance are doubtful; and it keeps the logits moderate
WARM_UP = 0.25  # share of the steps in which the learning rate rises
# MobileNetV3 comes with 0.01, made for ImageNet's million steps: after a few hundred the running statistics would still
# be those of the start.
BATCH_NORM_MOMENTUM = 0.1


class Epoch(NamedTuple):
    """One line of history.csv."""

    epoch: int  # from 1
    train_loss: float
    validation_loss: float
    validation_balanced_accuracy: float


class Fitted(NamedTuple):
    network: Network  # with the weights of the best epoch
    history: List[Epoch]
    best: Epoch


OnEpoch = Callable[[Epoch], None]


def fit(
    network: Network, settings: TrainSettings, training: Images, validation: Images, on_epoch: OnEpoch = lambda _: None
) -> Fitted:
    """Trains as the settings say and keeps the epoch with the best balanced accuracy on the validation part.

    Args:
        network: with its starting weights; changed in place.
        settings: the `train` block of params.yaml.
        training: what is learned from.
        validation: what the best epoch is chosen on.
        on_epoch: called after each epoch.

    Raises:
        RejectedError: the loss stopped being a number.
    """
    one_thread_per_operation()
    way = _fit_head if settings.finetune == "head" else _fit_all
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    distributed.broadcast(network)
    fitted = way(network, settings, training, validation, on_epoch)
    return Fitted(fitted.network.to("cpu").eval(), fitted.history, fitted.best)


def _fit_all(
    network: Network, settings: TrainSettings, training: Images, validation: Images, on_epoch: OnEpoch
) -> Fitted:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    labels = torch.from_numpy(training.labels)
    device = network.scale.device
    weights = class_weights(training.labels).to(device)

    def loss(replica: Network, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pixels = torch.from_numpy(training.pixels[chosen.numpy()])  # a copy: the rest may be on disk
        images = augment.batch_of(pixels, network.resolution, generator).to(device)
        return _loss(replica.classify(images), labels[chosen].to(device), weights)

    replicas = Replicas(network, settings.batch // distributed.size(), settings.seed + 1000 * distributed.rank())
    steps = _Steps(network.backbone, settings, len(labels))
    generator = torch.Generator().manual_seed(settings.seed)
    keeper = _BestKeeper(network)
    for epoch in range(1, settings.epochs + 1):
        replicas.train()
        losses = []
        for chosen in track(list(_batches(len(labels), settings.batch, generator)), f"epoch {epoch}"):
            losses.append(_gradient(replicas, network, chosen, loss))
            steps.take(losses[-1], epoch)
            replicas.spread()
        distributed.broadcast(network)  # each has its own statistics of batch normalisation
        keeper.judge(epoch, losses, infer(network, validation.pixels), validation.labels, on_epoch)
    return keeper.fitted()


def _gradient(replicas: Replicas, network: Network, chosen: torch.Tensor, loss: Loss) -> float:
    """Leaves the batch's gradient in the network and returns its loss; torchrun's processes each compute a share."""
    mine = distributed.share(chosen)
    network.zero_grad(set_to_none=True)
    value = replicas.gradient(mine, loss) if len(mine) else 0.0
    return distributed.add_gradients(network, value, len(mine) / len(chosen))


def _fit_head(
    network: Network, settings: TrainSettings, training: Images, validation: Images, on_epoch: OnEpoch
) -> Fitted:
    name, head = last_layer(network.backbone)
    replace_layer(network.backbone, name, nn.Identity())
    mirrored = np.ascontiguousarray(training.pixels[:, :, ::-1])
    parts = [infer(network, pixels, "features") for pixels in (training.pixels, mirrored, validation.pixels)]
    replace_layer(network.backbone, name, head)
    features = torch.cat([torch.from_numpy(part) for part in parts[:2]])
    unseen = torch.from_numpy(parts[2])
    labels = torch.from_numpy(np.concatenate([training.labels, training.labels]))

    head.to("cpu")  # a single layer is quickest where the features are
    weights = class_weights(training.labels)
    steps = _Steps(head, settings, len(labels))
    generator = torch.Generator().manual_seed(settings.seed)
    keeper = _BestKeeper(network)
    for epoch in range(1, settings.epochs + 1):
        losses = []
        for chosen in _batches(len(labels), settings.batch, generator):
            head.zero_grad()
            value = _loss(head(features[chosen]), labels[chosen], weights)
            value.backward()  # type: ignore[no-untyped-call]
            losses.append(float(value.detach()))
            steps.take(losses[-1], epoch)
        with torch.no_grad():
            logits = head(unseen).numpy()
        keeper.judge(epoch, losses, logits, validation.labels, on_epoch)
    return keeper.fitted()


def infer(network: Network, pixels: np.ndarray, what: str = "inference") -> np.ndarray:
    """Logits (or features, where the last layer was taken away), in the mode that a robot runs.

    Processes of torchrun must all ask: each answers for its share, and all get the whole.

    Args:
        network: changed to evaluation mode.
        pixels: (N, 224, 224, 3) uint8.
        what: shown beside the progress bar.

    Returns:
        (N, 2) float32 logits, or (N, F) features.
    """
    network.eval()
    device = network.scale.device

    def answers(start: int) -> np.ndarray:
        frames = torch.from_numpy(pixels[start : start + INFERENCE_BATCH]).to(device, torch.float32)
        with torch.no_grad():  # holds for this thread alone
            found: np.ndarray = network(frames).cpu().numpy()
        return found

    starts = np.array_split(np.arange(0, len(pixels), INFERENCE_BATCH), distributed.size())[distributed.rank()].tolist()
    with ThreadPoolExecutor(cores() if device.type == "cpu" else 1) as pool:
        mine = list(track(in_order(pool, answers, starts), what, total=len(starts)))
    return np.concatenate([part for parts in distributed.gather(mine) for part in parts])


def class_weights(labels: np.ndarray) -> torch.Tensor:
    """(2,) float32: each class counts the same in the loss, whatever its share."""
    counts = np.bincount(labels, minlength=2)
    return torch.tensor(len(labels) / (2.0 * np.maximum(counts, 1)), dtype=torch.float32)


def learning_rate_at(step: int, total: int) -> float:
    """Share of the highest learning rate at a step counted from 0, of `total` steps."""
    rising = WARM_UP * total
    if step + 1 < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step + 1 - rising) / (total + 1 - rising))))


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Shuffled indices; a rest too small for a step is left for the next epoch's shuffle."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count, size):
        chosen = order[start : start + size]
        if len(chosen) >= min(size, count) // 2 and len(chosen) > 1:
            yield chosen


def _loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=LABEL_SMOOTHING)


class _Steps:
    """The optimiser: AdamW, its learning rate rising in a line and falling along a cosine, once."""

    def __init__(self, model: nn.Module, settings: TrainSettings, images: int) -> None:
        total = settings.epochs * len(list(_batches(images, settings.batch, torch.Generator())))
        self._learning_rate = settings.learning_rate
        self._optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda step: learning_rate_at(step, total))

    def take(self, loss: float, epoch: int) -> None:
        """Moves the parameters along the gradient that the loss left in them."""
        if not math.isfinite(loss):
            raise RejectedError(
                f"the loss became {loss} in epoch {epoch} at train.learning_rate {self._learning_rate}; "
                "lower it. No model was written"
            )
        self._optimiser.step()
        self._schedule.step()


class _BestKeeper:
    """The history, and a copy of the network after its best epoch: balanced accuracy first, then the smaller loss."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._history: List[Epoch] = []
        self._best_state = {}  # type: dict[str, torch.Tensor]

    def judge(self, epoch: int, losses: List[float], logits: np.ndarray, labels: np.ndarray, on_epoch: OnEpoch) -> None:
        p_blocked = metrics.probabilities(logits)
        accuracy = metrics.balanced_accuracy(labels, metrics.decided(p_blocked, 0.5))
        line = Epoch(epoch, float(np.mean(losses)), metrics.cross_entropy(labels, p_blocked), accuracy)
        if not math.isfinite(line.validation_loss):
            raise RejectedError(f"the network gives no numbers after epoch {epoch}; lower train.learning_rate")
        self._history.append(line)
        if line == self._best():
            self._best_state = copy.deepcopy(self._network.state_dict())
        on_epoch(line)

    def _best(self) -> Epoch:
        return max(self._history, key=lambda line: (line.validation_balanced_accuracy, -line.validation_loss))

    def fitted(self) -> Fitted:
        self._network.load_state_dict(self._best_state)
        return Fitted(self._network, self._history, self._best())
