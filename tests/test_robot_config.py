"""robot.toml and the small commands around it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.cli import check_config, example_config
from serving.config import RobotConfig, load
from serving.config_example import EXAMPLE
from serving.errors import OperatorError
from serving.local.commands import status

NEEDED = """
[robot]
name = "jetbot-1"
site = "lab"
state_dir = "state"
[hardware]
kind = "simulated"
[repository]
url = "http://127.0.0.1:1"
root = "root.json"
[mqtt]
host = "127.0.0.1"
"""


def load_text(folder: Path, text: str) -> RobotConfig:
    path = folder / "robot.toml"
    path.write_text(text, encoding="utf-8")
    return load(path)


def test_the_example_loads(tmp_path: Path) -> None:
    """What `example-config` prints is a robot.toml as it stands."""
    printed = CliRunner().invoke(example_config).output
    assert load_text(tmp_path, printed).robot.name == "jetbot-1"


def test_the_example_shows_the_true_defaults(tmp_path: Path) -> None:
    """Taking the comment sign off every setting of the example changes nothing."""
    shown = re.sub(r"^# (\w+ = )", r"\1", EXAMPLE, flags=re.MULTILINE)
    assert shown.count("\n# ") < EXAMPLE.count("\n# ") - 20
    assert load_text(tmp_path, shown) == load_text(tmp_path, EXAMPLE)


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """So that a service manager's working directory does not matter."""
    config = load_text(tmp_path, NEEDED)
    assert config.robot.state_dir == str(tmp_path / "state")
    assert config.repository.root == str(tmp_path / "root.json")
    assert config.mqtt.ca == ""
    assert config.engine.python == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("speed = 1\n", r"`mqtt\.speed` is not a known setting; allowed there: host, port"),
        ("port = 0\n", r"`mqtt\.port`: .*>= 1"),
        ("[control]\nforward_speed = 1.5\n", r"`control\.forward_speed`: .*<= 1"),
        ("[control]\nturn = 'up'\n", r"`control\.turn`: .*up"),
        ("[engine]\ntarget = 'jetson'\n", "target `jetson` is not <board>-<runtime>"),
        ("certificate = 'robot.pem'\n", "`certificate` and `key` come together"),
        ("[recorder\n", "this is not TOML"),
        ("[control]\nmax_age_ms = nan\n", "max_age_ms"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, more: str, message: str) -> None:
    """A wrong key, value or file ends in one line that names it and what is allowed."""
    with pytest.raises(OperatorError, match=message) as caught:
        load_text(tmp_path, NEEDED + more)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    """And not where in the program it was missed."""
    with pytest.raises(OperatorError, match="example-config"):
        load(tmp_path / "none.toml")
    with pytest.raises(OperatorError, match="Is a directory"):
        load(tmp_path)


values = st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=20), st.lists(st.integers(), max_size=2))


@settings(max_examples=60, deadline=None)
@given(table=st.sampled_from(["robot", "mqtt", "control", "engine"]), key=st.text(max_size=10), value=values)
def test_no_value_ends_in_anything_but_settings_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, table: str, key: str, value: Any
) -> None:
    """Whatever a table holds, the answer is a RobotConfig or an OperatorError of one line."""
    line = f"{json.dumps(key)} = {json.dumps(value) if not isinstance(value, float) else repr(value)}\n"
    head = f"[{table}]\n"
    text = NEEDED.replace(head, head + line) if head in NEEDED else NEEDED + head + line
    said = ""
    try:
        load_text(tmp_path_factory.mktemp("config"), text)
    except OperatorError as problem:
        said = str(problem)
    assert "\n" not in said


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_no_file_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Bytes of any kind in place of robot.toml are refused as such."""
    path = tmp_path_factory.mktemp("config") / "robot.toml"
    path.write_bytes(content)
    with pytest.raises(OperatorError):
        load(path)


def test_check_config_says_good_or_what_is_missing(tmp_path: Path) -> None:
    """The root of trust has to be there before a robot starts."""
    load_text(tmp_path, NEEDED)
    arguments = ["--config", str(tmp_path / "robot.toml")]
    missing = CliRunner().invoke(check_config, arguments)
    assert isinstance(missing.exception, OperatorError)
    assert "repository.root" in str(missing.exception)
    (tmp_path / "root.json").write_text("{}")
    good = CliRunner().invoke(check_config, arguments)
    assert good.exit_code == 0
    assert "lab/jetbot-1, ring champion, target cpu-ort-fp32" in good.output


def test_status_of_a_robot_that_never_ran(tmp_path: Path) -> None:
    """Says so, instead of telling zeros."""
    load_text(tmp_path, NEEDED)
    told = CliRunner().invoke(status, ["--config", str(tmp_path / "robot.toml")])
    assert isinstance(told.exception, OperatorError)
    assert "no jetloop-robot ran" in str(told.exception)
