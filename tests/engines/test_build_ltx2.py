"""Builds of LTX-2 by TensorRT for RTX, without a GPU: every graph of a bundle, at the sizes that runs ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from telecine.axes import bind_axes
from telecine.bundle import Bundle
from telecine.errors import RequestError
from telecine_engines.build import BuildRequest, build_engines
from telecine_engines.profiles import plan_profiles
from telecine_engines.workloads import family_of, parse_workloads

Ltx2 = Callable[[str], tuple[Path, Path, Path]]
WORKLOAD = "64x64x9..96x96x17@b1..2"


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


@pytest.mark.parametrize(
    ("style", "component"),
    [
        ("2.3", "connectors"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ("2.3", "text_encoder"), ("2.3", "transformer"), ("2.3", "vae_encoder"), ("2.3", "vae_decoder"),
                ("2.3", "audio_vae_decoder"), ("2.3", "vocoder"), ("2.3", "latent_upsampler"), ("2.3", "uint8_frames"),
                ("2.0", "vae_decoder"),  # pads by mirror images
            )
        ),
    ],
)  # fmt: skip
def test_it_builds(ltx2: Ltx2, style: str, component: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = Bundle.open(ltx2(style)[2])
    request = BuildRequest(
        bundle=bundle, targets=("rtx-sm89",), workloads=(WORKLOAD,), components=(component,), engines=tmp_path
    )
    (sidecar,) = build_engines(request).sidecars.values()
    inputs = bundle.graph(component).inputs
    for profile in sidecar.profiles:
        for end in ("min", "max"):
            assert bind_axes(inputs, {name: getattr(span, end) for name, span in profile.items()})
