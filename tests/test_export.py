"""The ONNX file and the golden frames: what they hold, and that the same network gives the same bytes."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("dvc")

from pipelines.export import (  # noqa: E402
    choose_golden,
    export,
    golden_file,
    logits_of_onnx,
    logits_of_torch,
    refuse_wide_integers,
    to_onnx,
)
from serving.contracts.releases import Decision  # noqa: E402
from serving.errors import RejectedError  # noqa: E402
from training.dataset import Row  # noqa: E402
from training.model import BACKBONES, Network  # noqa: E402

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)


def network(backbone: str = "mobilenet_v3_small", resolution: int = 224) -> Network:
    torch.manual_seed(0)
    return Network(backbone, resolution).eval()


@pytest.mark.parametrize(("backbone", "resolution"), [(name, side) for name in BACKBONES for side in (112, 224)])
def test_every_network_answers_in_onnx_as_in_torch(backbone: str, resolution: int) -> None:
    """Preprocessing, layout and channel order included: the frames go in as the camera gives them."""
    made = network(backbone, resolution)
    difference = np.abs(logits_of_onnx(to_onnx(made), FRAMES) - logits_of_torch(made, FRAMES))
    assert difference.max() < 1e-4


def test_the_same_network_gives_the_same_bytes() -> None:
    """The digest names the network: no time, path or line number is in the file."""
    first = to_onnx(network())
    assert to_onnx(network()) == first
    graph = onnx.load_from_string(first).graph
    assert not any(node.doc_string for node in graph.node)
    assert b".py" not in first


def test_blocked_and_free_are_not_swapped() -> None:
    """The first logit of the file is the network's first."""
    made = network()
    last = made.backbone.classifier[3]
    with torch.no_grad():
        last.bias.copy_(torch.tensor([5.0, -5.0]))
        last.weight.zero_()
    np.testing.assert_allclose(logits_of_onnx(to_onnx(made), FRAMES), [[5, -5], [5, -5]], atol=1e-5)


def test_a_constant_that_tensorrt_cannot_narrow_is_refused() -> None:
    """TensorRT 8.2 casts INT64 to INT32; a value that would change is named."""
    from onnx import TensorProto, helper

    wide = helper.make_tensor("ends", TensorProto.INT64, [1], [2**63 - 1])
    fits = helper.make_tensor("shape", TensorProto.INT64, [2], [-1, 2**31 - 1])
    for tensors, passes in (([fits], True), ([fits, wide], False)):
        model = helper.make_model(helper.make_graph([], "g", [], [], initializer=tensors))
        if passes:
            refuse_wide_integers(model)
        else:
            with pytest.raises(RejectedError, match="`ends` is outside of INT32"):
                refuse_wide_integers(model)


def rows(label: str, count: int) -> list[Row]:
    return [Row(f"s{i % 3}/{label}/{i:02}.jpg", label, f"s{i % 3}", "me", "0", "test") for i in range(count)]


def test_golden_frames_are_balanced_and_from_everywhere() -> None:
    """Half of each class, from all sessions, the same each time."""
    chosen = choose_golden(rows("blocked", 30) + rows("free", 9), 8)
    assert [row.label for row in chosen].count("blocked") == 4
    assert {row.session for row in chosen if row.label == "free"} == {"s0", "s1", "s2"}
    assert len({row.image for row in chosen}) == 8
    assert chosen == choose_golden(rows("free", 9) + rows("blocked", 30), 8)


def test_too_few_images_for_the_golden_frames_are_told() -> None:
    """The message names the class, the numbers and the setting."""
    with pytest.raises(RejectedError, match=r"1 images of `free`, and export\.golden_frames asks for 4"):
        choose_golden(rows("blocked", 10) + rows("free", 1), 8)


def test_the_golden_file_is_the_same_every_time_and_numpy_reads_it(tmp_path: Path) -> None:
    """`numpy.savez` would write the time into it."""
    logits = np.array([[1.5, -1.5], [0, 1]], dtype=np.float32)
    content = golden_file(FRAMES, logits)
    assert golden_file(FRAMES, logits) == content
    (tmp_path / "golden.npz").write_bytes(content)
    found = np.load(tmp_path / "golden.npz")
    np.testing.assert_array_equal(found["frames"], FRAMES)
    np.testing.assert_array_equal(found["logits"], logits)


def test_the_report_tells_what_was_written(tmp_path: Path) -> None:
    """Sizes, digests, parity, and the decision as it was given."""
    decision = Decision(blocked_threshold=0.4, temperature=1.2)
    report = export(network(), FRAMES, decision, tmp_path)
    assert report.onnx_bytes == (tmp_path / "model.onnx").stat().st_size
    assert (report.backbone, report.golden_count, report.decision) == ("mobilenet_v3_small", 2, decision)
    assert 0 <= report.parity_max_abs < 1e-4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export.json", "golden.npz", "model.onnx"]


def test_the_same_images_and_settings_give_the_same_digest() -> None:
    """Trained twice from the same seed, on all cores, with dropout: the same ONNX file to the byte."""
    import hashlib

    from training.dataset import Images
    from training.fit import fit
    from training.machine import seed_everything
    from training.settings import TrainSettings

    pixels = np.random.default_rng(1).integers(0, 256, (24, 224, 224, 3), dtype=np.uint8)
    labels = np.arange(24, dtype=np.int64) % 2
    training, validation = Images([], pixels[:16], labels[:16]), Images([], pixels[16:], labels[16:])

    def digest(seed: int) -> str:
        settings = TrainSettings(resolution=112, epochs=1, batch=16, seed=seed)
        seed_everything(seed)
        fitted = fit(Network(settings.backbone, settings.resolution), settings, training, validation)
        return hashlib.sha256(to_onnx(fitted.network)).hexdigest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)
