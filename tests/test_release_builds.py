"""What the release service believes of a build that is handed in, over HTTP; and TensorRT-RTX's engines, unmeasured."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.release.build import builder_of
from pipelines.release.builds import Builds, WaitingForBuild
from serving.contracts.builds import (
    BUILDER_HEADER,
    BUILDS_PATH,
    REPORT_HEADER,
    SIGNATURE_HEADER,
    BuildReport,
    signed_content,
    to_header,
)
from serving.contracts.releases import EngineKey, Measured, Target
from serving.contracts.targets import DEVICE, HERE, MEASURED, TARGETS, kind_of
from serving.errors import OperatorError, RejectedError
from tests.build_lab import BOARD, NANO, RELEASE, RTX, Lab, golden_of, made_lab, network, sha256
from tests.conftest import wait_for

ENGINE = b"engine " * 10_000
KEY = Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with made_lab(folder) as made:
        made.know("jetbot-1", public(KEY))
        made.ask(NANO, network(folder), golden_of())
        yield made


def public(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def report_of(lab: Lab, engine: bytes = ENGINE, **changes: Any) -> BuildReport:
    """A report that fits the order for the Jetson Nano; `key_` and `measured_` change what is inside these."""
    key = {
        "board": "jetson-nano",
        "compute_capability": "5.3",
        "runtime_version": "8.2.1.8",
        "precision": "fp16",
        "onnx_sha256": sha256((lab.folder / "network.onnx").read_bytes()),
    }
    measured = {"parity_max_abs": 0.001, "latency_p50_ms": 11.0, "latency_p99_ms": 13.0, "machine": "stand-in"}
    fields = {
        "release_id": RELEASE,
        "target": NANO,
        "builder": "jetbot-1",
        "engine_sha256": sha256(engine),
        "engine_bytes": len(engine),
        "golden_sha256": sha256(golden_of().npz),
        "key": EngineKey(**(key | changes.pop("key_", {}))),
        "measured": Measured(**(measured | changes.pop("measured_", {}))),
        "built_at": "2026-11-23T10:00:00Z",
    }
    return BuildReport(**(fields | changes))


def put(
    lab: Lab,
    report: BuildReport | bytes,
    body: bytes = ENGINE,
    key: Ed25519PrivateKey = KEY,
    path: str = f"{RELEASE}/{NANO}",
    **headers: str,
) -> tuple[int, str]:
    """Hands in; status and answer."""
    raw = report if isinstance(report, bytes) else msgspec.json.encode(report)
    sent = {
        BUILDER_HEADER: "jetbot-1",
        REPORT_HEADER: to_header(raw),
        SIGNATURE_HEADER: to_header(key.sign(signed_content(raw))),
    }
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=10)
    try:
        connection.request("PUT", f"{BUILDS_PATH}/{path}", body=body, headers=sent)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def untouched(lab: Lab) -> bool:
    """Nothing was taken and nothing is left on its way."""
    taken = list((lab.release / "builds").glob("*/*/report.json")) + list((lab.release / "builds").glob("*/*/engine"))
    return not taken and not any(lab.builds.incoming().iterdir()) and lab.woken == 0


BAD_REPORTS: dict[str, tuple[dict[str, Any], int, str]] = {
    "another release": ({"release_id": "collision-avoidance-v9-00000000"}, 404, "nobody asked for"),
    "another target": ({"target": "xavier-nx-trt8.5-fp16"}, 404, "nobody asked for"),
    "another ONNX file": ({"key_": {"onnx_sha256": "0" * 64}}, 422, "about the ONNX file"),
    "other golden frames": ({"golden_sha256": "0" * 64}, 422, "about the golden frames"),
    "another board": ({"key_": {"board": "xavier-nx"}}, 422, "the board xavier-nx, ordered is jetson-nano"),
    "another GPU": ({"key_": {"compute_capability": "7.2"}}, 422, "the compute capability 7.2, ordered is 5.3"),
    "another precision": ({"key_": {"precision": "fp32"}}, 422, "the precision fp32"),
    "another TensorRT": ({"key_": {"runtime_version": "8.20.1"}}, 422, "version 8.20.1, the target names 8.2"),
    "no TensorRT": ({"key_": {"runtime_version": ""}}, 422, "the target names 8.2"),
    "wrong logits": ({"measured_": {"parity_max_abs": 0.02}}, 422, "parity: 0.02 > 0.01"),
    "too slow": ({"measured_": {"latency_p99_ms": 9000.0}}, 422, "latency: 9000 > 5000"),
    "signed for another": ({"builder": "jetbot-2"}, 401, "jetbot-1 signed a report of jetbot-2"),
}


@pytest.mark.parametrize("which", BAD_REPORTS)
def test_a_report_that_does_not_fit_is_refused(lab: Lab, which: str) -> None:
    """With the reason, before a byte of the engine is taken."""
    changes, status, said = BAD_REPORTS[which]
    found, answer = put(lab, report_of(lab, **changes))
    assert (found, said in answer) == (status, True), answer
    assert untouched(lab)


def test_who_is_not_known_hands_nothing_in(lab: Lab) -> None:
    """A stranger's key, a stranger's name, a name that leaves the folder, no header at all, an altered report."""
    report = report_of(lab)
    stranger = Ed25519PrivateKey.generate()
    assert put(lab, report, key=stranger)[0] == 401
    for name in ("nobody", "../keys/online/releases", "", "a" * 5000):
        status, said = put(lab, report, Jetloop_Builder=name)
        assert (status, "no builder of the name" in said) == (401, True)
    assert put(lab, report, Jetloop_Signature="")[0] == 401
    assert put(lab, report, Jetloop_Signature="=!=")[0] == 401
    altered = to_header(msgspec.json.encode(msgspec.structs.replace(report, engine_bytes=7)))
    assert put(lab, report, Jetloop_Report=altered)[0] == 401
    assert put(lab, report, Jetloop_Report="A" * 30_000)[0] == 413
    assert put(lab, report, path=f"{RELEASE}/{BOARD}")[0] == 422
    assert untouched(lab)


@given(raw=st.one_of(st.binary(max_size=300), st.text(max_size=200).map(str.encode)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nonsense_that_is_well_signed_is_refused(lab: Lab, raw: bytes) -> None:
    """A known builder with a broken program gets 422 and a reason, whatever it sends."""
    status, answer = put(lab, raw, body=b"")
    assert (status, "cannot be read" in answer) == (422, True)
    assert untouched(lab)


@pytest.mark.parametrize(
    ("body", "status"),
    [(ENGINE[:-1], 422), (ENGINE + b"x", 422), (b"x" * len(ENGINE), 422), (ENGINE[:1000] * 70, 422)],
    ids=["cut", "longer", "of that length", "repeated"],
)
def test_an_engine_that_is_not_the_reports_is_refused(lab: Lab, body: bytes, status: int) -> None:
    """Its length and digest are signed; what came is removed."""
    assert put(lab, report_of(lab), body=body)[0] == status
    assert untouched(lab)


def test_an_endless_engine_is_cut_off(lab: Lab) -> None:
    """Without a length announced, no more is read than the report says."""
    report = report_of(lab)
    raw = msgspec.json.encode(report)
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=10)
    headers = {
        BUILDER_HEADER: "jetbot-1",
        REPORT_HEADER: to_header(raw),
        SIGNATURE_HEADER: to_header(KEY.sign(signed_content(raw))),
    }

    def endless() -> Iterator[bytes]:
        for _ in range(100_000):
            yield b"x" * 10_000

    try:
        connection.request("PUT", f"{BUILDS_PATH}/{RELEASE}/{NANO}", endless(), headers, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up while this still sent
    finally:
        connection.close()
    wait_for(lambda: untouched(lab), what="nothing left of it")


def test_a_broken_off_upload_leaves_nothing(lab: Lab) -> None:
    """The robot's power fails in the middle: nothing is taken; the next attempt begins anew."""
    raw = msgspec.json.encode(report_of(lab))
    connection = http.client.HTTPConnection("127.0.0.1", lab.port, timeout=10)
    connection.putrequest("PUT", f"{BUILDS_PATH}/{RELEASE}/{NANO}")
    connection.putheader(BUILDER_HEADER, "jetbot-1")
    connection.putheader(REPORT_HEADER, to_header(raw))
    connection.putheader(SIGNATURE_HEADER, to_header(KEY.sign(signed_content(raw))))
    connection.putheader("Content-Length", str(len(ENGINE)))
    connection.endheaders(ENGINE[:1000])
    wait_for(lambda: any(lab.builds.incoming().iterdir()), what="the upload under way")
    connection.close()
    wait_for(lambda: untouched(lab), what="nothing left of it")


