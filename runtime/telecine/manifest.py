"""`telecine.json`: what a bundle holds, as frozen dataclasses that read and write themselves as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from telecine.errors import BundleError

FORMAT = 1
FILE_NAME = "telecine.json"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file of the bundle: its path inside it, its size in bytes, its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A graph input or output; a dimension is a number, a symbol (`tokens`) or a rule (`8*latent_frames-7`)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One ONNX graph."""

    file: FileEntry
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One network: its graphs by role, over one weights file."""

    precision: str
    opset: int
    parameters: int
    weights: FileEntry
    graphs: dict[str, Graph]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that the runtime knows of a bundle before it opens a graph.

    `host` is the configuration that the family's host math needs; `presets` are named settings of `generate`;
    `versions` are the packages that exported it.
    """

    format: int
    family: str
    variant: str
    pipeline: str
    components: dict[str, Component]
    tokenizer: FileEntry
    host: dict[str, Any]
    presets: dict[str, dict[str, Any]]
    versions: dict[str, str]

    def dump(self) -> str:
        """JSON text, with the SHA-256 of the rest in `sha256`, so that an edit shows."""
        content = dataclasses.asdict(self)
        return json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n"

    @classmethod
    def parse(cls, text: str, *, where: str) -> Manifest:
        """
        Raises:
            BundleError: not JSON, of another format, edited, or with a field missing, unknown or of another type.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _damaged(where, f"is not JSON ({error})") from error
        if not isinstance(content, dict) or type(content.get("format")) is not int:
            raise _damaged(where, "has no format number")
        if content["format"] != FORMAT:
            newer = content["format"] > FORMAT
            raise BundleError(
                f"{where} has format {content['format']}",
                expected=f"format {FORMAT}, which this telecine reads",
                fix='Upgrade: pip install --upgrade "telecine".' if newer else "Export the bundle again.",
            )
        recorded = content.pop("sha256", None)
        if recorded != _digest(content):
            raise _damaged(where, "was edited or cut: its SHA-256 does not fit its content")
        return _build(cls, content, where)


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _damaged(where: str, problem: str) -> BundleError:
    return BundleError(
        f"{where} {problem}", expected="the manifest that telecine export wrote", fix="Export or copy the bundle again."
    )


def _build(kind: type[T], content: Any, where: str) -> T:
    """JSON → dataclass, by the dataclass's own annotations."""
    if not isinstance(content, dict):
        raise _damaged(where, f"holds {type(content).__name__} where {kind.__name__} belongs")
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if names != set(content):
        odd = sorted(names ^ set(content))
        raise _damaged(where, f"has missing or unknown fields in {kind.__name__}: {', '.join(odd)}")
    return kind(**{name: _convert(hints[name], content[name], f"{where}: {name}") for name in names})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        if not isinstance(value, dict):
            raise _damaged(where, f"is {type(value).__name__}, not an object")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise _damaged(where, f"is {type(value).__name__}, not a list")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if hint is Any:
        return value
    accepted = arguments if origin in (typing.Union, types.UnionType) else (hint,)
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise _damaged(where, f"is {value!r}")
    return value
