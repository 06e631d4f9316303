"""Mixed precision where it pays: a GPU, or a CPU with instructions for it, is quicker in half the bits.

`train.precision: auto` is settled by a short probe, once for each machine and kind of network; what it found is kept in
the cache, so that the next training on this machine is computed alike. On CPUs without such instructions (AVX512-BF16,
AMX) bfloat16 is many times slower, and nothing is probed. None of it has run on a GPU yet: tests do with bfloat16 on a
CPU, and with a scaler that is switched off, as it is there.
"""

import contextlib
import hashlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any, ContextManager, Dict, List

import msgspec
import torch
from torch.nn import functional

from training import distributed, pack
from training.machine import enough_memory, one_thread_per_operation
from training.model import Network, keep_first_layers
from training.settings import TrainSettings

KEPT = "precision.json"
PAYS = 1.15  # times as quick, or it is left: less is not told from a busy moment
STEPS = 3  # of each precision, in turns, after one that is not counted
AMPERE = (
    8  # compute capability, major: from there on GPUs have bfloat16; Volta's and Turing's (a Xavier's) have float16
)


def half_type(device: torch.device) -> torch.dtype:
    """The 16 bits that the device computes in."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < AMPERE:
        return torch.float16
    return torch.bfloat16


def autocast(settings: TrainSettings, device: torch.device) -> ContextManager[Any]:
    """What a forward pass is computed in; the weights stay float32."""
    if settings.precision != "mixed":
        return contextlib.nullcontext()
    return torch.autocast(device.type, half_type(device))


def scaler(settings: TrainSettings, device: torch.device) -> Any:
    """Keeps float16 gradients from vanishing (Micikevicius et al. 2018); with other numbers it does nothing."""
    needed = settings.precision == "mixed" and half_type(device) is torch.float16
    if hasattr(torch, "amp") and hasattr(torch.amp, "GradScaler"):  # from torch 2.3 on
        return torch.amp.GradScaler(device.type, enabled=needed)  # type: ignore[attr-defined]
    return torch.cuda.amp.GradScaler(enabled=needed)


def settle(settings: TrainSettings, cache: Path = pack.CACHE) -> TrainSettings:
    """The settings with `precision: auto` replaced by what pays on this machine; all processes get the first one's."""
    if settings.precision != "auto":
        return settings
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = "float32"
    if distributed.is_main() and has_half(device):
        chosen = _kept_or_probed(settings, device, cache / KEPT)
    return msgspec.structs.replace(settings, precision=distributed.gather(chosen)[0])


def has_half(device: torch.device) -> bool:
    """Whether the device has instructions for 16 bits."""
    if device.type == "cuda":
        return True
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported and supported()) and "avx512" in torch.backends.cpu.get_cpu_capability().lower()


def _kept_or_probed(settings: TrainSettings, device: torch.device, path: Path) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    about = (name, torch.__version__, settings.backbone, settings.resolution, settings.finetune, settings.batch)
    key = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
    kept = _read(path)
    if kept.get(key) not in ("float32", "mixed"):
        kept[key] = "mixed" if probe(settings, device) >= PAYS else "float32"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        os.replace(str(draft), str(path))
    return kept[key]


def _read(path: Path) -> Dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or damaged: it is a cache, and probed again
        return {}
    return found if isinstance(found, dict) else {}


def probe(settings: TrainSettings, device: torch.device) -> float:
    """How many times as quick a training step is in mixed precision as in float32.

    Raises:
        OperatorError: there is not enough memory for one.
    """
    one_thread_per_operation()  # as in training
    # The training draws its numbers as if nothing had been probed.
    with torch.random.fork_rng(), enough_memory(settings):
        return _probe(settings, device)


def _probe(settings: TrainSettings, device: torch.device) -> float:
    network = Network(settings.backbone, settings.resolution).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.finetune != "all":
        keep_first_layers(network)
    shape = (settings.batch, 3, settings.resolution, settings.resolution)
    images = (torch.rand(shape, device=device) * 255).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(settings.batch, device=device) % 2
    taken_s: Dict[str, List[float]] = {"float32": [], "mixed": []}
    for _ in range(1 + STEPS):
        for kind, taken in taken_s.items():
            as_kind = msgspec.structs.replace(settings, precision=kind)
            began = time.perf_counter()
            with autocast(as_kind, device):
                logits = network.classify(images)
            functional.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - began)
    return min(taken_s["float32"][1:]) / min(taken_s["mixed"][1:])