def test_two_robots_at_once_give_one_engine(tmp_path: Path) -> None:
    """One wins; the other is told to take that engine; the same again is the same; find() gives the winner's."""
    with made_lab(tmp_path) as lab:
        lab.know("jetbot-1", public(KEY))
        onnx = network(tmp_path)
        lab.ask(NANO, onnx, golden_of())
        engines = [ENGINE + bytes([number]) for number in range(4)]
        answers: dict[bytes, tuple[int, str]] = {}

        def hand_in(engine: bytes) -> None:
            answers[engine] = put(lab, report_of(lab, engine), body=engine)

        threads = [threading.Thread(target=hand_in, args=(engine,)) for engine in engines]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in answers.values()) == [204, 409, 409, 409]
        winner = next(engine for engine, (status, _) in answers.items() if status == 204)
        found = builder_of(NANO, lab.builds)(onnx, golden_of())
        assert found.engine == winner
        assert found.key is not None
        assert found.key.runtime_version == "8.2.1.8"
        assert put(lab, report_of(lab, winner), body=winner)[0] == 204
        # A service that starts again finds it; one whose file was damaged asks for it again.
        assert Builds(lab.release).find(NANO, onnx, golden_of()) == found
        next((lab.release / "builds").glob("*/*/engine")).write_bytes(b"damaged")
        with pytest.raises(WaitingForBuild):
            builder_of(NANO, lab.builds)(onnx, golden_of())


