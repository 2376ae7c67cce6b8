"""Builds of LTX-2 by TensorRT for RTX, without a GPU: every graph of a bundle, at the sizes that runs ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from telecine.axes import bind_axes
from telecine.bundle import Bundle
from telecine.engine import Sidecar
from telecine.errors import RequestError
from telecine_engines.build import BuildRequest, build_engines
from telecine_engines.profiles import plan_profiles
from telecine_engines.workloads import family_of, parse_workloads

Ltx2 = Callable[[str], tuple[Path, Path, Path]]
WORKLOAD = "64x64x9..96x96x17@b1..2"
# TensorRT's name of each precision's tensors.
COMPUTED_IN = {"fp16": "HALF", "bf16": "BF16", "fp8": "FP8"}
HALVES = set(COMPUTED_IN.values())


@pytest.mark.parametrize("style", ["2.3", pytest.param("2.0", marks=pytest.mark.slow)])
def test_every_axis_of_every_graph_has_a_range(ltx2: Ltx2, style: str) -> None:
    bundle = Bundle.open(ltx2(style)[2])
    workloads = parse_workloads([WORKLOAD], bundle)
    for name, component in bundle.manifest.components.items():
        sizes = [size for each in workloads for size in family_of(bundle).axis_ranges(name, each, bundle.manifest.host)]
        for graph in component.graphs.values():
            profiles = plan_profiles(graph.inputs, sizes)
            assert all(profile.keys() == {each.name for each in graph.inputs} for profile in profiles), name


def test_ranges_of_a_published_size(ltx2: Ltx2) -> None:
    bundle = Bundle.open(ltx2("2.3")[2])
    ranges = family_of(bundle).axis_ranges
    (workload,) = parse_workloads(["768x512x121"], bundle)
    whole, first, second = ranges("transformer", workload, bundle.manifest.host)
    tokens = 16 * 24 * 16
    assert (whole["tokens"].min, whole["tokens"].opt, whole["tokens"].max) == (tokens, tokens, tokens + 4 * 24 * 16)
    assert (whole["audio_tokens"].min, whole["audio_tokens"].max) == (50, 126)  # 60 and 24 frames a second
    assert first["tokens"].opt == tokens // 4
    assert second["tokens"].opt == tokens
    (vocoder,) = ranges("vocoder", workload, bundle.manifest.host)
    assert vocoder["mel_frames"].max == 4 * 126 - 3


def test_a_decoder_that_pads_by_mirror_images_is_built_for_two_latents_a_side(ltx2: Ltx2) -> None:
    bundle = Bundle.open(ltx2("2.3")[2])
    host = bundle.manifest.host | {"least_sides": {"vae_encoder": 1, "vae_decoder": 2}}
    ranges = family_of(bundle).axis_ranges
    (workload,) = parse_workloads(["96x64x17"], bundle)
    (decoder,), (encoder,) = (ranges(name, workload, host) for name in ("vae_decoder", "vae_encoder"))
    assert [decoder[f"latent_{side}"].min for side in ("frames", "height", "width")] == [1, 2, 2]
    assert encoder["latent_height"].min == 1
    (workload,) = parse_workloads(["96x32x17"], bundle)
    with pytest.raises(RequestError, match="a workload of at most 32 pixels a side; expected 64"):
        ranges("vae_decoder", workload, host | {"upsampler": None})  # two stages make a larger one


def build(path: Path, engines: Path) -> dict[str, Sidecar]:
    """Plans of every component of a bundle, each fit for what its profiles say."""
    pytest.importorskip("tensorrt_rtx")
    bundle = Bundle.open(path)
    request = BuildRequest(bundle=bundle, targets=("rtx-sm89",), workloads=(WORKLOAD,), components=(), engines=engines)
    sidecars = {each.component: each for each in build_engines(request).sidecars.values()}
    assert sidecars.keys() == bundle.manifest.components.keys()
    for component, sidecar in sidecars.items():
        inputs = bundle.graph(component).inputs
        for profile in sidecar.profiles:
            for end in ("min", "max"):
                assert bind_axes(inputs, {name: getattr(span, end) for name, span in profile.items()})
    return sidecars


@pytest.mark.slow
def test_every_component_builds_at_float32(ltx2: Ltx2, tmp_path: Path) -> None:
    assert all(not sidecar.precisions.keys() & HALVES for sidecar in build(ltx2("2.3")[2], tmp_path).values())


@pytest.mark.parametrize(
    ("style", "precision"),
    [
        ("2.3", "fp8"),
        *(
            pytest.param(style, precision, marks=pytest.mark.slow)
            for style in ("2.3", "2.0")
            for precision in ("fp16", "bf16", "fp8")
            if (style, precision) != ("2.3", "fp8")
        ),
    ],
)
def test_every_component_builds_below_float32(
    style: str, precision: str, ltx2_precisions: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """In the precision that it has; what sounds are made with in float32. The transformer's FP8 is by calibration."""
    path = ltx2_precisions(precision, style)
    components = Bundle.open(path).manifest.components
    for name, sidecar in build(path, tmp_path).items():
        own = components[name].precision
        if own == "fp32":
            assert not sidecar.precisions.keys() & HALVES, name
        else:
            assert sidecar.precisions[COMPUTED_IN[own]] > 10, (name, sidecar.precisions)
    assert {components[name].precision for name in ("text_encoder", "transformer")} == {precision}
    assert {components[name].precision for name in ("audio_vae_decoder", "vocoder")} == {"fp32"}
