"""Real builds, by TensorRT for RTX on a machine without a GPU: every component and precision, for two GPUs at once."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from doubles.cuda_runtime import CudaDouble

from telecine.axes import bind_axes
from telecine.backends.cuda.device import Device
from telecine.backends.tensorrt.opening import checked_content, find_plan
from telecine.bundle import Bundle
from telecine.engine import Sidecar, sidecar_path
from telecine.errors import EngineError
from telecine_engines.build import BuildReport, BuildRequest, Progress, build_engines, plan_engines
from telecine_engines.options import BuildOptions
from telecine_engines.planner import GraphPlan

pytest.importorskip("tensorrt_rtx")

TARGET = "rtx-sm89+sm120"
PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
# TensorRT's name of each precision's tensors, then those that parts of such a network stay in.
COMPUTED_IN = {
    "fp32": ("FLOAT",),
    "fp16": ("HALF", "FLOAT"),
    "bf16": ("BF16", "FLOAT"),
    "fp8": ("FP8", "HALF", "FLOAT"),
}
FLOATS = {"FLOAT", "HALF", "BF16", "FP8"}


@pytest.fixture(scope="module")
def built(
    precision_bundle: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Bundle, BuildReport]]:
    """`built("fp16")`: the bundle of that precision, built once."""
    reports: dict[str, tuple[Bundle, BuildReport]] = {}

    def get(precision: str) -> tuple[Bundle, BuildReport]:
        if precision not in reports:
            bundle = precision_bundle(precision)
            folder = tmp_path_factory.mktemp(precision)
            request = BuildRequest(bundle=bundle, targets=(TARGET,), workloads=("64x96x9..96x96x17",), engines=folder)
            reports[precision] = bundle, build_engines(request)
        return reports[precision]

    return get


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_component_builds_with_dynamic_profiles(
    precision: str, built: Callable[[str], tuple[Bundle, BuildReport]]
) -> None:
    bundle, report = built(precision)
    assert [sidecar.component for sidecar in report.sidecars.values()] == list(bundle.manifest.components)
    assert list(report.built) == list(report.sidecars)
    for path, sidecar in report.sidecars.items():
        assert Sidecar.read(sidecar_path(path)) == sidecar
        graph = bundle.graph(sidecar.component)
        (profile,) = sidecar.profiles
        for end in ("min", "opt", "max"):
            bind_axes(graph.inputs, {name: getattr(span, end) for name, span in profile.items()})
        assert any(span.min < span.max for span in profile.values())
        assert sidecar.precision == bundle.component(sidecar.component).precision
        kinds = COMPUTED_IN[sidecar.precision]
        assert sidecar.precisions[kinds[0]] > 10, sidecar.precisions
        assert set(sidecar.precisions) & FLOATS <= set(kinds)


def test_the_sidecar_says_what_the_plan_is(built: Callable[[str], tuple[Bundle, BuildReport]]) -> None:
    bundle, report = built("fp16")
    path, sidecar = next((path, each) for path, each in report.sidecars.items() if each.component == "transformer")
    content = path.read_bytes()
    component = bundle.component("transformer")
    assert (sidecar.plan_size, sidecar.plan_sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert sidecar.graph_sha256 == component.graphs["main"].file.sha256
    assert sidecar.weights_sha256 == component.weights.sha256
    assert (sidecar.target, sidecar.compute_capabilities) == (TARGET, ("8.9", "12.0"))
    assert (sidecar.library, sidecar.precision) == ("tensorrt_rtx", "fp16")
    assert path.parent.name == sidecar.key
    assert path.parent.parent.name == f"{TARGET}-trt{sidecar.library_version}"
    assert sidecar.workloads == ("64x96x9..96x96x17@b1",)
    assert sidecar.options["vae_tile"] == "512x512x121"
    assert sidecar.options["version_compatible"] is False
    assert (sidecar.refit, sidecar.stripped, sidecar.weight_streaming) == (False, False, False)
    assert sidecar.fused_attention is None
    assert sidecar.layers > 100
    assert sidecar.build_peak_bytes > 50_000_000
    tokens = sidecar.profiles[0]["hidden_states"]
    # From the first stage of 64x96x9, 1x2 latents in 2 frames, to the second of 96x96x17, 4x4 in 3, and 4 keyframes.
    assert (tokens.min[1], tokens.opt[1], tokens.max[1]) == (2 * 2, 16 * 3, 16 * 7)


def test_a_second_build_does_nothing(built: Callable[[str], tuple[Bundle, BuildReport]]) -> None:
    bundle, report = built("fp32")
    folder = next(iter(report.sidecars)).parents[2]
    files = {path: path.stat().st_ino for path in report.sidecars}
    request = BuildRequest(bundle=bundle, targets=(TARGET,), workloads=("64x96x9..96x96x17",), engines=folder)
    again = build_engines(request)
    assert again.built == ()
    assert again.sidecars == report.sidecars
    assert {path: path.stat().st_ino for path in report.sidecars} == files
    # A lost plan, a cut one and one without a sidecar are built again; the others stay.
    paths = {sidecar.component: path for path, sidecar in report.sidecars.items()}
    kept = plan_engines(request)
    assert all(plan.done for plan in kept.plans)
    cut = paths["latent_upsampler"].read_bytes()[:-1]
    content, text = paths["text_encoder"].read_bytes(), sidecar_path(paths["transformer"]).read_text()
    try:
        paths["text_encoder"].unlink()
        sidecar_path(paths["transformer"]).unlink()
        full = paths["latent_upsampler"].read_bytes()
        paths["latent_upsampler"].write_bytes(cut)
        missing = {plan.component for plan in plan_engines(request).plans if plan.done is None}
        assert missing == {"text_encoder", "transformer", "latent_upsampler"}
    finally:
        paths["text_encoder"].write_bytes(content)
        sidecar_path(paths["transformer"]).write_text(text)
        paths["latent_upsampler"].write_bytes(full)


def test_sessions_find_what_is_built(
    built: Callable[[str], tuple[Bundle, BuildReport]], gpu: CudaDouble, tensorrt: Callable[..., Any]
) -> None:
    """Real plans and their sidecars pass all that is checked before a GPU must deserialise them."""
    bundle, report = built("fp32")
    folder = next(iter(report.sidecars)).parents[2]
    tensorrt("tensorrt_rtx", next(iter(report.sidecars.values())).library_version)
    for path, sidecar in report.sidecars.items():
        plan = find_plan(folder, bundle, sidecar.component, sidecar.role, Device.open("auto"))
        assert (plan.path, plan.sidecar) == (path, sidecar)
        with checked_content(plan) as content:
            assert len(content) == sidecar.plan_size
    gpu.capabilities = ("8.6",)
    with pytest.raises(EngineError, match="is for compute capability 8.9, 12.0; expected 8.6.*--target rtx-sm86"):
        find_plan(folder, bundle, "transformer", "main", Device.open("auto"))


def test_sizes_far_apart_make_several_profiles(precision_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    request = BuildRequest(
        bundle=precision_bundle("fp32"),
        targets=("rtx-sm89",),
        workloads=("64x64x9", "256x256x17"),
        components=("latent_upsampler",),
        engines=tmp_path,
    )
    (sidecar,) = build_engines(request).sidecars.values()
    spans = [profile["latents"] for profile in sidecar.profiles]
    # 256x256x17 is 8x8 latents and 5x5 in its first stage, 64x64x9 is 2x2 and 1x1.
    assert [(span.min[2:], span.max[2:]) for span in spans] == [
        ((2, 1, 1), (3, 8, 8)),
        ((2, 1, 1), (2, 2, 2)),
        ((2, 1, 1), (2, 1, 1)),
    ]


def test_estimates_are_near_what_is_built(built: Callable[[str], tuple[Bundle, BuildReport]], tmp_path: Path) -> None:
    bundle, report = built("fp32")
    request = BuildRequest(bundle=bundle, targets=(TARGET,), workloads=("64x96x9..96x96x17",), engines=tmp_path)
    planned = plan_engines(request)
    sizes = {sidecar.component: sidecar.plan_size for sidecar in report.sidecars.values()}
    for plan, activations in zip(planned.plans, planned.activations, strict=True):
        assert plan.done is None
        assert 0.3 < plan.expected_bytes / sizes[plan.component] < 3
        assert activations is not None
    # At its end the decoder has a video in float, and what it is made of.
    index = [plan.component for plan in planned.plans].index("vae_decoder")
    *_, frames, height, width = planned.plans[index].profiles[0]["latents"].max
    assert planned.activations[index] >= 2 * 4 * 3 * (8 * frames - 7) * 32 * height * 32 * width
    half = plan_engines(dataclasses.replace(request, bundle=built("fp16")[0]))
    # The decoder ends in float32, and the others hold much of theirs in it.
    assert all(less <= full for less, full in zip(half.activations, planned.activations, strict=True))
    assert sum(half.activations) < sum(planned.activations)


def test_options_that_need_no_gpu_build(precision_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    options = BuildOptions(version_compatible=True, weight_streaming=True, workspace=64, max_aux_streams=1, tf32=True)
    request = BuildRequest(
        bundle=precision_bundle("fp16"),
        targets=("rtx-sm89",),
        workloads=("64x64x9",),
        components=("latent_upsampler",),
        engines=tmp_path,
        options=options,
    )
    (sidecar,) = build_engines(request).sidecars.values()
    assert (sidecar.version_compatible, sidecar.weight_streaming) == (True, True)
    assert sidecar.options["workspace"] == 64


def test_progress_tells_plans_and_phases(precision_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    phases: list[tuple[str, int, int]] = []
    started: list[GraphPlan] = []
    request = BuildRequest(
        bundle=precision_bundle("fp32"),
        targets=("rtx-sm89",),
        workloads=("64x64x9",),
        components=("latent_upsampler",),
        engines=tmp_path,
    )
    build_engines(
        request, Progress(started=started.append, phase=lambda name, done, steps: phases.append((name, done, steps)))
    )
    assert [plan.component for plan in started] == ["latent_upsampler"]
    assert ("Building engine", 0, phases[0][2]) == phases[0]
    assert all(0 <= done <= steps for _, done, steps in phases)


def test_a_kill_loses_the_component_in_work_and_nothing_else(
    precision_bundle: Callable[[str], Bundle], tmp_path: Path
) -> None:
    bundle = precision_bundle("fp32")
    options = ["--target", "rtx-sm89", "--workload", "64x64x9", "--engines", str(tmp_path)]
    parts = ["--component", "latent_upsampler", "--component", "vae_decoder"]
    command = [sys.executable, "-c", "from telecine.cli import main; main()", "build", str(bundle.root)]
    with subprocess.Popen([*command, *options, *parts], stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        lines = iter(child.stderr.readline, "")
        assert any(line.startswith("building vae_decoder.main") for line in lines)
        child.kill()
    request = BuildRequest(
        bundle=bundle,
        targets=("rtx-sm89",),
        workloads=("64x64x9",),
        components=("latent_upsampler", "vae_decoder"),
        engines=tmp_path,
    )
    assert [plan.done is not None for plan in plan_engines(request).plans] == [True, False]
    (path,) = build_engines(request).built
    assert path.name == "vae_decoder.main.plan"


def test_ctrl_c_ends_the_build_and_leaves_nothing(precision_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    def interrupt(name: str, done: int, steps: int) -> None:
        raise KeyboardInterrupt  # what Python does in the main thread, where TensorRT calls back

    request = BuildRequest(
        bundle=precision_bundle("fp32"),
        targets=("rtx-sm89",),
        workloads=("64x64x9",),
        components=("latent_upsampler",),
        engines=tmp_path,
    )
    with pytest.raises(KeyboardInterrupt):
        build_engines(request, Progress(phase=interrupt))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]
