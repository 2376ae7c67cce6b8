"""`telecine.json`: what a bundle holds, as frozen dataclasses that read and write themselves as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from telecine.errors import BundleError
from telecine.typed_json import build

FORMAT = 1
FILE_NAME = "telecine.json"


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
    """One ONNX graph.

    `onnxruntime_cpu`: the same network over the same weights, in operators of ONNX Runtime's own, where that is better
    on its CPU provider. It lies beside `file`.
    """

    file: FileEntry
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    onnxruntime_cpu: FileEntry | None = None


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
        return build(cls, content, where=where, damaged=_damaged)


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _damaged(where: str, problem: str) -> BundleError:
    return BundleError(
        f"{where} {problem}", expected="the manifest that telecine export wrote", fix="Export or copy the bundle again."
    )
