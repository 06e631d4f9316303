"""Mixed precision: settled once for a machine, kept, and trained with. On a GPU it has not been run."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tests.test_training_fit import bright_or_dark, settings  # noqa: E402
from training import precision  # noqa: E402
from training.fit import fit  # noqa: E402
from training.model import Network  # noqa: E402


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> "list[float]":
    """A machine with 16 bits, on which a step is as many times as quick in them as the list's next number."""
    speedups: list[float] = []
    monkeypatch.setattr(precision, "has_half", lambda device: True)
    monkeypatch.setattr(precision, "probe", lambda settings, device: speedups.pop(0))
    return speedups


@pytest.mark.parametrize(("speedup", "chosen"), [(1.9, "mixed"), (1.05, "float32"), (0.1, "float32")])
def test_mixed_is_taken_where_it_pays(tmp_path: Path, able: "list[float]", speedup: float, chosen: str) -> None:
    """The probe decides, once: the next training on this machine does not ask again, and is computed alike."""
    able.append(speedup)
    assert precision.settle(settings(), tmp_path).precision == chosen
    assert precision.settle(settings(), tmp_path).precision == chosen  # a second probe would find no number


def test_another_network_is_probed_on_its_own(tmp_path: Path, able: "list[float]") -> None:
    """What pays for one need not for another."""
    able += [1.9, 1.0]
    assert precision.settle(settings(backbone="resnet18"), tmp_path).precision == "mixed"
    assert precision.settle(settings(backbone="alexnet"), tmp_path).precision == "float32"


@pytest.mark.parametrize("damaged", ["{", "[]", json.dumps("mixed"), "\x00"])
def test_a_damaged_cache_is_probed_anew(tmp_path: Path, able: "list[float]", damaged: str) -> None:
    """It is a cache, never believed when it makes no sense."""
    (tmp_path / precision.KEPT).write_text(damaged)
    able.append(1.9)
    assert precision.settle(settings(), tmp_path).precision == "mixed"
    assert set(json.loads((tmp_path / precision.KEPT).read_text()).values()) == {"mixed"}


def test_what_is_asked_for_is_not_probed(tmp_path: Path, able: "list[float]") -> None:
    """`float32` and `mixed` are taken as they are."""
    for asked in ("float32", "mixed"):
        assert precision.settle(settings(precision=asked), tmp_path).precision == asked
    assert not list(tmp_path.iterdir())


def test_the_probe_measures_and_leaves_the_seed_alone() -> None:
    """It gives a ratio of real steps, and the weights drawn after it are those drawn without it."""
    torch.manual_seed(3)
    assert precision.probe(settings(backbone="mobilenet_v3_small"), torch.device("cpu")) > 0
    probed = torch.rand(4)
    torch.manual_seed(3)
    assert torch.equal(probed, torch.rand(4))


def test_training_in_mixed_precision() -> None:
    """With bfloat16 on a CPU: other numbers than in float32, near them, and the weights stay float32."""
    found = {}
    for kind in ("float32", "mixed"):
        torch.manual_seed(1)
        one = settings(precision=kind, backbone="mobilenet_v3_small", epochs=1)
        fitted = fit(Network("mobilenet_v3_small", 112), one, bright_or_dark(8, 1), bright_or_dark(4, 2))
        assert {tensor.dtype for tensor in fitted.network.parameters()} == {torch.float32}
        found[kind] = fitted.history[0].train_loss
    assert found["mixed"] != found["float32"]
    assert found["mixed"] == pytest.approx(found["float32"], rel=0.1)
