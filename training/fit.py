"""The ways to train: the last layer alone on features computed once, or that first and then layers on varied images.

From pretrained weights the last layer is solved first (linear_head.py), so that the first steps of the others do not
spoil their features while it is still random (LP-FT, Kumar et al. 2022). Then the other layers learn, several times
from there if asked, each time with another order and other variations of the images. The network is the mean of the
weights that these end with (model soups, Wortsman et al. 2022) and of those they started from (WiSE-FT, Wortsman et
al. 2022): less sure of the rooms it has seen, better in others. docs/training.md has what each gives.

All is pure of MLflow and, but for the cache of features, of files: images in, the trained network and its history
out. Reading, logging and writing are in train.py. The network of the last epoch is the one: the learning rate has run
out by then, while the best epoch on a few hundred validation images is the luckiest one, and says little about another
room.
"""

import math
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from serving.errors import RejectedError
from training import augment, distributed, linear_head, metrics, precision
from training.dataset import Images
from training.features import Features
from training.inference import infer
from training.machine import enough_memory, one_thread_per_operation
from training.model import Network, keep_first_layers, last_layer, replace_layer
from training.pack_file import Chosen
from training.progress import track
from training.replicas import Loss, Replicas
from training.settings import TrainSettings
from training.weighting import image_weights, is_simulated

# At most, that the last layer is solved on before the others learn. Which simulated images they are moves how often the
# network then says `blocked` in a room not seen: with all of them that is no matter of luck.
HEAD_FIRST_IMAGES = 10_000
HEAD_FIRST_EPOCHS = 3  # of linear_head.STEPS each; more change nothing
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
    cache: Optional[Path] = None,
) -> Fitted:
    """Trains as the settings say.

    Args:
        network: with its starting weights; changed in place.
        settings: the `train` block of params.yaml; its `precision` settled (precision.py), or float32 is taken.
        training: what is learned from; of simulated images among real ones, some an epoch.
        validation: what each epoch is measured on; None: epochs are not measured, and there is no history.
        on_epoch: called after each epoch.
        cache: folder where features are kept (features.py), if any.

    Raises:
        RejectedError: the loss stopped being a number.
        OperatorError: there is not enough memory.
    """
    one_thread_per_operation()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    way = _fit_head if settings.finetune == "head" else _fit_layers
    with enough_memory(settings):
        network.to(device)
        distributed.broadcast(network)
        fitted = way(network, settings, training, validation, on_epoch, cache)
    return Fitted(fitted.network.to("cpu").eval(), fitted.history)


def _fit_layers(
    network: Network,
    settings: TrainSettings,
    training: Images,
    validation: Optional[Images],
    on_epoch: OnEpoch,
    cache: Optional[Path],
) -> Fitted:
    if settings.pretrained:
        _fit_head_first(network, settings, training, cache)
    if settings.finetune == "blocks":
        keep_first_layers(network)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    labels = torch.from_numpy(training.labels)
    device = network.scale.device
    weights = torch.from_numpy(image_weights(training.rows, training.labels)).float().to(device)

    def loss(replica: Network, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pixels = torch.from_numpy(training.pixels[chosen.numpy()])  # a copy: the rest may be on disk
        images = augment.batch_of(pixels, network.resolution, generator, settings.augment).to(device)
        with precision.autocast(settings, device):
            logits = replica.classify(images)
        scaled: torch.Tensor = steps.scaler.scale(_loss(logits.float(), labels[chosen].to(device), weights[chosen]))
        return scaled

    replicas = Replicas(network, settings.batch // distributed.size(), settings.seed + 1000 * distributed.rank())
    draw = _Draw(training, settings)
    mean = _MeanOfWeights(start, settings)
    history = _History(on_epoch)
    epochs_each = settings.epochs // settings.averaged
    for epoch in range(1, settings.epochs + 1):
        if (epoch - 1) % epochs_each == 0:  # another fine-tuning begins
            network.load_state_dict(start)
            replicas.spread()
            steps = _Steps(network, settings, epochs_each * draw.steps_per_epoch)
        replicas.train()
        losses = []
        for chosen in track(list(draw.epoch()), f"epoch {epoch}"):
            losses.append(_gradient(replicas, network, chosen, loss) / steps.scaler.get_scale())
            steps.take(losses[-1], epoch)
            replicas.spread()
        distributed.broadcast(network)  # each has its own statistics of batch normalisation
        if epoch % epochs_each == 0:
            mean.add(network)
        if epoch == settings.epochs:
            mean.give(network)
        if validation is not None:
            history.add(losses, infer(network, validation.pixels), validation.labels)
    return Fitted(network, history.epochs)


def _fit_head_first(network: Network, settings: TrainSettings, training: Images, cache: Optional[Path]) -> None:
    """Solves the last layer, on all images unless there are very many."""
    some = _Draw(training, settings).sample(HEAD_FIRST_IMAGES).numpy()
    rows = [training.rows[index] for index in some] if training.rows else []
    images = Images(rows, Chosen(training.pixels, some), training.labels[some])
    device = network.scale.device
    quickly = msgspec.structs.replace(settings, finetune="head", averaged=1, epochs=HEAD_FIRST_EPOCHS)
    _fit_head(network, quickly, images, None, lambda _: None, cache)
    network.to(device)


def _gradient(replicas: Replicas, network: Network, chosen: torch.Tensor, loss: Loss) -> float:
    """Leaves the batch's gradient in the network and returns its loss; torchrun's processes each compute a share."""
    mine = distributed.share(chosen)
    network.zero_grad(set_to_none=True)
    value = replicas.gradient(mine, loss) if len(mine) else 0.0
    return distributed.add_gradients(network, value, len(mine) / len(chosen))


def _fit_head(
    network: Network,
    settings: TrainSettings,
    training: Images,
    validation: Optional[Images],
    on_epoch: OnEpoch,
    cache: Optional[Path],
) -> Fitted:
    name, head = last_layer(network.backbone)
    replace_layer(network.backbone, name, nn.Identity())
    with Features(network, cache) as features:
        views = [features.of(training.pixels, mirror) for mirror in (False, True)]
        unseen = None if validation is None else torch.from_numpy(features.of(validation.pixels))
    replace_layer(network.backbone, name, head)

    head.to("cpu")  # a single layer is quickest where the features are
    history = _History(on_epoch)
    weights = image_weights(training.rows, training.labels)
    simulated = is_simulated(training.rows, len(training.labels))
    if simulated.any() and not simulated.all():  # in all as much as _Draw would draw of them
        real_count, simulated_count = int((~simulated).sum()), int(simulated.sum())
        weights[simulated] *= _simulated_drawn(settings, real_count, simulated_count) / simulated_count
        weights /= weights.mean()
    for loss in linear_head.fit(head, views, training.labels, weights, settings.epochs):
        if validation is not None:
            with torch.no_grad():
                history.add([loss], head(unseen).numpy(), validation.labels)
    return Fitted(network, history.epochs)


def learning_rate_at(step: int, total: int) -> float:
    """Share of the highest learning rate at a step counted from 0, of `total` steps."""
    rising = WARM_UP * total
    if step + 1 < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step + 1 - rising) / (total + 1 - rising))))


