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
    """One network: its graphs by role, over one weights file.

    An initializer has its parameter's name in the checkpoint. A linear layer's weight is stored transposed, (inputs,
    outputs), and says so in its metadata (`telecine.transposed`). At fp8 a weight may be float8e4m3fn: the initializer
    `NAME.scale` beside it then has its scales, one an output, and the parameter is the product of the two.

    Graphs without weights, such as `denoise_step`, have an empty file.

    `refitted` says what `telecine refit` put into the weights since export, in order.
    `packed`: the weights file was left out by `telecine pack`, and only engines run; `weights` still tells which they
    were made of.
    """

    precision: str
    opset: int
    parameters: int
    weights: FileEntry
    graphs: dict[str, Graph]
    refitted: tuple[str, ...] = ()
    packed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What precision cost the pictures: the export's own runs, same seeds, next to float32; the worst of its clips.

    `measured` False: there was nothing to measure (fp32) or it was not asked for. PSNR in dB, None where the clips are
    equal; `temporal_psnr` is that of the differences between neighbouring frames. `components` has the PSNR of runs
    with one component alone at its precision. `kept` are modules (`COMPONENT/MODULE`) that calibration found too
    sensitive for fp8; `promoted` those that were kept in higher precision to reach `floor`, for `promoted_bytes` more
    weights, where without them the PSNR was `promoted_psnr`.
    """

    measured: bool = False
    floor: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    temporal_psnr: float | None = None
    components: dict[str, float | None] = dataclasses.field(default_factory=dict)
    kept: tuple[str, ...] = ()
    promoted: tuple[str, ...] = ()
    promoted_bytes: int = 0
    promoted_psnr: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that the runtime knows of a bundle before it opens a graph.

    `host` is the configuration that the family's host math needs; `presets` are named settings of `generate`;
    `versions` are the packages that exported it. `quality` is what their precisions cost.
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
    quality: Quality = dataclasses.field(default_factory=Quality)

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
