"""The two ways to train: all layers on varied images, or the last layer alone on features computed once.

Both are pure of files and of MLflow: images in, the trained network and its history out. Reading, logging and writing
are in train.py. The network of the last epoch is the one: the learning rate has run out by then, while the best epoch
on a few hundred validation images is the luckiest one, and says little about another room.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator, List, NamedTuple, Optional

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from serving.errors import RejectedError
from training import augment, distributed, linear_head, metrics
from training.dataset import Images
from training.machine import cores, in_order, one_thread_per_operation
from training.model import Network, last_layer, replace_layer
from training.pack_file import Pixels
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
    network: Network  # as the last epoch left it
    history: List[Epoch]


OnEpoch = Callable[[Epoch], None]


def fit(
    network: Network,
    settings: TrainSettings,
    training: Images,
    validation: Optional[Images],
    on_epoch: OnEpoch = lambda _: None,
) -> Fitted:
    """Trains as the settings say.

    Args:
        network: with its starting weights; changed in place.
        settings: the `train` block of params.yaml.
        training: what is learned from; simulated images among real ones are drawn as often as those.
        validation: what each epoch is measured on; None: epochs are not measured, and there is no history.
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
    return Fitted(fitted.network.to("cpu").eval(), fitted.history)


def _fit_all(
    network: Network, settings: TrainSettings, training: Images, validation: Optional[Images], on_epoch: OnEpoch
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
        images = augment.batch_of(pixels, network.resolution, generator, settings.augment).to(device)
        return _loss(replica.classify(images), labels[chosen].to(device), weights)

    replicas = Replicas(network, settings.batch // distributed.size(), settings.seed + 1000 * distributed.rank())
    draw = _Draw(training, settings)
    steps = _Steps(network.backbone, settings, draw.steps)
    history = _History(on_epoch)
    for epoch in range(1, settings.epochs + 1):
        replicas.train()
        losses = []
        for chosen in track(list(draw.epoch()), f"epoch {epoch}"):
            losses.append(_gradient(replicas, network, chosen, loss))
            steps.take(losses[-1], epoch)
            replicas.spread()
        distributed.broadcast(network)  # each has its own statistics of batch normalisation
        if validation is not None:
            history.add(losses, infer(network, validation.pixels), validation.labels)
    return Fitted(network, history.epochs)


def _gradient(replicas: Replicas, network: Network, chosen: torch.Tensor, loss: Loss) -> float:
    """Leaves the batch's gradient in the network and returns its loss; torchrun's processes each compute a share."""
    mine = distributed.share(chosen)
    network.zero_grad(set_to_none=True)
    value = replicas.gradient(mine, loss) if len(mine) else 0.0
    return distributed.add_gradients(network, value, len(mine) / len(chosen))


def _fit_head(
    network: Network, settings: TrainSettings, training: Images, validation: Optional[Images], on_epoch: OnEpoch
) -> Fitted:
    name, head = last_layer(network.backbone)
    replace_layer(network.backbone, name, nn.Identity())
    straight, mirrored = (infer(network, training.pixels, "features", mirror) for mirror in (False, True))
    unseen = None if validation is None else torch.from_numpy(infer(network, validation.pixels, "features"))
    replace_layer(network.backbone, name, head)

    head.to("cpu")  # a single layer is quickest where the features are
    history = _History(on_epoch)
    weights = linear_head.image_weights(training.labels, _simulated(training))
    for loss in linear_head.fit(head, (straight, mirrored), training.labels, weights, settings.epochs):
        if validation is not None:
            with torch.no_grad():
                history.add([loss], head(unseen).numpy(), validation.labels)
    return Fitted(network, history.epochs)


def infer(network: Network, pixels: Pixels, what: str = "inference", mirror: bool = False) -> np.ndarray:
    """Logits (or features, where the last layer was taken away), in the mode that a robot runs.

    Processes of torchrun must all ask: each answers for its share, and all get the whole.

    Args:
        network: changed to evaluation mode.
        pixels: (N, 224, 224, 3) uint8.
        what: shown beside the progress bar.
        mirror: left and right of the images change places.

    Returns:
        (N, 2) float32 logits, or (N, F) features.
    """
    network.eval()
    device = network.scale.device

    def answers(start: int) -> np.ndarray:
        frames = torch.from_numpy(pixels[start : start + INFERENCE_BATCH]).to(device, torch.float32)
        if mirror:
            frames = frames.flip(2)
        with torch.no_grad():  # holds for this thread alone
            found: np.ndarray = network(frames).cpu().numpy()
        return found

    starts = np.array_split(np.arange(0, len(pixels), INFERENCE_BATCH), distributed.size())[distributed.rank()].tolist()
    with ThreadPoolExecutor(cores() if device.type == "cpu" else 1) as pool:
        mine = list(track(in_order(pool, answers, starts), what, total=len(starts)))
    return np.concatenate([part for parts in distributed.gather(mine) for part in parts])


def _simulated(images: Images) -> np.ndarray:
    """(N,) bool: which were never before a camera; images that nothing is told of were."""
    return np.array([row.simulated for row in images.rows] or [False] * len(images.labels), dtype=bool)


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


class _Draw:
    """The order in which images are learned from.

    An epoch is every real image once, and as many simulated ones: they show more rooms than anybody visits, and must
    not drown what a real camera sees. Where all are of one kind, every image once.
    """

    def __init__(self, training: Images, settings: TrainSettings) -> None:
        simulated = torch.from_numpy(_simulated(training))
        if bool(simulated.all()):
            simulated = torch.zeros_like(simulated)
        self._real, self._simulated = torch.where(~simulated)[0], torch.where(simulated)[0]
        self._batch = settings.batch
        self.generator = torch.Generator().manual_seed(settings.seed)
        self._count = len(self._real) + min(len(self._real), len(self._simulated))
        self.steps = settings.epochs * len(self._starts())

    def _starts(self) -> range:
        """A rest too small for a step is left for the next epoch's shuffle."""
        least = max(2, min(self._batch, self._count) // 2)
        return range(0, self._count - least + 1, self._batch)

    def epoch(self) -> Iterator[torch.Tensor]:
        """Batches of indices."""
        some = self._simulated[torch.randperm(len(self._simulated), generator=self.generator)[: len(self._real)]]
        chosen = torch.cat([self._real, some])
        chosen = chosen[torch.randperm(len(chosen), generator=self.generator)]
        for start in self._starts():
            yield chosen[start : start + self._batch]


def _loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=LABEL_SMOOTHING)


class _Steps:
    """The optimiser: AdamW, its learning rate rising in a line and falling along a cosine, once."""

    def __init__(self, model: nn.Module, settings: TrainSettings, total: int) -> None:
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


class _History:
    """What history.csv tells, as it grows."""

    def __init__(self, on_epoch: OnEpoch) -> None:
        self.epochs: List[Epoch] = []
        self._on_epoch = on_epoch

    def add(self, losses: List[float], logits: np.ndarray, labels: np.ndarray) -> None:
        """An epoch that has ended, with its answers on the validation part."""
        epoch = len(self.epochs) + 1
        p_blocked = metrics.probabilities(logits)
        accuracy = metrics.balanced_accuracy(labels, metrics.decided(p_blocked, 0.5))
        line = Epoch(epoch, float(np.mean(losses)), metrics.cross_entropy(labels, p_blocked), accuracy)
        if not math.isfinite(line.validation_loss):
            raise RejectedError(f"the network gives no numbers after epoch {epoch}; lower train.learning_rate")
        self.epochs.append(line)
        self._on_epoch(line)
