"""Two stages in one `generate`: sizes, what each stage is asked, and what stands between and after them.

The pipeline is a fake that records its requests: that the real one denoises given latents is its own tests' business.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import telecine
from telecine import pipeline
from telecine.errors import BundleError, RequestError
from telecine.families.base import Frames, Output
from telecine.families.ltx_video import LTX_VIDEO
from telecine.families.stages import Sizes
from telecine.request import Request
from telecine.resample import BICUBIC, resize
from telecine.shapes import Grid

GRID = Grid(spatial=32, temporal=8)
DEFAULTS = {**LTX_VIDEO.pipelines["LTXPipeline"].defaults, "denoise_strength": 1.0}
SMALL: dict[str, Any] = {
    "prompt": "a red ball", "height": 70, "width": 100, "num_frames": 9, "seed": 3,
    "pipeline": "LTXConditionPipeline",
}  # fmt: skip


class Recorder:
    """A pipeline whose stages make seeded noise of the size that they are asked for."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def run(self, models: Any, request: Request, *, stage: Any, callback: Any) -> Output:
        self.requests.append(request)
        with stage("denoise"):
            random = np.random.default_rng(len(self.requests))
            if callback:
                callback(0, 1, 1.0, None)
        size = request.num_frames, request.height, request.width
        if request.output_type == "latent":
            shape = (request.videos, 16, (size[0] - 1) // 8 + 1, size[1] // 32, size[2] // 32)
            return Output(latents=random.standard_normal(shape, dtype=np.float32), seeds=request.seeds())
        frames = random.random((request.videos, *size, 3), dtype=np.float32)
        if request.output_type == "uint8":
            frames = (frames * 255).astype(np.uint8)
        halves = iter([frames[:, :4], frames[:, 4:]])
        return Output(frames=Frames(shape=frames.shape, dtype=frames.dtype, pieces=halves), seeds=request.seeds())


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    fake = Recorder()
    name = "LTXConditionPipeline"
    spec = dataclasses.replace(LTX_VIDEO.pipelines[name], run=fake.run)
    monkeypatch.setitem(LTX_VIDEO.pipelines, name, spec)  # type: ignore[arg-type]
    return fake


@pytest.fixture(scope="module")
def pipe(upscaler_bundle: Path) -> Iterator[telecine.Pipeline]:
    with telecine.load(upscaler_bundle) as pipeline:
        yield pipeline


def asked(height: int, width: int, num_frames: int = 9) -> Request:
    return Request.resolve({"prompt": "a", "height": height, "width": width, "num_frames": num_frames}, DEFAULTS)


class TestSizes:
    @pytest.mark.parametrize(
        ("size", "factor", "first"),
        [
            ((768, 1152), 2 / 3, (512, 768)),  # of diffusers' documentation
            ((720, 1280), 2 / 3, (480, 864)),  # 853 in the documentation's way, which its pipeline refuses
            ((512, 768), 0.5, (256, 384)),
            ((70, 100), 2 / 3, (32, 64)),
            ((1, 1), 2 / 3, (32, 32)),
        ],
    )
    def test_the_first_stage_is_the_nearest_on_the_grid(
        self, size: tuple[int, int], factor: float, first: tuple[int, int]
    ) -> None:
        sizes = Sizes.plan(asked(*size), factor, GRID)
        assert (sizes.first.height, sizes.first.width) == first

    @settings(deadline=None)
    @given(st.integers(1, 4000), st.integers(1, 4000), st.floats(0.1, 1), st.integers(1, 300))
    def test_both_are_legal_and_the_second_is_twice_the_first(
        self, height: int, width: int, factor: float, num_frames: int
    ) -> None:
        sizes = Sizes.plan(asked(height, width, num_frames), factor, GRID)
        assert sizes.first.num_frames == sizes.second.num_frames <= num_frames
        for side, first, second in (
            (height, sizes.first.height, sizes.second.height),
            (width, sizes.first.width, sizes.second.width),
        ):
            assert first % 32 == 0 < first
            assert second == 2 * first
            assert abs(first - side * factor) <= 16 or first == 32
        sizes.second.latent(GRID)  # asserts the grid itself


class TestStages:
    def test_what_each_is_asked(self, pipe: telecine.Pipeline, recorder: Recorder) -> None:
        pipe.generate(**SMALL | {"num_frames": 12}, preset="two-stage", negative_prompt="blurry")
        first, second = recorder.requests
        sizes = [(each.num_frames, each.height, each.width) for each in recorder.requests]
        assert sizes == [(9, 32, 64), (9, 64, 128)]
        assert (first.output_type, second.output_type) == ("latent", "np")
        assert (first.num_inference_steps, first.guidance_scale, first.latents) == (30, 5.0, None)
        assert (second.num_inference_steps, second.guidance_scale, second.denoise_strength) == (10, 5.0, 0.4)
        for each in recorder.requests:
            assert (each.guidance_rescale, each.decode_timestep, each.seeds()) == (0.7, 0.05, (3,))
            assert (each.prompt, each.negative_prompt) == ("a red ball", "blurry")

    def test_the_distilled_recipe(self, pipe: telecine.Pipeline, recorder: Recorder) -> None:
        pipe.generate(**SMALL, preset="two-stage-distilled-0.9.8")
        first, second = recorder.requests
        assert first.timesteps == [1000, 993, 987, 981, 975, 909, 725, 0.03]
        assert second.timesteps == [1000, 909, 725, 421, 0]
        assert (first.guidance_scale, second.guidance_scale, second.denoise_strength) == (1.0, 1.0, 0.999)

    def test_settings_of_the_request_replace_the_presets(self, pipe: telecine.Pipeline, recorder: Recorder) -> None:
        pipe.generate(
            **SMALL,
            preset="two-stage-distilled",
            num_inference_steps=4,
            second_stage={"denoise_strength": 0.9, "guidance_scale": 2.0},
        )
        first, second = recorder.requests
        assert (first.num_inference_steps, first.timesteps) == (4, None)
        assert (second.denoise_strength, len(second.timesteps or ())) == (0.9, 5)
        assert (first.guidance_scale, second.guidance_scale) == (1.0, 2.0)

    @pytest.mark.parametrize("settings", [{}, {"adain_factor": 1.0, "tone_map_compression_ratio": 0.6}])
    def test_between_them_stands_upscale(
        self, settings: dict[str, Any], pipe: telecine.Pipeline, recorder: Recorder
    ) -> None:
        pipe.generate(**SMALL, second_stage=settings)
        coarse = np.random.default_rng(1).standard_normal((1, 16, 2, 1, 2), dtype=np.float32)
        expected = pipe.upscale(latents=coarse, output_type="latent", **settings).latents
        assert recorder.requests[1].latents is not None
        np.testing.assert_array_equal(recorder.requests[1].latents, expected)

    def test_a_random_seed_serves_both(self, pipe: telecine.Pipeline, recorder: Recorder) -> None:
        result = pipe.generate(**SMALL | {"seed": None}, second_stage={})
        assert [each.seeds() for each in recorder.requests] == [result.seeds] * 2

    def test_batches(self, pipe: telecine.Pipeline, recorder: Recorder) -> None:
        batch = {"prompt": ["a ball", "a cube"], "num_videos_per_prompt": 2, "seed": [1, 2, 3, 4]}
        result = pipe.generate(**SMALL | batch, second_stage={})
        assert result.frames is not None
        assert result.frames.shape == (4, 9, 70, 100, 3)
        assert [each.videos for each in recorder.requests] == [4, 4]

    def test_the_callback_and_the_timings_tell_the_stages_apart(
        self, pipe: telecine.Pipeline, recorder: Recorder
    ) -> None:
        steps: list[int] = []
        result = pipe.generate(**SMALL, second_stage={}, callback=lambda step, *_: steps.append(step))
        assert steps == [0, 0]
        assert set(result.timings) == {"first denoise", "upsample", "second denoise", "decode", "total"}


class TestResult:
    @pytest.mark.parametrize("output_type", ["np", "uint8"])
    def test_it_is_the_second_stage_resized_to_the_size_asked_for(
        self, output_type: str, pipe: telecine.Pipeline, recorder: Recorder
    ) -> None:
        result = pipe.generate(**SMALL, second_stage={}, output_type=output_type)
        made = np.random.default_rng(2).random((1, 9, 64, 128, 3), dtype=np.float32)
        if output_type == "uint8":
            made = (made * 255).astype(np.uint8)
        expected = resize(made[0], 70, 100, BICUBIC)[np.newaxis]
        assert result.frames is not None
        assert result.frames.dtype == made.dtype
        np.testing.assert_array_equal(result.frames, expected if output_type == "uint8" else expected.clip(0, 1))

    def test_no_resize_where_none_is_needed(self, pipe: telecine.Pipeline, recorder: Recorder) -> None:
        result = pipe.generate(**SMALL | {"height": 128, "width": 64}, second_stage={"downscale_factor": 0.5})
        assert result.frames is not None
        made = np.random.default_rng(2).random((1, 9, 128, 64, 3), dtype=np.float32)
        np.testing.assert_array_equal(result.frames, made)

    def test_latents_are_the_second_stages(self, pipe: telecine.Pipeline, recorder: Recorder) -> None:
        result = pipe.generate(**SMALL, second_stage={}, output_type="latent")
        assert result.latents is not None
        assert result.latents.shape == (1, 16, 2, 2, 4)


class TestChoice:
    """A bundle of `LTXPipeline`, which cannot denoise given latents in part, still serves its two-stage presets."""

    @pytest.mark.parametrize(
        "request_",
        [
            {"second_stage": {}},
            {"preset": "two-stage"},
            {"second_stage": {}, "image": np.zeros((32, 32, 3), np.uint8)},
        ],
        ids=["asked for", "by a preset", "with what another pipeline takes too"],
    )
    def test_a_second_stage_chooses_the_pipeline(
        self, request_: dict[str, Any], pipe: telecine.Pipeline, recorder: Recorder
    ) -> None:
        assert pipe.bundle.manifest.pipeline == "LTXPipeline"
        pipe.generate(**SMALL | {"pipeline": None} | request_)
        assert [request.max_sequence_length for request in recorder.requests] == [256, 256]

    def test_a_preset_without_one_does_not(self, pipe: telecine.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        asked, request = {"prompt": "a", "preset": "recommended"}, []
        monkeypatch.setattr(pipeline.Request, "resolve", lambda *layers: request.append(layers[-1]))
        pipe._generation(asked)
        assert request[0]["max_sequence_length"] == 128


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"height": 0}, "height is 0"),
            ({"width": 64.5}, "width is 64.5"),
            ({"latents": np.zeros((1, 16, 2, 1, 2))}, "latents with two stages"),
            ({"seed": "three"}, "seed is 'three'"),
            ({"decode_timestep": [0.1, 0.2]}, "decode_timestep"),
            ({"timesteps": [1, 2]}, "strictly descending"),
            ({"second_stage": {"timesteps": [1000, 1001, 5]}}, "strictly descending"),
            ({"second_stage": {"timesteps": 900}}, "timesteps"),
            ({"second_stage": {"timesteps": []}}, "timesteps"),
            ({"second_stage": {"num_inference_steps": 0}}, "num_inference_steps is 0"),
            ({"second_stage": {"num_inference_steps": 2.5}}, "num_inference_steps is 2.5"),
            ({"second_stage": {"guidance_scale": np.inf}}, "guidance_scale is inf"),
            ({"second_stage": {"guidance_rescale": 2}}, "guidance_rescale is 2"),
            ({"second_stage": {"denoise_strength": 0.05}}, "0.05 of 10 steps"),
            ({"second_stage": {"denoise_strength": 0.4, "timesteps": [1000, 500]}}, "0.4 of 2 steps"),
            ({"second_stage": {"strength": 1}}, "second_stage has strength"),
            ({"pipeline": "LTXPipeline"}, "second_stage for LTXPipeline; .* pass pipeline='LTXConditionPipeline'"),
        ],
    )
    def test_before_anything_runs(
        self,
        change: dict[str, Any],
        words: str,
        pipe: telecine.Pipeline,
        recorder: Recorder,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(pipe._models, "session", lambda *_: pytest.fail("a network was loaded"))
        with pytest.raises(RequestError, match=words):
            pipe.generate(**SMALL | {"second_stage": {}} | change)
        assert recorder.requests == []

    def test_bundles_without_an_upsampler_that_doubles_the_sides(
        self, tiny_bundle: Path, temporal_bundle: Path, recorder: Recorder
    ) -> None:
        for bundle, words in ((tiny_bundle, "--upscaler"), (temporal_bundle, "1 times in space and 2 in time")):
            with telecine.load(bundle) as pipe, pytest.raises(BundleError, match=words):
                pipe.generate(**SMALL, second_stage={})


def test_the_presets_are_requests(pipe: telecine.Pipeline, recorder: Recorder) -> None:
    """At their own sizes, on the real grid."""
    for name, preset in pipe.bundle.manifest.presets.items():
        if "second_stage" in preset:
            settings = {key: value for key, value in preset.items() if key != "second_stage"}
            sizes = Sizes.plan(Request.resolve({"prompt": "a"}, settings, DEFAULTS), 2 / 3, GRID)
            assert dataclasses.astuple(sizes.second) == (161, 1024, 1536), name


def test_a_stream_is_resized_piece_by_piece(pipe: telecine.Pipeline, recorder: Recorder) -> None:
    pieces = list(pipe.stream(**SMALL, second_stage={}))
    assert [piece.shape for piece in pieces] == [(1, 4, 70, 100, 3), (1, 5, 70, 100, 3)]
    recorder.requests.clear()  # its noise is seeded by them
    whole = pipe.generate(**SMALL, second_stage={}).frames
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1), whole)
