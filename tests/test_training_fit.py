"""The two ways to train, on images that a network learns in moments."""

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from serving.errors import OperatorError, RejectedError  # noqa: E402
from training import augment, metrics  # noqa: E402
from training.dataset import Images, Row  # noqa: E402
from training.fit import Fitted, _Draw, fit  # noqa: E402
from training.inference import infer  # noqa: E402
from training.machine import enough_memory  # noqa: E402
from training.model import BACKBONES, FIRST_LAYERS, Network  # noqa: E402
from training.settings import TrainSettings  # noqa: E402


def bright_or_dark(count: int, seed: int) -> Images:
    """`blocked` is bright below, `free` dark: learned by any network."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % 2
    pixels = generator.integers(60, 100, (count, 224, 224, 3), dtype=np.uint8)
    pixels[labels == metrics.BLOCKED, 112:] += 120
    return Images([], pixels, labels)


def settings(**changes: object) -> TrainSettings:
    chosen = {"resolution": 112, "epochs": 2, "batch": 8, "seed": 1, **changes}
    return TrainSettings(**chosen)  # type: ignore[arg-type]


def test_the_head_alone_learns_on_fixed_features() -> None:
    """Nothing but the last layer changes, and the network tells the classes apart."""
    torch.manual_seed(1)
    network = Network("mobilenet_v2", 112)
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    head_only = settings(finetune="head", epochs=20, learning_rate=0.01)
    fitted = fit(network, head_only, bright_or_dark(24, 1), bright_or_dark(8, 2))
    changed = {name for name, value in network.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.1.weight", "classifier.1.bias"}
    unseen = bright_or_dark(8, 3)
    p_blocked = metrics.probabilities(infer(fitted.network, unseen.pixels))
    assert metrics.roc_auc(unseen.labels, p_blocked) == 1.0


def test_the_same_seed_gives_the_same_network() -> None:
    """Two trainings agree to the last bit."""
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        fitted = fit(Network("mobilenet_v3_small", 112), settings(), bright_or_dark(16, 1), bright_or_dark(4, 2))
        found.append((fitted.history, fitted.network.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(value, found[1][1][name]) for name, value in found[0][1].items())


def test_the_network_of_the_last_epoch_is_kept() -> None:
    """The weights that come back are those that the last line of the history was measured with."""
    torch.manual_seed(1)
    unseen = bright_or_dark(8, 2)
    fitted = fit(Network("mobilenet_v3_small", 112), settings(epochs=3), bright_or_dark(16, 1), unseen)
    loss = metrics.cross_entropy(unseen.labels, metrics.probabilities(infer(fitted.network, unseen.pixels)))
    assert [line.epoch for line in fitted.history] == [1, 2, 3]
    assert loss == pytest.approx(fitted.history[-1].validation_loss, rel=1e-4)


@pytest.mark.parametrize(("per_real", "simulated"), [(1.0, 10), (2.0, 20), (0.5, 5), (100.0, 40)])
def test_simulated_images_are_drawn_as_often_as_asked(per_real: float, simulated: int) -> None:
    """Each epoch has every real image once, so many simulated ones, and over the epochs all of those."""
    rows = [Row(f"s/free/{i}.jpg", "free", "s", "me", "0", "train", simulated=i >= 10) for i in range(50)]
    images = Images(rows, np.empty(0), np.zeros(50, dtype=np.int64))
    draw = _Draw(images, settings(batch=5, simulated_per_real=per_real))
    seen = set()
    for _ in range(60):
        epoch = torch.cat(list(draw.epoch())).tolist()
        assert len(epoch) == len(set(epoch)) == 10 + simulated
        assert sum(number < 10 for number in epoch) == 10
        seen.update(epoch)
    assert seen == set(range(50))
    assert draw.steps_per_epoch == (10 + simulated) / 5


def test_simulated_images_alone_are_all_drawn() -> None:
    """Where there are no real ones, an epoch is all there is."""
    rows = [Row(f"s/free/{i}.jpg", "free", "s", "me", "0", "train", simulated=True) for i in range(12)]
    draw = _Draw(Images(rows, np.empty(0), np.zeros(12, dtype=np.int64)), settings(batch=4))
    assert sorted(torch.cat(list(draw.epoch())).tolist()) == list(range(12))


@pytest.mark.parametrize(
    ("simulated", "most", "real_kept", "simulated_kept"),
    [(40, 50, 10, 40), (40, 15, 5, 10), (40, 45, 10, 35), (0, 4, 4, 0), (50, 8, 8, 0)],
)
def test_the_last_layer_is_solved_on_all_or_on_a_fair_sample(
    simulated: int, most: int, real_kept: int, simulated_kept: int
) -> None:
    """Of more than it takes, real and simulated images are as many as in an epoch; none comes twice."""
    rows = [Row(f"{i}.jpg", "free", "s", "me", "0", "train", simulated=i >= 50 - simulated) for i in range(50)]
    rows = rows[: 10 if not simulated else 50]
    draw = _Draw(Images(rows, np.empty(0), np.zeros(len(rows), dtype=np.int64)), settings(simulated_per_real=2.0))
    some = draw.sample(most).tolist()
    assert some == sorted(set(some))
    assert len(some) == real_kept + simulated_kept
    if 0 < simulated < 50:
        assert sum(number < 10 for number in some) == real_kept


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    """The message names the learning rate; there is no network to write."""
    network = Network("mobilenet_v3_small", 112)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    with pytest.raises(RejectedError, match=r"the loss became nan in epoch 1 at train.learning_rate 0.003; lower it"):
        fit(network, settings(), bright_or_dark(8, 1), bright_or_dark(4, 2))


def test_memory_that_runs_out_is_one_line_with_what_to_set() -> None:
    """A process that may take 400 MB more, and a batch whose layers ask for gigabytes."""
    program = """
