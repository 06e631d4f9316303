"""The target cpu-ort-int8: built from the quantised ONNX file alone, within its own limit of parity."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("dvc")

from pipelines.export import golden_file, logits_of_torch, to_onnx  # noqa: E402
from pipelines.params import GateParams  # noqa: E402
from pipelines.quantize import MAX_LOGIT_ERROR, for_cpu, quantise  # noqa: E402
from pipelines.release import gates  # noqa: E402
from pipelines.release.build import Golden, builder_of  # noqa: E402
from serving import preprocess  # noqa: E402
from serving.contracts.releases import Measured  # noqa: E402
from serving.engine.ort_backend import Backend  # noqa: E402
from serving.errors import RejectedError  # noqa: E402
from training.model import Network  # noqa: E402

FP32, INT8 = "cpu-ort-fp32", "cpu-ort-int8"
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
LIMITS = GateParams(
    min_balanced_accuracy=0.8, min_blocked_recall=0.85, max_parity_error=0.01, max_latency_ms={FP32: 30.0, INT8: 500.0}
)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network("mobilenet_v2", 112).eval()


@pytest.fixture(scope="module")
def golden(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    path.write_bytes(golden_file(FRAMES, logits_of_torch(network, FRAMES)))
    return Golden.read(path)


def test_the_engine_is_the_form_for_a_cpu_and_a_robot_runs_it(network: Network, golden: Golden, tmp_path: Path) -> None:
    """Built, judged by the gates, and loaded by the robot's own backend, which answers as was measured."""
    quantised = quantise(to_onnx(network), FRAMES)[0]
    built = builder_of(INT8)(quantised, golden)
    assert built.engine == for_cpu(quantised)
    assert not gates.failures(gates.engine_gates(built.measured, INT8, LIMITS))
    (tmp_path / "engine.onnx").write_bytes(built.engine)
    backend = Backend(str(tmp_path / "engine.onnx"), 1, preprocess)
    preprocess.into(FRAMES[0], backend.batch)  # type: ignore[no-untyped-call]
    backend.run()
    assert np.abs(backend.logits[0] - golden.logits[0]).max() <= built.measured.parity_max_abs + 1e-5


def test_what_is_not_quantised_never_becomes_an_int8_engine(network: Network, golden: Golden) -> None:
    """The fp32 file and garbage are refused, in one line that says what to set."""
    for model in (to_onnx(network), b"no network"):
        with pytest.raises(RejectedError, match=r"no int8 ONNX file: set export\.int8"):
            builder_of(INT8)(model, golden)


def test_int8_has_its_own_limit_of_parity() -> None:
    """fp32 keeps the strict one of params.yaml; a higher one there holds for both."""
    measured = Measured(parity_max_abs=0.2, latency_p50_ms=1, latency_p99_ms=2, machine="test")
    assert [gates.failures(gates.engine_gates(measured, target, LIMITS)) == "" for target in (FP32, INT8)] == [
        False,
        True,
    ]
    assert gates.max_parity_error(FP32, LIMITS) == 0.01
    assert gates.max_parity_error("xavier-nx-trt8.5-int8", LIMITS) == MAX_LOGIT_ERROR


@pytest.mark.parametrize(
    ("tags", "targets"),
    [({}, [FP32]), ({"int8.targets": ""}, [FP32]), ({"int8.targets": INT8}, [FP32, INT8])],
)
def test_int8_is_released_only_where_export_found_it_better(tags: "dict[str, str]", targets: "list[str]") -> None:
    """A version without int8 is released for its other targets, and waits for none."""
    assert gates.targets_for([FP32, INT8], tags) == targets
