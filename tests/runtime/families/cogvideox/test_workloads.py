"""Ranges for the axes of CogVideoX' graphs hold what runs feed them; what engines do not take is refused before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import telecine
from telecine.axes import bind_axes
from telecine.backends.onnxruntime import OnnxRuntimeSession
from telecine.bundle import Bundle
from telecine.errors import EngineError
from telecine.families import FAMILIES
from telecine.families.cogvideox.workloads import axis_ranges
from telecine.manifest import Graph
from telecine.models import LoadedModels
from telecine.shapes import VideoShape
from telecine.workload import AxisRange, Workload

CogVideoX = Callable[[str], tuple[Path, Path]]
LIMITS = {"batch": 2, "text_length": 226, "frame_groups": 3, "rows": 4, "columns": 6}


def workload(width: int, height: int, num_frames: int, *, videos: int = 1, tile: int | None = None) -> Workload:
    shape = VideoShape(num_frames=num_frames, height=height, width=width)
    largest = shape if tile is None else VideoShape(num_frames=num_frames, height=tile, width=tile)
    return Workload(low=shape, high=shape, videos=(videos, videos), tile=largest, keyframes=0)


def test_ranges_of_a_published_size(cogvideox: CogVideoX) -> None:
    host = Bundle.open(cogvideox("2b")[1]).manifest.host
    asked = workload(720, 480, 49)
    ranges = {component: axis_ranges(component, asked, host) for component in ("transformer", "vae_decoder")}
    assert ranges["transformer"] == [
        {
            "batch": AxisRange(1, 2, 2), "text_length": AxisRange(1, 226, 226),
            "frame_groups": AxisRange(13, 13, 13), "rows": AxisRange(30, 30, 30), "columns": AxisRange(45, 45, 45),
        }
    ]  # fmt: skip
    picture = {"latent_height": AxisRange(1, 60, 60), "latent_width": AxisRange(1, 90, 90)}
    assert ranges["vae_decoder"] == [{"batch": AxisRange(1, 1, 1)} | picture]
    (encoder,) = axis_ranges("vae_encoder", asked, host)
    assert encoder == {"batch": AxisRange(1, 1, 1), "chunk_latents": AxisRange(1, 2, 3)} | picture
    (tiled,) = axis_ranges("vae_decoder", dataclasses.replace(asked, tile=workload(240, 240, 49).low), host)
    assert (tiled["latent_height"].max, tiled["latent_width"].max) == (30, 30)


def test_a_model_of_1_5_counts_groups_of_padded_frames(cogvideox: CogVideoX) -> None:
    host = Bundle.open(cogvideox("1.5-5b")[1]).manifest.host
    (axes,) = axis_ranges("transformer", workload(1360, 768, 81, videos=2), host)
    assert axes["frame_groups"] == AxisRange(11, 11, 11)  # 21 latent frames, and one more
    assert axes["batch"] == AxisRange(2, 4, 4)


@pytest.mark.parametrize(
    ("style", "request_", "asked"),
    [
        ("2b", {"prompt": ["a ball", "a fox"], "num_frames": 17}, workload(48, 32, 17, videos=2)),
        ("5b", {"prompt": "a ball", "video": np.zeros((20, 32, 48, 3), np.uint8), "strength": 1.0},
         workload(48, 32, 17)),
        ("1.5-5b-I2V", {"prompt": "a ball", "image": np.zeros((32, 48, 3), np.uint8), "num_frames": 9},
         workload(48, 32, 9)),
    ],
    ids=["text", "video", "image"],
)  # fmt: skip
def test_what_runs_feed_is_inside(
    style: str, request_: dict[str, Any], asked: Workload, cogvideox: CogVideoX, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Graph, dict[str, tuple[int, ...]]]] = []
    enqueue = OnnxRuntimeSession.enqueue

    def record(self: OnnxRuntimeSession, stream: int = 0) -> None:
        calls.append((self._graph, {name: self._bound[name].shape for name in self.inputs}))
        enqueue(self, stream)

    monkeypatch.setattr(OnnxRuntimeSession, "enqueue", record)
    _, bundle = cogvideox(style)
    with telecine.load(bundle, backend="onnxruntime") as pipe:
        pipe.generate(**request_, height=32, width=48, num_inference_steps=1, seed=0)
    manifest = Bundle.open(bundle).manifest
    names = {graph.file.path: name for name, part in manifest.components.items() for graph in part.graphs.values()}
    for graph, shapes in calls:
        (axes,) = axis_ranges(names[graph.file.path], asked, manifest.host)
        for symbol, size in bind_axes(graph.inputs, shapes).items():
            assert axes[symbol].min <= size <= axes[symbol].max, (graph.file.path, symbol, size)
    on_gpus = {name for name, part in manifest.components.items() if part.parameters == 0}
    assert {names[graph.file.path] for graph, _ in calls} == (
        set(manifest.components) - on_gpus - ({"vae_encoder"} if style == "2b" else set())
    )


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`limited(transformer={...}, vae_decoder={...})`: ONNX Runtime with an engine's limits on these components."""

    def limit(**limits: Mapping[str, int]) -> None:
        monkeypatch.setattr(LoadedModels, "limits", lambda _, component, role="main": limits.get(component))

    return limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 17}, "48x32x17@b1 has 5 frame_groups; expected at most 3 frame_groups, by the engine. Run"),
        ({"height": 80}, "has 5 rows; expected at most 4"),
        ({"num_videos_per_prompt": 2}, "has 4 batch; expected at most 2 batch"),
    ],
)  # fmt: skip
def test_what_the_engine_is_too_small_for_is_refused(
    change: dict[str, Any], message: str, cogvideox: CogVideoX, limited: Callable[..., None]
) -> None:
    limited(transformer=LIMITS)
    request = {"prompt": "a ball", "height": 32, "width": 48, "num_frames": 9, "seed": 0}
    with telecine.load(cogvideox("2b")[1]) as pipe, pytest.raises(EngineError, match=message):
        pipe.generate(**request | change)


def test_a_decoder_too_small_for_the_picture_runs_in_tiles(cogvideox: CogVideoX, limited: Callable[..., None]) -> None:
    request = {"prompt": "a ball", "height": 96, "width": 96, "num_frames": 1, "num_inference_steps": 1, "seed": 0}
    with telecine.load(cogvideox("2b")[1]) as pipe:
        # Of 12 x 12 latents: 6 and 10 are the tiles below that whose overlaps fit.
        tiles = pipe.generate(**request, tile_size=96, tile_stride=64).frames
        limited(vae_decoder={"batch": 1, "latent_height": 7, "latent_width": 11})
        made = pipe.generate(**request).frames
        assert made is not None
        assert tiles is not None
        assert made.shape == tiles.shape
        with pytest.raises(EngineError, match="engines take 88x56 pixels at once.*--workload 96x96x1 "):
            pipe.generate(**request, tiling="off")
        with pytest.raises(EngineError, match="engines take 88x56 pixels at once"):
            pipe.generate(**request, tile_size=64, tile_stride=32)


def test_the_family_has_no_keyframes_and_whole_pictures() -> None:
    assert (FAMILIES["cogvideox"].keyframes, FAMILIES["cogvideox"].vae_tile) == (None, None)
