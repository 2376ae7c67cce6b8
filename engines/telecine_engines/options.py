"""How plans are built: the builder's options under trtexec's and polygraphy's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from telecine.errors import EngineError
from telecine_engines.targets import Target, check_refit

HARDWARE_COMPATIBILITY_LEVELS = ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY")
OPTIMIZATION_LEVELS = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What None stands for is TensorRT's own choice.

    `builder_optimization_level`: 0 (quick) to 5 (`tensorrt` only). `workspace`: MiB of GPU memory that a kernel may use
    beside activations. `max_aux_streams`: of one execution. `timing_cache`: a file of measured kernels, read and
    written (`tensorrt` only). `version_compatible`: plans open in later versions of the same major one, by
    `tensorrt_lean`. `hardware_compatibility_level`: which other GPUs open a plan of `tensorrt`. `weight_streaming`:
    weights may stay in host memory. `refit`: weights may be replaced. `strip_plan`: weights are left out, and must be
    put in before use; without `refit` only the same ones may be. `tf32`: fp32 products may be rounded to TF32's 10
    bits, which is faster and no longer fp32's video.
    """

    builder_optimization_level: int | None = None
    workspace: int | None = None
    max_aux_streams: int | None = None
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatibility_level: str = "NONE"
    weight_streaming: bool = False
    refit: bool = False
    strip_plan: bool = False
    tf32: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            EngineError: a value out of range.
        """
        level = self.builder_optimization_level
        if level is not None and level not in OPTIMIZATION_LEVELS:
            raise EngineError(
                f"builder optimization level {level}", expected="0 (quick) to 5", fix="Leave it out for TensorRT's 3."
            )
        for name in ("workspace", "max_aux_streams"):
            value = getattr(self, name)
            if value is not None and value < (name == "workspace"):
                raise EngineError(f"{name} {value}", expected="a positive number", fix=f"Leave {name} out.")
        if self.hardware_compatibility_level not in HARDWARE_COMPATIBILITY_LEVELS:
            raise EngineError(
                f"hardware compatibility level {self.hardware_compatibility_level!r}",
                expected=f"one of {', '.join(HARDWARE_COMPATIBILITY_LEVELS)}",
                fix="Leave it out for NONE.",
            )

    def check(self, target: Target) -> None:
        """
        Raises:
            EngineError: an option that cannot act for this target, or on this machine.
        """
        if target.kind == "rtx" and self.timing_cache is not None:
            raise EngineError(
                f"--timing-cache for {target.name}",
                expected="none: TensorRT for RTX times its kernels where plans run, and a cache makes it ask for a GPU",
                fix="Leave it out.",
            )
        if target.kind == "rtx" and self.builder_optimization_level is not None:
            raise EngineError(
                f"--builder-optimization-level for {target.name}",
                expected="none: TensorRT for RTX makes the same plan at every level, and compiles it where it runs",
                fix="Leave it out.",
            )
        if target.kind == "rtx" and self.hardware_compatibility_level != "NONE":
            raise EngineError(
                f"--hardware-compatibility-level {self.hardware_compatibility_level} for {target.name}",
                expected="NONE: a plan of TensorRT for RTX opens on every GPU that its target names",
                fix="Name the GPUs in the target: rtx-sm86+sm89+sm120.",
            )
        check_refit(target, refit=self.refit, strip_plan=self.strip_plan)
        target.check_machine(self.hardware_compatibility_level)

    def recorded(self) -> dict[str, str | int | bool | None]:
        """What of these a plan depends on, for its key and its sidecar: all but where timings are kept."""
        return {
            "builder_optimization_level": self.builder_optimization_level,
            "workspace": self.workspace,
            "max_aux_streams": self.max_aux_streams,
            "version_compatible": self.version_compatible,
            "hardware_compatibility_level": self.hardware_compatibility_level,
            "weight_streaming": self.weight_streaming,
            "refit": self.refit,
            "strip_plan": self.strip_plan,
            "tf32": self.tf32,
        }
