"""JSON → frozen dataclasses, by the dataclasses' own annotations: a wrong field shows when a file is opened."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
# (where, problem) → the error to raise
Damaged = Callable[[str, str], Exception]


def build(kind: type[T], content: Any, *, where: str, damaged: Damaged) -> T:
    """
    Raises:
        what `damaged` makes: a field without a default is missing, or one is unknown or of another type.
    """
    if not isinstance(content, dict):
        raise damaged(where, f"holds {type(content).__name__} where {kind.__name__} belongs")
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = {field.name for field in fields}
    optional = {
        field.name
        for field in fields
        if not (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
    }
    odd = sorted((names - optional - set(content)) | (set(content) - names))
    if odd:
        raise damaged(where, f"has missing or unknown fields in {kind.__name__}: {', '.join(odd)}")
    return kind(**{name: _convert(hints[name], value, f"{where}: {name}", damaged) for name, value in content.items()})


def _convert(hint: Any, value: Any, where: str, damaged: Damaged) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where=where, damaged=damaged)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType and dataclasses.is_dataclass(arguments[0]) and value is not None:
        return _convert(arguments[0], value, where, damaged)
    if origin is dict:
        if not isinstance(value, dict):
            raise damaged(where, f"is {type(value).__name__}, not an object")
        return {key: _convert(arguments[1], item, f"{where}.{key}", damaged) for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise damaged(where, f"is {type(value).__name__}, not a list")
        return tuple(_convert(arguments[0], item, where, damaged) for item in value)
    if hint is Any:
        return value
    accepted = arguments if origin in (typing.Union, types.UnionType) else (hint,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise damaged(where, f"is {value!r}")
    return value