import resource
from tests.test_training_fit import bright_or_dark, settings
from training.fit import fit
from training.model import Network

training, network = bright_or_dark(256, 1), Network("mobilenet_v2")
fit(network, settings(epochs=1, resolution=224, batch=2), bright_or_dark(4, 1), None)  # threads and kernels are there
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 400_000_000,) * 2)
fit(network, settings(resolution=224, batch=256), training, None)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    last_line = ended.stderr.splitlines()[-1]
    assert last_line.startswith("serving.errors.OperatorError: no memory left at train.batch 256"), ended.stderr
    assert "lower one" in last_line


@pytest.mark.parametrize("told", ["CUDA out of memory. Tried to allocate 2 GiB", "cuDNN: CUDNN_STATUS_ALLOC_FAILED"])
def test_memory_of_a_gpu_is_told_likewise(told: str) -> None:
    """What CUDA and its libraries say; another error stays what it is."""
    with pytest.raises(OperatorError, match="no memory left"), enough_memory(settings()):
        raise RuntimeError(told)
    with pytest.raises(RuntimeError, match="shapes"), enough_memory(settings()):
        raise RuntimeError("shapes do not fit")


def test_the_first_layers_stay_as_they_are() -> None:
    """`blocks` changes neither weights nor statistics of the first layers, and all others."""
    torch.manual_seed(1)
    network = Network("mobilenet_v2", 112)
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    fit(network, settings(finetune="blocks", weights="some.pth"), bright_or_dark(16, 1), bright_or_dark(4, 2))
    first = tuple(f"{name}." for name in FIRST_LAYERS["mobilenet_v2"])
    for name, value in network.backbone.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(first), name


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_network_has_first_layers(backbone: str) -> None:
    """They are there by their names, and most of the network is not among them."""
    from training.model import keep_first_layers

    network = Network(backbone)
    keep_first_layers(network)
    sizes = {True: 0, False: 0}
    for parameter in network.backbone.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    assert 0 < sizes[False] < 0.1 * sizes[True]


def test_pretrained_weights_have_their_share_in_the_end() -> None:
    """The network is the mean of where it started and where it would have ended."""
    found = {}
    for share in (0.0, 0.25):
        torch.manual_seed(1)
        network = Network("mobilenet_v2", 112)
        start = network.backbone.state_dict()["features.18.0.weight"].clone()
        trained = fit(network, settings(weights="some.pth", start_share=share), bright_or_dark(16, 1), None).network
        found[share] = trained.backbone.state_dict()["features.18.0.weight"]
    assert not torch.equal(found[0.0], start)
    torch.testing.assert_close(found[0.25], 0.75 * found[0.0] + 0.25 * start)


