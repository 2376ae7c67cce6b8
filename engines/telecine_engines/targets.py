"""What plans are built for: `local`, `trt-sm90`, `rtx-sm89`, or several GPUs in one plan, `rtx-sm89+sm120`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from telecine.errors import EngineError
from telecine_engines.gpu import gpu_capability, has_gpu
from telecine_engines.library import RTX, TENSORRT, is_installed

LIBRARIES = {"trt": TENSORRT, "rtx": RTX}
# What each library builds for, as its ComputeCapability (RTX) and support matrix say.
CAPABILITIES = {
    "trt": (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121),
    "rtx": (75, 80, 86, 89, 120, 121),
}
FORM = re.compile(r"(?P<kind>trt|rtx)-(?P<first>sm\d+)(?P<more>(?:\+sm\d+)*)")
# The first GPUs with tensor cores of these formats; TensorRT refuses such graphs for older ones, hours later.
FIRST_CAPABILITY = {"fp8": 89, "bf16": 80}
AMPERE = 80


@dataclass(frozen=True, slots=True)
class Target:
    """GPUs that one plan is for, and the library that builds it. A capability is a number: 89 for 8.9."""

    kind: str
    capabilities: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}-" + "+".join(f"sm{each}" for each in self.capabilities)

    @property
    def library(self) -> str:
        return LIBRARIES[self.kind]

    @property
    def dotted(self) -> tuple[str, ...]:
        """As CUDA writes them: "8.9", "12.0"."""
        return tuple(f"{each // 10}.{each % 10}" for each in self.capabilities)

    def check_precision(self, component: str, precision: str) -> None:
        """
        Raises:
            EngineError: a GPU of this target cannot compute in a component's precision.
        """
        first = FIRST_CAPABILITY.get(precision, 0)
        too_old = [f"sm{each}" for each in self.capabilities if each < first]
        if too_old:
            raise EngineError(
                f"{component} is {precision}, and the target {self.name} has {', '.join(too_old)}",
                expected=f"sm{first} or newer for {precision}",
                fix=f"Leave {' and '.join(too_old)} out, or export the component at fp16: --component {component}=fp16",
            )

    def check_machine(self, hardware_compatibility_level: str) -> None:
        """What `tensorrt` needs of this machine; TensorRT for RTX builds anywhere.

        Raises:
            EngineError: no GPU, or one whose plans do not open on the target's.
        """
        if self.kind == "rtx":
            return
        here, (wanted,) = gpu_capability(), self.capabilities
        shared = hardware_compatibility_level == "AMPERE_PLUS" and min(here, wanted) >= AMPERE
        if here != wanted and not shared:
            raise EngineError(
                f"the target {self.name} on a GPU of sm{here}",
                expected=f"a GPU of sm{wanted}: TensorRT times its kernels on the GPU that a plan is for",
                fix=f"Build there; or here with --hardware-compatibility-level AMPERE_PLUS (sm{AMPERE} and newer).",
            )


def parse_target(text: str) -> Target:
    """
    Raises:
        EngineError: an unknown form or GPU, several GPUs for `tensorrt`, or `local` without a GPU or a library for it.
    """
    if text == "local":
        return _local()
    match = FORM.fullmatch(text)
    if match is None:
        raise EngineError(
            f"target {text!r}",
            expected="local, trt-smXX, rtx-smXX, or rtx-smXX+smYY for one plan that opens on both",
            fix="Use local on the machine that will run the plans, or rtx-sm89 for a GeForce RTX 40.",
        )
    kind = match["kind"]
    capabilities = tuple(sorted({int(each[2:]) for each in (match["first"] + match["more"]).split("+")}))
    unknown = [f"sm{each}" for each in capabilities if each not in CAPABILITIES[kind]]
    if unknown:
        raise EngineError(
            f"target {text}: {', '.join(unknown)}",
            expected=f"for {kind} one of {', '.join(f'sm{each}' for each in CAPABILITIES[kind])}",
            fix=f"Use trt-{unknown[0]}, on that GPU." if _is_trt_only(kind, unknown) else "Choose one of these.",
        )
    if kind == "trt" and len(capabilities) > 1:
        raise EngineError(
            f"target {text}: several GPUs in one plan",
            expected="one GPU for tensorrt",
            fix="Repeat --target for a plan each, or use --hardware-compatibility-level AMPERE_PLUS.",
        )
    return Target(kind, capabilities)


def _is_trt_only(kind: str, names: list[str]) -> bool:
    return kind == "rtx" and all(int(name[2:]) in CAPABILITIES["trt"] for name in names)


def _local() -> Target:
    """This machine's GPU, by `tensorrt` where it is installed, else by TensorRT for RTX."""
    here = gpu_capability()
    for kind, name in LIBRARIES.items():
        if is_installed(name) and here in CAPABILITIES[kind]:
            return Target(kind, (here,))
    raise EngineError(
        f"no TensorRT that builds for this machine's GPU (sm{here}) is installed",
        expected="the package tensorrt, or tensorrt_rtx for a GPU of its list",
        fix='Run: pip install "telecine[tensorrt]"',
    )


def check_refit(target: Target, *, refit: bool, strip_plan: bool) -> None:
    """
    Raises:
        EngineError: TensorRT for RTX is to make a plan that takes weights, on a machine without a GPU.
    """
    if target.kind == "rtx" and (refit or strip_plan) and not has_gpu():
        option = "--refit" if refit else "--strip-plan"
        raise EngineError(
            f"{option} for {target.name} on a machine without a GPU",
            expected="a GPU: TensorRT for RTX compiles refittable kernels on one",
            fix=f"Build on a machine with an RTX GPU, or leave {option} out.",
        )
