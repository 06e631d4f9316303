"""Turns parsed TOML, YAML or JSON into typed settings, and says in one line what is wrong with them.

A wrong key is named with the keys that are allowed there; a wrong value with what is allowed for it.
Python 3.8 syntax: training/ uses it too.
"""

import re
import typing
from typing import Any, Type, TypeVar

import msgspec

from serving.errors import JetloopError, OperatorError

T = TypeVar("T")

_PATH = re.compile(r" - at `\$?\.?([^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `([^`]*)`")


def convert(raw: Any, into: Type[T], source: str, error: Type[JetloopError] = OperatorError) -> T:
    """Checks `raw` (what a TOML, YAML or JSON parser gave) against the msgspec struct `into`.

    Args:
        raw: nested dicts, lists and scalars.
        into: a `msgspec.Struct` declared with `forbid_unknown_fields=True`; its `Meta` annotations are the limits.
        source: what the settings came from, such as a file name; begins the message.
        error: the family of the error to raise.

    Raises:
        OperatorError: (or `error`) a key is unknown or missing, or a value is not allowed.
    """
    try:
        return msgspec.convert(raw, into)
    except msgspec.ValidationError as problem:
        raise error(f"{source}: {_explain(str(problem), into)}") from None


def _explain(message: str, into: Any) -> str:
    found = _PATH.search(message)
    path = found.group(1) if found else ""
    what = _PATH.sub("", message)
    unknown = _UNKNOWN.search(what)
    if unknown:
        allowed = ", ".join(field.encode_name for field in _fields_at(into, path)) or "nothing"
        key = ".".join(part for part in (path, unknown.group(1)) if part)
        what, path = f"`{key}` is not a known setting; allowed there: {allowed}", ""
    elif what.startswith("Invalid enum value"):
        what += f"; allowed: {', '.join(_choices_at(into, path))}"
    return " ".join((f"`{path}`: {what}" if path else what).split())


def _choices_at(into: Any, path: str) -> "list[str]":
    """What the `Literal` at `path` (dotted) allows, in the order it is declared."""
    parent, _, name = path.rpartition(".")
    struct = _struct_at(into, parent)
    hint = typing.get_type_hints(struct.cls).get(name) if hasattr(struct, "cls") else None
    return [str(choice) for choice in getattr(hint, "__args__", ())]


def _fields_at(into: Any, path: str) -> "list[Any]":
    """The fields of the struct that `path` (dotted) leads to; none if it leads to no struct."""
    return list(getattr(_struct_at(into, path), "fields", ()))


def _struct_at(into: Any, path: str) -> Any:
    """What `path` (dotted) leads to; None if a part of it names no field."""
    node = _only_struct(msgspec.inspect.type_info(into))
    for part in filter(None, path.split(".")):
        field = next((f for f in getattr(node, "fields", ()) if f.encode_name == part.split("[")[0]), None)
        if field is None:
            return None
        node = _only_struct(field.type)
    return node


def _only_struct(node: Any) -> Any:
    """The struct inside an optional, list or dict type."""
    while not hasattr(node, "fields"):
        inner = getattr(node, "item_type", None) or getattr(node, "value_type", None)
        if inner is None:
            inner = next((t for t in getattr(node, "types", ()) if hasattr(t, "fields")), None)
        if inner is None:
            return node
        node = inner
    return node