def _simulated_drawn(settings: TrainSettings, real: int, simulated: int) -> int:
    """How many of the simulated images an epoch draws."""
    return min(round(settings.simulated_per_real * real), simulated)


class _Draw:
    """The order in which images are learned from.

    An epoch is every real image once, and `simulated_per_real` times as many simulated ones: they show more rooms than
    anybody visits, and must not drown what a real camera sees. Where all are of one kind, every image once.
    """

    def __init__(self, training: Images, settings: TrainSettings) -> None:
        simulated = torch.from_numpy(is_simulated(training.rows, len(training.labels)))
        if bool(simulated.all()):
            simulated = torch.zeros_like(simulated)
        self._real, self._simulated = torch.where(~simulated)[0], torch.where(simulated)[0]
        self._batch = settings.batch
        self.generator = torch.Generator().manual_seed(settings.seed)
        self._simulated_count = _simulated_drawn(settings, len(self._real), len(self._simulated))
        self._count = len(self._real) + self._simulated_count
        self.steps_per_epoch = len(self._starts())

    def sample(self, most: int) -> torch.Tensor:
        """At most `most` indices, in their order: all, or of real and simulated ones as many as an epoch has."""
        real_count = len(self._real)
        if real_count + len(self._simulated) > most:
            real_count = min(real_count, round(most * real_count / self._count))
        kinds = (self._real, real_count), (self._simulated, most - real_count)
        some = [kind[torch.randperm(len(kind), generator=self.generator)[:count]] for kind, count in kinds]
        return torch.cat(some).sort().values

    def _starts(self) -> range:
        """A rest too small for a step is left for the next epoch's shuffle."""
        least = max(2, min(self._batch, self._count) // 2)
        return range(0, self._count - least + 1, self._batch)

    def epoch(self) -> Iterator[torch.Tensor]:
        """Batches of indices."""
        some = self._simulated[torch.randperm(len(self._simulated), generator=self.generator)[: self._simulated_count]]
        chosen = torch.cat([self._real, some])
        chosen = chosen[torch.randperm(len(chosen), generator=self.generator)]
        for start in self._starts():
            yield chosen[start : start + self._batch]


def _loss(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=LABEL_SMOOTHING)
    return (losses * weights).mean()


class _Steps:
    """The optimiser: AdamW, its learning rate rising in a line and falling along a cosine, once in a fine-tuning."""

    def __init__(self, network: Network, settings: TrainSettings, total: int) -> None:
        self.scaler = precision.scaler(settings, network.scale.device)
        self._learning_rate = settings.learning_rate
        learning = [parameter for parameter in network.backbone.parameters() if parameter.requires_grad]
        self._optimiser = torch.optim.AdamW(learning, lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, lambda step: learning_rate_at(step, total))

    def take(self, loss: float, epoch: int) -> None:
        """Moves the parameters along the gradient that the loss left in them."""
        if not math.isfinite(loss):
            raise RejectedError(
                f"the loss became {loss} in epoch {epoch} at train.learning_rate {self._learning_rate}; "
                "lower it. No model was written"
            )
        self.scaler.step(self._optimiser)
        self.scaler.update()
        self._schedule.step()


class _MeanOfWeights:
    """Of what each fine-tuning ended with, and of what all began with; with the statistics of batch normalisation.

    Fresh weights have no share in it: there is nothing in them that another room could need.
    """

    def __init__(self, start: Dict[str, torch.Tensor], settings: TrainSettings) -> None:
        start_share = settings.start_share if settings.pretrained else 0.0
        self._share = (1 - start_share) / settings.averaged
        self._sum = {name: start_share * tensor for name, tensor in start.items() if tensor.is_floating_point()}

    def add(self, network: Network) -> None:
        """Counts what a fine-tuning ended with."""
        for name, tensor in network.state_dict().items():
            if name in self._sum:
                self._sum[name].add_(tensor, alpha=self._share)

    def give(self, network: Network) -> None:
        """Makes the network the mean."""
        for name, tensor in network.state_dict().items():
            if name in self._sum:
                tensor.copy_(self._sum[name])


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
