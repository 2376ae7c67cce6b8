"""Ranges for the axes of LTX-Video's graphs hold what runs feed them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import telecine
from telecine.axes import bind_axes
from telecine.backends.onnxruntime import OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.families.ltx_video.workloads import axis_ranges
from telecine.manifest import Graph
from telecine.shapes import VideoShape
from telecine.workload import AxisRange, Workload

TILE = VideoShape(num_frames=121, height=512, width=512)
UPSAMPLER = {"upsampler": {"spatial_factor": 2, "temporal_factor": 1}}
TEMPORAL = {"upsampler": {"spatial_factor": 1, "temporal_factor": 2}}


@pytest.fixture(scope="module")
def host(tiny_bundle: Path) -> dict[str, Any]:
    """Of a model without an upsampler, on the grid of every release: 32 pixels and 8 frames a latent."""
    return Bundle.open(tiny_bundle).manifest.host


def workload(width: int, height: int, num_frames: int, *, videos: int = 1, keyframes: int = 4) -> Workload:
    shape = VideoShape(num_frames=num_frames, height=height, width=width)
    return Workload(low=shape, high=shape, videos=(videos, videos), tile=TILE, keyframes=keyframes)


def test_the_transformer_of_one_size(host: dict[str, Any]) -> None:
    (axes,) = axis_ranges("transformer", workload(768, 512, 121), host)
    latents, frame = 16 * 16 * 24, 16 * 24
    assert axes == {
        "batch": AxisRange(1, 2, 3),
        "tokens": AxisRange(latents, latents, latents + 4 * frame),
        "text_length": AxisRange(1, 128, 256),
        "timestep_tokens": AxisRange(1, latents, latents + 4 * frame),
        "rope_positions": AxisRange(24, 24, 24),
    }


def test_keyframes_add_positions_in_time_too(host: dict[str, Any]) -> None:
    (axes,) = axis_ranges("transformer", workload(64, 64, 121, keyframes=6), host)
    assert axes["rope_positions"] == AxisRange(16, 16, 22)
    (axes,) = axis_ranges("transformer", workload(64, 64, 121, keyframes=0), host)
    assert axes["tokens"] == AxisRange(64, 64, 64)


def test_several_videos_are_each_a_row_a_pass(host: dict[str, Any]) -> None:
    (axes,) = axis_ranges("transformer", workload(64, 64, 9, videos=4), host)
    assert axes["batch"] == AxisRange(4, 8, 12)
    assert axis_ranges("text_encoder", workload(64, 64, 9, videos=4), host)[0]["batch"] == AxisRange(4, 4, 4)


def test_two_stages_of_the_recipe(host: dict[str, Any]) -> None:
    """1152x768 is made as 768x512 and 1536x1024: the documentation's factor is 2/3, upsampling doubles."""
    sizes = axis_ranges("transformer", workload(1152, 768, 161), host | UPSAMPLER)
    assert [axes["tokens"].opt for axes in sizes] == [21 * 24 * 36, 21 * 16 * 24, 21 * 32 * 48]
    upsampled = axis_ranges("latent_upsampler", workload(1152, 768, 161), host | UPSAMPLER)
    assert [(axes["latent_height"].opt, axes["latent_width"].opt) for axes in upsampled] == [(24, 36), (16, 24)]
    assert len(axis_ranges("transformer", workload(1152, 768, 161), host | TEMPORAL)) == 1


def test_the_vae_gets_tiles(host: dict[str, Any]) -> None:
    for component in ("vae_encoder", "vae_decoder"):
        (axes,) = axis_ranges(component, workload(1152, 768, 257), host)
        assert axes["latent_frames"] == axes["latent_height"] == axes["latent_width"] == AxisRange(1, 16, 16)
        (axes,) = axis_ranges(component, workload(96, 64, 17), host)
        assert [axes[f"latent_{side}"].max for side in ("frames", "height", "width")] == [3, 2, 3]
        (axes,) = axis_ranges(component, workload(96, 64, 17), host | UPSAMPLER)
        assert [axes[f"latent_{side}"].max for side in ("frames", "height", "width")] == [3, 2, 4]


def test_a_range_goes_from_the_smallest_to_the_largest(host: dict[str, Any]) -> None:
    low, high = (VideoShape(num_frames=frames, height=side, width=side) for frames, side in ((9, 64), (25, 128)))
    span = Workload(low=low, high=high, videos=(1, 2), tile=TILE, keyframes=1)
    (axes,) = axis_ranges("transformer", span, host)
    assert axes["tokens"] == AxisRange(2 * 4, 4 * 16, 5 * 16)
    assert axes["batch"] == AxisRange(1, 4, 6)
    assert axes["rope_positions"] == AxisRange(2, 4, 5)


