"""Targets: their form, what they need of this machine, and what they cannot compute."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from doubles.cuda_runtime import CudaDouble, cudaError_t

from telecine.backends.tensorrt.library import Library
from telecine.errors import EngineError
from telecine_engines import targets
from telecine_engines.config import make_config
from telecine_engines.gpu import gpu_capability, has_gpu
from telecine_engines.options import BuildOptions
from telecine_engines.targets import Target, parse_target

SetGpu = Callable[[int | None], CudaDouble]


@pytest.mark.parametrize(
    ("text", "capabilities", "dotted", "library"),
    [
        ("trt-sm90", (90,), ("9.0",), "tensorrt"),
        ("rtx-sm89", (89,), ("8.9",), "tensorrt_rtx"),
        ("rtx-sm120+sm89", (89, 120), ("8.9", "12.0"), "tensorrt_rtx"),
    ],
)
def test_forms(text: str, capabilities: tuple[int, ...], dotted: tuple[str, ...], library: str) -> None:
    target = parse_target(text)
    assert (target.capabilities, target.dotted, target.library) == (capabilities, dotted, library)
    assert parse_target(target.name) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sm89", "expected local, trt-smXX"),
        ("rtx-89", "expected local, trt-smXX"),
        ("rtx-sm90", "expected for rtx one of sm75, .*Use trt-sm90, on that GPU"),
        ("rtx-sm77", "Choose one of these"),
        ("trt-sm70", "expected for trt one of sm75"),
        ("trt-sm80+sm90", "several GPUs in one plan"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        parse_target(text)


def test_local_is_this_machines_gpu(machine_gpu: SetGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"tensorrt", "tensorrt_rtx"}
    monkeypatch.setattr(targets, "is_installed", lambda name: name in installed)
    machine_gpu(89)
    assert parse_target("local").name == "trt-sm89"
    installed.remove("tensorrt")
    assert parse_target("local").name == "rtx-sm89"
    machine_gpu(90)  # none of RTX's
    with pytest.raises(EngineError, match="no TensorRT that builds for this machine's GPU \\(sm90\\)"):
        parse_target("local")


def test_local_without_a_driver(machine_gpu: SetGpu) -> None:
    machine_gpu(None).driver = 0
    with pytest.raises(EngineError, match="no NVIDIA driver; .*--target rtx-sm89"):
        parse_target("local")
    assert not has_gpu()


def test_local_with_a_driver_and_no_gpu(machine_gpu: SetGpu) -> None:
    machine_gpu(None)
    with pytest.raises(EngineError, match="no NVIDIA GPU that CUDA can use.*--target rtx-sm89"):
        parse_target("local")


def test_a_driver_that_fails_is_told(machine_gpu: SetGpu) -> None:
    machine_gpu(89).failures["cudaDeviceGetAttribute"] = cudaError_t.cudaErrorInvalidDevice
    with pytest.raises(EngineError, match=r"cudaDeviceGetAttribute failed: cudaErrorInvalidDevice \(101\)"):
        gpu_capability()


def test_tensorrt_builds_for_the_gpu_that_is_here(machine_gpu: SetGpu) -> None:
    machine_gpu(89)
    BuildOptions().check(parse_target("trt-sm89"))
    with pytest.raises(EngineError, match="the target trt-sm90 on a GPU of sm89"):
        BuildOptions().check(parse_target("trt-sm90"))
    BuildOptions(hardware_compatibility_level="AMPERE_PLUS").check(parse_target("trt-sm90"))
    same = BuildOptions(hardware_compatibility_level="SAME_COMPUTE_CAPABILITY")
    with pytest.raises(EngineError, match="the target trt-sm90 on a GPU of sm89"):
        same.check(parse_target("trt-sm90"))
    machine_gpu(75)
    with pytest.raises(EngineError, match="the target trt-sm90 on a GPU of sm75"):
        BuildOptions(hardware_compatibility_level="AMPERE_PLUS").check(parse_target("trt-sm90"))


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_formats_that_a_gpu_has_no_tensor_cores_for_are_refused(precision: str) -> None:
    first = targets.FIRST_CAPABILITY[precision]
    Target("rtx", (first, 120)).check_precision("transformer", precision)
    with pytest.raises(EngineError, match=f"transformer is {precision}, and the target rtx-sm75\\+sm120 has sm75"):
        Target("rtx", (75, 120)).check_precision("transformer", precision)
    Target("rtx", (75,)).check_precision("transformer", "fp16")


def test_fp8_on_sm86_is_refused() -> None:
    with pytest.raises(EngineError, match="sm89 or newer for fp8"):
        parse_target("rtx-sm86+sm89").check_precision("transformer", "fp8")


@pytest.mark.parametrize("option", ["refit", "strip_plan"])
def test_rtx_makes_plans_that_take_weights_on_a_gpu_only(option: str, machine_gpu: SetGpu) -> None:
    options = BuildOptions(**{option: True})
    machine_gpu(None)
    with pytest.raises(EngineError, match=f"--{option.replace('_', '-')} for rtx-sm89 on a machine without a GPU"):
        options.check(parse_target("rtx-sm89"))
    machine_gpu(89)
    options.check(parse_target("rtx-sm89"))


def test_options_that_rtx_has_no_use_for() -> None:
    with pytest.raises(EngineError, match="--timing-cache for rtx-sm89"):
        BuildOptions(timing_cache=Path("cache")).check(parse_target("rtx-sm89"))
    with pytest.raises(EngineError, match="--builder-optimization-level for rtx-sm89"):
        BuildOptions(builder_optimization_level=3).check(parse_target("rtx-sm89"))
    with pytest.raises(EngineError, match="--hardware-compatibility-level AMPERE_PLUS for rtx-sm89"):
        BuildOptions(hardware_compatibility_level="AMPERE_PLUS").check(parse_target("rtx-sm89"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"builder_optimization_level": 6}, "builder optimization level 6"),
        ({"workspace": 0}, "workspace 0"),
        ({"max_aux_streams": -1}, "max_aux_streams -1"),
        ({"hardware_compatibility_level": "AMPERE"}, "expected one of NONE, AMPERE_PLUS"),
    ],
)
def test_values_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_without_cuda_bindings_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineError, match=r'cuda-bindings cannot be imported.*pip install "telecine\[tensorrt\]"'):
        parse_target("local")


def test_a_gpu_that_this_tensorrt_for_rtx_is_too_old_for() -> None:
    api = SimpleNamespace(
        __version__="1.0",
        ComputeCapability=SimpleNamespace(__members__={"SM89": 89}),
    )
    builder = SimpleNamespace(create_builder_config=lambda: SimpleNamespace(set_compute_capability=lambda *_: True))
    library = Library(name="tensorrt_rtx", module=api, version="1.0", log=None)
    with pytest.raises(EngineError, match=r"TensorRT for RTX \(1.0\) does not build for sm121.*--upgrade"):
        make_config(library, builder, Target("rtx", (89, 121)), BuildOptions())
