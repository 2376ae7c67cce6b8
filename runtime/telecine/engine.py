"""TensorRT plans beside a bundle: where they lie, and the sidecar that says what each was built from, with and for."""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass
from pathlib import Path

from telecine.errors import EngineError
from telecine.manifest import TensorSpec
from telecine.typed_json import build

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Shapes that one optimisation profile takes for one input."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a plan is; everything that must fit before it is deserialised.

    `target` is the target as asked (`rtx-sm89`, `trt-sm90`; several of RTX are joined by `+`). `library` is the Python
    package that built it (`tensorrt`, `tensorrt_rtx`) and `library_version` its version; `compute_capabilities` are
    the GPUs that may open it ("8.9"), one or several. `version_compatible` plans open in newer TensorRT of the same
    major version, and in its lean runtime. `hardware_compatibility` is TensorRT's HardwareCompatibilityLevel by name
    ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"). `platform` is "linux-x86_64" or "linux-aarch64".

    `key` names all that the plan depends on (see telecine_engines); hashes are hex SHA-256: `plan_sha256` of the plan
    file, `graph_sha256` and `weights_sha256` of the bundle's files that it was built from. `profiles` are in the order
    of the plan's own; each maps input names to ranges. `options` are the builder's under trtexec's names; `workloads`
    what the profiles were planned for. `precisions` counts the parsed network's tensors by dtype, `layers` its layers;
    `fused_attention` counts attention kernels where an inspector on a GPU gave it, else None. `refit` says whether the
    weights may be replaced, `stripped` that they must be before the plan runs, `weight_streaming` that they may stay
    on the host.
    """

    format: int
    component: str
    role: str
    precision: str
    target: str
    library: str
    library_version: str
    platform: str
    compute_capabilities: tuple[str, ...]
    version_compatible: bool
    hardware_compatibility: str
    key: str
    plan_size: int
    plan_sha256: str
    graph_sha256: str
    weights_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, Range], ...]
    workloads: tuple[str, ...]
    options: dict[str, str | int | bool | None]
    refit: bool
    stripped: bool
    weight_streaming: bool
    precisions: dict[str, int]
    layers: int
    fused_attention: int | None
    build_seconds: float
    build_peak_bytes: int

    def dump(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Sidecar:
        """
        Raises:
            EngineError: missing, not JSON, of another format, or with fields missing, unknown or of another type.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise _damaged(str(path), f"cannot be read ({error})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise _damaged(str(path), f"is not of format {FORMAT}")
        return build(cls, content, where=str(path), damaged=_damaged)


def plan_path(engines: Path, *, target: str, library_version: str, key: str, component: str, role: str) -> Path:
    """`engines/TARGET-trtVERSION/KEY/COMPONENT.ROLE.plan`; the sidecar is beside it, as `.json`."""
    return engines / f"{target}-trt{library_version}" / key / f"{component}.{role}.plan"


def sidecar_path(plan: Path) -> Path:
    """Where a plan's sidecar lies."""
    return plan.with_suffix(".json")


def this_platform() -> str:
    """This machine's, as sidecars write it: "linux-x86_64", "linux-aarch64"."""
    return f"{platform.system()}-{platform.machine()}".lower()


def _damaged(where: str, problem: str) -> EngineError:
    return EngineError(
        f"{where} {problem}", expected="a sidecar that telecine build wrote", fix="Run: telecine build BUNDLE"
    )