def test_host_math_takes_what_the_networks_around_it_do(host: dict[str, Any]) -> None:
    asked = workload(768, 512, 121, videos=2)
    (axes,) = axis_ranges("denoise_step", asked, host)
    latents, frame, channels = 16 * 16 * 24, 16 * 24, host["latent_channels"]
    assert axes == {
        "passes": AxisRange(1, 2, 3),
        "batch": AxisRange(2, 2, 2),
        "tokens": AxisRange(latents, latents, latents + 4 * frame),
        "coefficient_tokens": AxisRange(1, 1, latents + 4 * frame),
        "channels": AxisRange(channels, channels, channels),
    }
    (axes,) = axis_ranges("denoise_step", workload(1152, 768, 161), host | UPSAMPLER)  # and its two stages
    assert (axes["tokens"].min, axes["tokens"].opt) == (21 * 16 * 24, 21 * 24 * 36)
    assert axes["tokens"].max >= 21 * 32 * 48
    (axes,) = axis_ranges("decoder_latents", asked, host)
    assert [axes[f"latent_{side}"].opt for side in ("frames", "height", "width")] == [16, 16, 24]
    (axes,) = axis_ranges("uint8_frames", asked, host)
    assert [axes[side].max for side in ("num_frames", "height", "width")] == [121, 512, 512]
    assert axes["batch"] == axis_ranges("vae_decoder", asked, host)[0]["batch"]


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Graph, dict[str, tuple[int, ...]]]]:
    """The graph and the input shapes by name of every run of a network."""
    calls: list[tuple[Graph, dict[str, tuple[int, ...]]]] = []
    enqueue: Callable[..., None] = OnnxRuntimeSession.enqueue

    def record(self: OnnxRuntimeSession, stream: int = 0) -> None:
        calls.append((self._graph, {name: self._bound[name].shape for name in self.inputs}))
        enqueue(self, stream)

    monkeypatch.setattr(OnnxRuntimeSession, "enqueue", record)
    return calls


@pytest.mark.parametrize(
    ("request_", "asked"),
    [
        (
            {
                "prompt": ["a red ball", "a blue cube"], "height": 64, "width": 96, "num_frames": 17,
                "num_inference_steps": 2, "seed": 0, "stg_scale": 1.0, "stg_blocks": [1],
            },
            workload(96, 64, 17, videos=2),
        ),
        (
            {
                "prompt": "a red ball", "height": 96, "width": 96, "num_frames": 17, "num_inference_steps": 3,
                "seed": 0, "second_stage": {}, "max_sequence_length": 256, "pipeline": "LTXConditionPipeline",
                "conditions": "first, video, last",
            },
            workload(96, 96, 17, keyframes=3),
        ),
    ],
    ids=["two prompts, three passes", "keyframes in two stages"],
)  # fmt: skip
def test_what_runs_feed_is_inside(
    request_: dict[str, Any],
    asked: Workload,
    upscaler_bundle: Path,
    fed: list[tuple[Graph, dict[str, tuple[int, ...]]]],
) -> None:
    if "conditions" in request_:
        frames = np.zeros((9, 96, 96, 3), np.uint8)
        request_ = request_ | {
            "conditions": [
                telecine.Condition(image=frames[0]),
                telecine.Condition(video=frames, frame_index=8),
                telecine.Condition(image=frames[0], frame_index=16),
            ]
        }
    with telecine.load(upscaler_bundle, backend="onnxruntime") as pipe:
        pipe.generate(**request_)
    bundle = Bundle.open(upscaler_bundle)
    components = {part.graphs["main"].file.path: name for name, part in bundle.manifest.components.items()}
    seen = set()
    for graph, shapes in fed:
        component = components[graph.file.path]
        seen.add(component)
        sizes = bind_axes(graph.inputs, shapes)
        ranges = axis_ranges(component, asked, bundle.manifest.host)
        assert any(
            all(axes[symbol].min <= size <= axes[symbol].max for symbol, size in sizes.items()) for axes in ranges
        ), (component, sizes, ranges)
    everything = set(components.values()) - {
        "denoise_step",
        "decoder_latents",
        "uint8_frames",
    }  # which run on a GPU only
    assert seen == (everything if "conditions" in request_ else everything - {"vae_encoder", "latent_upsampler"})