def test_several_fine_tunings_are_averaged() -> None:
    """Each starts anew and ends elsewhere, the first as if alone; the history's last line is of the mean."""
    unseen = bright_or_dark(16, 2)

    def trained(averaged: int, epochs: int) -> Fitted:
        torch.manual_seed(1)
        asked = settings(weights="some.pth", averaged=averaged, epochs=epochs, start_share=0.0)
        return fit(Network("mobilenet_v2", 112), asked, bright_or_dark(16, 1), unseen)

    one, two, three = trained(1, 2), trained(2, 4), trained(3, 6)
    name = "backbone.features.18.0.weight"
    first, mean = one.network.state_dict()[name], two.network.state_dict()[name]
    assert [line.epoch for line in two.history] == [1, 2, 3, 4]
    assert two.history[0] == one.history[0]
    second = 2 * mean - first
    assert not torch.allclose(first, second)
    third = 3 * three.network.state_dict()[name] - first - second
    spread = (first - second).abs().mean()
    assert 0.5 * spread < (third - second).abs().mean() < 2 * spread  # as far from each other as the first two
    loss = metrics.cross_entropy(unseen.labels, metrics.probabilities(infer(two.network, unseen.pixels)))
    assert loss == pytest.approx(two.history[-1].validation_loss, rel=1e-4)


def test_fresh_weights_have_no_share_in_the_end() -> None:
    """There is nothing in them that another room could need."""
    ends = []
    for share in (0.0, 0.5):
        torch.manual_seed(1)
        network = fit(
            Network("mobilenet_v3_small", 112), settings(start_share=share), bright_or_dark(16, 1), None
        ).network
        ends.append(network.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_varied_images_stay_images() -> None:
    """Right size, within 0..255, different from each other, the same for the same seed."""
    pixels = torch.full((4, 224, 224, 3), 100, dtype=torch.uint8)
    pixels[:, :, 112:] = 200
    varied = augment.batch_of(pixels, 112, torch.Generator().manual_seed(1))
    assert varied.shape == (4, 3, 112, 112)
    assert float(varied.min()) >= 0
    assert float(varied.max()) <= 255
    assert not torch.equal(varied[0], varied[1])
    torch.testing.assert_close(varied, augment.batch_of(pixels, 112, torch.Generator().manual_seed(1)))


def test_about_half_of_the_images_are_mirrored() -> None:
    """Left and right change places; above and below never do."""
    pixels = torch.zeros((64, 224, 224, 3), dtype=torch.uint8)
    pixels[:, :112, :112] = 200  # top left
    varied = augment.batch_of(pixels, 112, torch.Generator().manual_seed(1)).mean(dim=1)
    left, right = varied[:, 10:40, 10:40].mean(dim=(1, 2)), varied[:, 10:40, 70:100].mean(dim=(1, 2))
    assert 16 < int((right > left).sum()) < 48
    assert float(varied[:, 70:100].max()) < 60  # contrast lifts the dark a little


def test_images_take_on_each_others_colours() -> None:
    """Nothing else of another image: what is bright in an image stays bright in it, within the means of the batch."""
    pixels = torch.full((32, 224, 224, 3), 40, dtype=torch.uint8)
    pixels[16:] = 160
    pixels[:, 112:, :, 0] += 60  # reddish below
    varied = augment.batch_of(pixels, 112, torch.Generator().manual_seed(1), ["colours"])
    means = varied[:, 1].mean(dim=(1, 2))
    assert float(means.min()) >= 39
    assert float(means.max()) <= 161
    between = (means > 45) & (means < 155)
    assert 4 < int(between.sum()) < 20  # half take on another's, of which half are of the other kind
    assert bool((varied[:, 0, 60:].mean(dim=(1, 2)) > varied[:, 0, :50].mean(dim=(1, 2))).all())
    alone = augment.batch_of(pixels[:1], 112, torch.Generator().manual_seed(1), ["colours"])
    torch.testing.assert_close(alone, augment.batch_of(pixels[:1], 112, torch.Generator(), []))


def test_two_copies_give_the_gradient_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing depends on the rest of the batch, sharing it changes the last digits alone; then all are alike."""
    from training import replicas

    torch.manual_seed(1)
    network = Network("mobilenet_v3_small", 112).double().eval()  # evaluation: no batch statistics, no dropout
    frames, labels = torch.rand(16, 3, 112, 112, dtype=torch.float64) * 255, torch.arange(16) % 2

    def loss(copy: Network, chosen: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(copy.classify(frames[chosen]), labels[chosen])

    found = []
    for count in (1, 2):
        monkeypatch.setattr(replicas, "cores", lambda count=count: count)
        shared = replicas.Replicas(network, 16, seed=1)
        assert len(shared.networks) == count
        value = shared.gradient(torch.arange(16), loss)
        found.append((value, [parameter.grad.clone() for parameter in network.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-6)
    with torch.no_grad():
        next(network.parameters()).add_(1.0)
    shared.spread()
    assert torch.equal(next(shared.networks[1].parameters()), next(network.parameters()))
