"""int8: what the quantised file holds, that it answers as the original, and when it is kept."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("dvc")

from onnx import TensorProto  # noqa: E402

from pipelines import int8, quantize  # noqa: E402
from pipelines.export import export_int8, logits_of_torch, to_onnx  # noqa: E402
from pipelines.onnx_run import latencies_ms, logits_of_onnx  # noqa: E402
from serving.contracts.releases import Decision  # noqa: E402
from serving.errors import RejectedError  # noqa: E402
from training.dataset import Images, Row  # noqa: E402
from training.model import Network  # noqa: E402

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 224, 224, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 1, 0, 1])


@pytest.fixture(scope="module")
def network() -> Network:
    """With logits that depend on the image, and biases of their own, as after training."""
    torch.manual_seed(0)
    made = Network("resnet18", 112).eval()
    with torch.no_grad():
        made.backbone.fc.weight.mul_(4)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.bias.normal_(0, 0.1)
    return made


@pytest.fixture(scope="module")
def model(network: Network) -> bytes:
    return to_onnx(network)


@pytest.fixture(scope="module")
def quantised(model: bytes) -> bytes:
    return quantize.quantise(model, FRAMES[:4])[0]


def tensors(model: bytes) -> "dict[str, onnx.TensorProto]":
    return {tensor.name: tensor for tensor in onnx.load_from_string(model).graph.initializer}


def nodes(model: bytes, kind: str) -> "list[onnx.NodeProto]":
    return [node for node in onnx.load_from_string(model).graph.node if node.op_type == kind]


def test_the_file_is_what_tensorrt_takes(quantised: bytes) -> None:
    """Opset 13 and no operators of ONNX Runtime's own; S8, zero points of 0, weights per channel, biases in float."""
    loaded, constants = onnx.load_from_string(quantised), tensors(quantised)
    assert [(opset.domain, opset.version) for opset in loaded.opset_import] == [("", 13)]
    for node in nodes(quantised, "QuantizeLinear") + nodes(quantised, "DequantizeLinear"):
        zero = constants[node.input[2]]
        assert zero.data_type == TensorProto.INT8
        assert not onnx.numpy_helper.to_array(zero).any()
    made_by = {output: node for node in loaded.graph.node for output in node.output}
    for node in nodes(quantised, "Conv"):
        image, weight = (made_by[name] for name in node.input[:2])
        assert (image.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert constants[weight.input[1]].dims == constants[weight.input[0]].dims[:1]
        assert constants[node.input[2]].data_type == TensorProto.FLOAT


def test_the_preprocessing_stays_in_float(quantised: bytes) -> None:
    """Nothing is rounded before the first convolution's own input."""
    order = [node.op_type for node in onnx.load_from_string(quantised).graph.node]
    order = [kind for kind in order if kind not in ("Constant", "DequantizeLinear")]
    assert order[: order.index("QuantizeLinear")] == ["Transpose", "AveragePool", "Mul", "Add"]


def test_both_forms_answer_nearly_as_the_original(model: bytes, quantised: bytes) -> None:
    """On frames that calibration has not seen either."""
    wanted = logits_of_onnx(model, FRAMES)
    for form in (quantised, quantize.for_cpu(quantised)):
        difference = np.abs(logits_of_onnx(form, FRAMES) - wanted)
        assert 0 < difference.max() < 0.3


def test_the_form_for_a_cpu_rounds_finer_and_leaves_no_float_convolution(model: bytes, quantised: bytes) -> None:
    """After a ReLU the steps are half as large. ONNX Runtime runs every convolution in int8, without the ReLUs."""
    cpu = quantize.for_cpu(quantised)
    before, after = tensors(quantised), tensors(cpu)
    ratios = [
        float(onnx.numpy_helper.to_array(after[name]) / onnx.numpy_helper.to_array(before[name]))
        for name in (node.input[1] for node in nodes(cpu, "QuantizeLinear"))
    ]
    assert {round(ratio, 3) for ratio in ratios} == {round(127 / 255, 3), 1.0}
    assert {after[node.input[2]].data_type for node in nodes(cpu, "QuantizeLinear")} == {TensorProto.UINT8}
    operations = optimised(cpu)
    assert operations.count("QLinearConv") == len(nodes(model, "Conv"))
    assert not {"Conv", "FusedConv", "Relu"} & set(operations)


def optimised(model: bytes) -> "list[str]":
    import tempfile

    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = f"{folder}/optimised.onnx"
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return [node.op_type for node in onnx.load(f"{folder}/optimised.onnx").graph.node]


def test_the_first_convolutions_may_stay_in_float(model: bytes) -> None:
    """One calibration serves all the networks that are tried."""
    whole, partly = quantize.quantise(model, FRAMES[:2], (0, 6))
    assert whole == quantize.quantise(model, FRAMES[:2])[0]
    weights = [node.input[1] for node in nodes(partly, "Conv")]
    assert [name in tensors(partly) for name in weights] == [True] * 6 + [False] * (len(weights) - 6)


def test_the_same_model_and_frames_give_the_same_bytes_in_another_process(model: bytes, tmp_path: Path) -> None:
    """The order of Python's sets, which differs from process to process, does not get into the file."""
    (tmp_path / "model.onnx").write_bytes(model)
    np.save(tmp_path / "frames.npy", FRAMES[:2])
    code = (
        "import sys, hashlib, numpy; from pathlib import Path; from pipelines.quantize import for_cpu, quantise\n"
        "folder = Path(sys.argv[1])\n"
        "made = quantise((folder / 'model.onnx').read_bytes(), numpy.load(folder / 'frames.npy'))[0]\n"
        "print(hashlib.sha256(made).hexdigest(), hashlib.sha256(for_cpu(made)).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def material(network: Network, labels: np.ndarray = LABELS) -> int8.Material:
    logits = logits_of_torch(network, FRAMES)
    return int8.Material(FRAMES[:4], Images([], FRAMES, labels), FRAMES, logits, Decision())


def test_auto_keeps_what_is_as_accurate_and_names_the_cpu_only_if_it_is_quicker(
    network: Network, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is for TensorRT as well, which the time on a CPU says nothing of."""
    (tmp_path / "model.onnx").write_bytes(model)
    for times_ms, targets in (((10.0, 5.0), ["cpu-ort-int8"]), ((10.0, 9.5), [])):
        monkeypatch.setattr(int8, "latencies_ms", lambda models, ms=times_ms: np.array(ms)[:, None])
        report = export_int8(lambda: material(network), "auto", tmp_path)
        assert (report.kept, report.targets) == (True, targets)
        assert (tmp_path / "int8/model.int8.onnx").stat().st_size == report.onnx_bytes < report.original_bytes / 3.5
        assert report.scores["u8"].logit_error < quantize.MAX_LOGIT_ERROR


def test_int8_that_loses_accuracy_is_not_kept(network: Network, model: bytes, tmp_path: Path) -> None:
    """`auto` goes without it, also without the file of before; `yes` says what was lost; `no` measures nothing."""
    wrong = material(network)._replace(golden_logits=logits_of_torch(network, FRAMES) + 3)
    (tmp_path / "int8").mkdir()
    (tmp_path / "int8/model.int8.onnx").write_bytes(b"of before")
    (tmp_path / "model.onnx").write_bytes(model)
    report = export_int8(lambda: wrong, "auto", tmp_path)
    assert (report.kept, report.targets, report.onnx_sha256) == (False, [], "")
    assert "a logit is off by 3." in report.reason
    assert [path.name for path in (tmp_path / "int8").iterdir()] == ["report.json"]
    with pytest.raises(RejectedError, match=r"int8 is not as accurate: a logit is off by 3.*export\.int8"):
        export_int8(lambda: wrong, "yes", tmp_path)
    assert export_int8(lambda: pytest.fail("read"), "no", tmp_path).reason == "export.int8 is `no`"


@pytest.mark.parametrize(
    ("accuracy", "recall", "lost"),
    [(0.9, 0.95, ""), (0.89, 0.94, ""), (0.88, 0.95, "balanced accuracy falls"), (0.95, 0.93, "blocked recall falls")],
)
def test_at_most_one_point_may_be_lost(accuracy: float, recall: float, lost: str) -> None:
    """Of balanced accuracy, and of blocked recall however good the other is."""
    original = int8.Scores(balanced_accuracy=0.9, blocked_recall=0.95, logit_error=0.0)
    found = int8.Scores(balanced_accuracy=accuracy, blocked_recall=recall, logit_error=0.1).lost(original)
    assert found.startswith(lost) if lost else not found


def test_images_for_int8_come_from_everywhere() -> None:
    """Evenly from all sessions and both labels; all where there are few."""
    rows = [
        Row(f"s{i % 4}/{label}/{i}.jpg", label, f"s{i % 4}", "me", "0", "train") for i in range(40) for label in "bf"
    ]
    chosen = int8.spread(rows, 16)
    assert len(set(chosen)) == 16
    assert {(row.session, row.label) for row in chosen} == {(f"s{i}", label) for i in range(4) for label in "bf"}
    assert int8.spread(rows[:3], 16) == sorted(rows[:3])


def test_latencies_are_measured_in_turns(model: bytes) -> None:
    """A row for each network, of as many rounds."""
    taken = latencies_ms([model, model], 3)
    assert taken.shape == (2, 3)
    assert (taken > 0).all()
