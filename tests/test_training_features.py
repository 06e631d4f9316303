"""The cache of features: computed once, the same in whatever company, and never believed when it is damaged."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from training import features, inference  # noqa: E402
from training.features import Features  # noqa: E402
from training.model import Network, last_layer, replace_layer  # noqa: E402


def network(seed: int = 1) -> Network:
    """Without its last layer."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    made = Network("mobilenet_v3_small", 112)
    name, _ = last_layer(made.backbone)
    replace_layer(made.backbone, name, nn.Identity())
    return made.eval()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (21, 224, 224, 3), dtype=np.uint8)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> "list[int]":
    """How many images the network was asked about, each time."""
    counts: list[int] = []

    def counting(*arguments: object) -> np.ndarray:
        counts.append(len(arguments[1]))  # type: ignore[arg-type]
        return inference.infer(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "infer", counting)
    return counts


def get(folder: "Path | None", images: np.ndarray, mirror: bool = False, seed: int = 1) -> np.ndarray:
    with Features(network(seed), folder) as cache:
        return cache.of(images, mirror)


def test_each_image_is_computed_once(tmp_path: Path, pixels: np.ndarray, computed: "list[int]") -> None:
    """In another process, another order, another selection; its mirror image is another image."""
    first = get(tmp_path, pixels)
    assert np.array_equal(get(tmp_path, pixels[::-3]), first[::-3])
    assert computed == [32]  # whole batches
    mirrored = get(tmp_path, pixels[:3], mirror=True)
    assert not np.array_equal(mirrored, first[:3])
    assert computed == [32, 16]


def test_company_does_not_matter(tmp_path: Path, pixels: np.ndarray) -> None:
    """The same bits, whether an image is computed with these or with those: what was known before leaves no trace."""
    whole = get(tmp_path / "a", pixels)
    for some in (pixels[3:4], pixels[:9], pixels[5:]):
        get(tmp_path / "b", some)
    assert np.array_equal(get(tmp_path / "b", pixels), whole)
    np.testing.assert_allclose(get(None, pixels), whole, rtol=1e-4, atol=1e-5)


def test_another_network_has_features_of_its_own(tmp_path: Path, pixels: np.ndarray) -> None:
    """By its weights, not by its name."""
    first = get(tmp_path, pixels[:2])
    assert not np.array_equal(get(tmp_path, pixels[:2], seed=2), first)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "another"])
def test_a_damaged_file_is_never_believed(
    tmp_path: Path, pixels: np.ndarray, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told, computed anew and replaced."""
    first = get(tmp_path, pixels[:2])
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if damage == "another":
        get(tmp_path, pixels[:2], seed=2)
        (other,) = set(tmp_path.iterdir()) - {path}
        other.replace(path)
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"flip": content, "cut": content[:-500], "empty": b""}[damage])
    assert np.array_equal(get(tmp_path, pixels[:2]), first)
    assert "is damaged" in caplog.text
    caplog.clear()
    assert np.array_equal(get(tmp_path, pixels[:2]), first)
    assert not caplog.text


def test_a_disk_that_takes_nothing_costs_time_alone(
    tmp_path: Path, pixels: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    """The features are there, and a line says that they are not kept."""
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert len(get(tmp_path / "cache", pixels[:2])) == 2
    assert "features are not kept" in caplog.text


def test_the_oldest_files_go(tmp_path: Path, pixels: np.ndarray) -> None:
    """Of the networks used last, a few."""
    for seed in range(features.KEPT + 2):
        get(tmp_path, pixels[:1], seed=seed)
    assert len(list(tmp_path.iterdir())) == features.KEPT