def test_other_frames_or_another_network_are_not_measured_by_it(tmp_path: Path) -> None:
    """An engine counts for its ONNX file and the golden frames that it was measured with, and for no others."""
    with made_lab(tmp_path) as lab:
        lab.know("jetbot-1", public(KEY))
        onnx = network(tmp_path)
        lab.ask(NANO, onnx, golden_of())
        assert put(lab, report_of(lab))[0] == 204
        assert lab.builds.find(NANO, onnx, golden_of())
        assert lab.builds.find(NANO, onnx, golden_of(shift=0.1)) is None
        assert lab.builds.find(NANO, onnx + b"\0", golden_of()) is None
        assert lab.builds.find("jetson-nano-trt8.2-fp32", onnx, golden_of()) is None


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_engines_are_built_here_and_measured_elsewhere(tmp_path: Path, precision: str) -> None:
    """Without a GPU: built, not released unmeasured, and ordered once with the same bytes, however often asked."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: `pip install tensorrt-rtx`")
    target = f"rtx-sm86-trtrtx1.7-{precision}"
    onnx, golden, builds = network(tmp_path, convolutions=2), golden_of(), Builds(tmp_path / "release")
    with pytest.raises(WaitingForBuild, match="to measure it") as first:
        builder_of(target, builds)(onnx, golden)
    assert first.value.prebuilt
    files = builds.request(RELEASE, first.value)
    with pytest.raises(WaitingForBuild) as second:
        builder_of(target, builds)(onnx, golden)
    assert builds.request(RELEASE, second.value) == files
    assert {path.rsplit("/", 1)[1] for path in files} == {
        "order.json",
        "model.onnx",
        "golden.npz",
        "prebuilt.engine",
    }


def test_only_the_engine_that_was_ordered_is_measured(tmp_path: Path) -> None:
    """Where the service built it, a report about another engine is refused, and one about this engine counts."""
    with made_lab(tmp_path) as lab:
        lab.know("jetbot-1", public(KEY))
        onnx = network(tmp_path)
        lab.ask(RTX, onnx, golden_of(), prebuilt=ENGINE)
        key = {"board": "rtx-sm86", "compute_capability": "8.6", "runtime_version": "1.7.1.116"}
        for engine, status in ((ENGINE[::-1], 422), (ENGINE, 204)):
            report = report_of(lab, engine, target=RTX, key_=key)
            assert put(lab, report, engine, path=f"{RELEASE}/{RTX}")[0] == status
        assert builder_of(RTX, lab.builds)(onnx, golden_of()).measured.machine == "stand-in"


def test_rtx_says_what_it_cannot_build(tmp_path: Path) -> None:
    """Another version of TensorRT-RTX, and a file that is no network."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: `pip install tensorrt-rtx`")
    from pipelines.release.builders_rtx import build_rtx, runtime_version

    with pytest.raises(OperatorError, match=r"needs TensorRT-RTX 1\.2, 1\..* is installed"):
        runtime_version("rtx-sm86-trtrtx1.2-fp16")
    for content in (b"no network", b"hello", b""):
        for name in (RTX, "rtx-sm86-trtrtx1.7-fp32"):
            with pytest.raises(RejectedError, match=r"rtx-sm86|no ONNX file"):
                build_rtx(kind_of(name), content)


def test_the_table_holds_what_the_boards_take() -> None:
    """Every row is a name that parses; a Nano has no int8 and opset 13; what is not in it is refused."""
    for kind in TARGETS:
        target = Target.parse(kind.name)
        assert kind.built == {"ort": kind.built, "trt": DEVICE, "trtrtx": MEASURED}[target.runtime]
        assert kind_of(kind.name) == kind
    assert kind_of("cpu-ort-int8").built == HERE
    assert kind_of("jetson-nano-trt8.2.1-fp16").max_opset == 13
    assert kind_of("xavier-nx-trt8.5-int8").compute_capability == "7.2"
    for name in ("jetson-nano-trt8.2-int8", "jetson-nano-trt8.20-fp16", "orin-trt10.3-fp16", "rtx-sm90-trtrtx1.7-fp16"):
        with pytest.raises(OperatorError, match=r"jetloop release targets"):
            kind_of(name)
