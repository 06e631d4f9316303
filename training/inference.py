"""What a network answers about images, in the mode that a robot runs: the cores share the images."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from training import distributed
from training.machine import cores, in_order
from training.model import Network
from training.pack_file import Pixels
from training.progress import track

BATCH = 16


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
        frames = torch.from_numpy(pixels[start : start + BATCH]).to(device, torch.float32)
        if mirror:
            frames = frames.flip(2)
        with torch.no_grad():  # holds for this thread alone
            found: np.ndarray = network(frames).cpu().numpy()
        return found

    starts = np.array_split(np.arange(0, len(pixels), BATCH), distributed.size())[distributed.rank()].tolist()
    with ThreadPoolExecutor(cores() if device.type == "cpu" else 1) as pool:
        mine = list(track(in_order(pool, answers, starts), what, total=len(starts)))
    return np.concatenate([part for parts in distributed.gather(mine) for part in parts])
