"""Settings: what is wrong is named, with what is allowed there."""

from typing import List, Literal, Optional

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import Annotated

from serving.errors import OperatorError
from serving.settings import convert


class Wheel(msgspec.Struct, forbid_unknown_fields=True):
    radius_m: Annotated[float, msgspec.Meta(gt=0)] = 0.03


class Robot(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    wheel: Optional[Wheel] = None
    spares: List[Wheel] = []
    drive: Literal["belt", "direct"] = "belt"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (
            {"name": "a", "wheels": 2},
            "file: `wheels` is not a known setting; allowed there: name, wheel, spares, drive",
        ),
        ({"name": "a", "wheel": {"size": 1}}, "file: `wheel.size` is not a known setting; allowed there: radius_m"),
        ({"name": "a", "spares": [{"size": 1}]}, "`spares[0].size` is not a known setting; allowed there: radius_m"),
        ({"name": "a", "wheel": {"radius_m": 0}}, "`wheel.radius_m`: Expected `float` > 0"),
        ({"name": "a", "drive": "chain"}, "`drive`: Invalid enum value 'chain'; allowed: belt, direct"),
        ({"name": "a", "b\nc": 1}, "`b c` is not a known setting"),
        ({"name": 3}, "`name`: Expected `str`, got `int`"),
        ({}, "missing required field `name`"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_each_mistake_is_named(raw: object, says: str) -> None:
    """Unknown, out of range, of another type, missing: one line that names the key."""
    with pytest.raises(OperatorError) as caught:
        convert(raw, Robot, "file")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8)
_keys = st.sampled_from(["name", "wheel", "spares", "radius_m", "x", "a.b", "`", "[0]"])
_trees = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=4))


@given(_trees)
def test_any_tree_is_settings_or_one_clear_error(raw: object) -> None:
    """Whatever a parser returns ends in the struct or in an OperatorError, never in a traceback."""
    try:
        settings = convert(raw, Robot, "file")
    except OperatorError:
        return
    assert isinstance(settings, Robot)
