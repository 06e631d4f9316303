"""Imports torchvision, also where its CUDA build lies beside a CPU build of torch.

There torchvision's own C++ operators cannot be loaded, and its import stops at registering one of them. Naming the
operators' schemas is enough for models and transforms; calling the operators (`ops.nms`, `decode_jpeg`) still fails.
A torchvision that works is left alone.
"""

import importlib
import sys
from typing import Any, List

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: List[Any] = []  # schemas live as long as the library object that defined them


def torchvision_models() -> Any:
    """The module `torchvision.models`.

    Raises:
        ImportError: torchvision is not installed.
    """
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as problem:
        if "torchvision::nms" not in str(problem):
            raise
    _define_schemas()
    return importlib.import_module("torchvision.models")


def _define_schemas() -> None:
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    if not _libraries:
        new_library: Any = torch.library.Library  # untyped in torch
        library = new_library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _libraries.append(library)
