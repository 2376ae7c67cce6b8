"""Guidance, chunks, tiles, sampler and host configuration of CogVideoX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderKLCogVideoX

from telecine.errors import BundleError, RequestError
from telecine.families import FAMILIES
from telecine.families.cogvideox.chunks import DECODER, ENCODER, Chunk
from telecine.families.cogvideox.guidance import BothPasses, dynamic_scale, request_guidance
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.sampler import CogVideoXSampler
from telecine.families.cogvideox.tiling import overlapped, plan_vae
from telecine.request import Request
from telecine.schedulers.cogvideox import DDIM, DPM, CogVideoXSchedulerConfig, make_schedule
from telecine.shapes import LatentShape
from telecine.tiling import TilingOptions
from telecine.tiling.blended import Steps

FAMILY = FAMILIES["cogvideox"]
HOST: dict[str, Any] = {
    "spatial_ratio": 8,
    "temporal_ratio": 4,
    "patch_size": 2,
    "patch_size_t": None,
    "latent_channels": 4,
    "image_channels": 0,
    "text_channels": 32,
    "text_length": 226,
    "scaling_factor": 0.7,
    "invert_scale_latents": False,
    "positions": {
        "kind": "sincos",
        "width": 32,
        "rows": 4,
        "columns": 6,
        "spatial_interpolation_scale": 1.875,
        "temporal_interpolation_scale": 1.0,
    },
    "ofs": None,
    "widest_activations": {"vae_encoder": 100_000.0, "vae_decoder": 150_000.0},
    "vae_tile": {"height": 240, "width": 360},
    "sample": {"height": 64, "width": 96, "num_frames": 9},
    "scheduler": {"_class_name": DDIM, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
}
LATENT = LatentShape(frames=13, height=60, width=90)


def request(name: str = "CogVideoXPipeline", **asked: Any) -> Request:
    spec = FAMILY.pipelines[name]
    return Request.resolve({"prompt": "a fox", **asked}, spec.model_defaults(HOST), spec.defaults)


def schedule(steps: int = 50) -> Any:
    return make_schedule(CogVideoXSchedulerConfig.from_dict(HOST["scheduler"]), steps)


def plan(decoding: bool = True, latent: LatentShape = LATENT, videos: int = 1, **options: Any) -> Any:
    return plan_vae(TilingOptions(**options), latent, Host.parse(HOST), videos=videos, decoding=decoding)


# Guidance


def test_dynamic_guidance_is_diffusers_formula_though_it_jumps() -> None:
    def expected(scale: float, timestep: int, steps: int) -> float:
        return 1 + scale * ((1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2)

    for timestep in (999, 979, 400, 51, 50, 19, 0):
        assert dynamic_scale(6.0, timestep, 50) == expected(6.0, timestep, 50)
    assert dynamic_scale(6.0, 50, 50) == 1
    assert dynamic_scale(6.0, 0, 50) == 7


def test_dynamic_guidance_runs_both_prompts_at_every_step() -> None:
    guidance = request_guidance(request(use_dynamic_cfg=True), schedule())
    assert all(isinstance(step, BothPasses) for step in guidance.steps)
    assert guidance.passes == ("negative", "positive")
    assert min(step.scale for step in guidance.steps) < 1.5  # plain guidance near 1 would drop the negative prompt
    ones = np.ones((1, 2), np.float32)
    combined = BothPasses(scale=0.5).combine(np.concatenate([ones, 3 * ones]))
    np.testing.assert_array_equal(combined, 2 * ones)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_scale_of_1_turns_guidance_off(dynamic: bool) -> None:
    assert request_guidance(request(guidance_scale=1, use_dynamic_cfg=dynamic), schedule()).passes == ("positive",)


def test_a_scale_a_step() -> None:
    guidance = request_guidance(request(guidance_scale=[6.0, 1.0, 3.0]), schedule(3))
    assert [step.scale for step in guidance.steps] == [6, 1, 3]
    with pytest.raises(RequestError, match="guidance_scale has 2 values"):
        request_guidance(request(guidance_scale=[6.0, 1.0]), schedule(3))
    with pytest.raises(RequestError, match="a list of guidance scales with use_dynamic_cfg"):
        request_guidance(request(guidance_scale=[6.0] * 3, use_dynamic_cfg=True), schedule(3))


# Chunks


@pytest.mark.parametrize("length", range(1, 60))
@pytest.mark.parametrize("half", [ENCODER, DECODER])
def test_chunks_are_diffusers_and_cover_everything(half: Any, length: int) -> None:
    expected = []
    for index in range(max(length // half.size, 1)):
        rest = length % half.size
        expected.append((half.size * index + (rest if index else 0), min(half.size * (index + 1) + rest, length)))
    chunks = half.chunks(length)
    assert [(start, stop) for _, start, stop in chunks] == expected
    assert chunks[-1].stop == length
    assert all(chunk.role == "next" for chunk in chunks[1:])


def test_the_first_chunk_names_its_graph() -> None:
    assert DECODER.chunks(1) == [Chunk("image", 0, 1)]
    assert DECODER.chunks(2) == [Chunk("first_even", 0, 2)]
    assert DECODER.chunks(5) == [Chunk("first", 0, 3), Chunk("next", 3, 5)]
    assert ENCODER.chunks(13) == [Chunk("first", 0, 13)]
    assert ENCODER.chunks(20) == [Chunk("first_even", 0, 12), Chunk("next", 12, 20)]


# Tiles


def test_diffusers_tiles_are_half_of_the_sample_with_its_overlaps() -> None:
    vae = AutoencoderKLCogVideoX(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1)
    height, width = vae.tile_latent_min_height, vae.tile_latent_min_width
    rows = Steps(height, 25, keep=200, blend=40)
    columns = Steps(width, 36, keep=288, blend=72)
    made = plan(mode="diffusers").tiles
    assert (made.rows, made.columns) == (rows, columns)
    assert overlapped(height, 0, 8) == (30, int(height * (1 - vae.tile_overlap_factor_height)))
    encoded = plan(mode="diffusers", decoding=False).tiles
    assert (encoded.rows, encoded.columns) == (Steps(240, 200, keep=25, blend=5), Steps(360, 288, keep=36, blend=9))


@pytest.mark.parametrize(
    "latent", [LatentShape(frames=13, height=30, width=45), LatentShape(frames=1, height=6, width=8)]
)
def test_a_picture_of_one_tile_is_not_tiled(latent: LatentShape) -> None:
    assert plan(mode="diffusers", latent=latent).tiles is None


def test_without_a_limit_nothing_is_tiled() -> None:
    assert plan().tiles is None
    assert plan(mode="off").tiles is None


def test_a_limit_chooses_the_tiles_that_run_least_twice() -> None:
    whole = plan().peak
    assert plan(memory_limit=whole).tiles is None
    chosen = plan(memory_limit=whole // 2)
    assert chosen.tiles is not None
    assert chosen.peak <= whole // 2
    tighter = plan(memory_limit=whole // 5)
    assert tighter.peak <= whole // 5
    assert tighter.tiles.rows.size * tighter.tiles.columns.size < chosen.tiles.rows.size * chosen.tiles.columns.size
    with pytest.raises(RequestError, match="memory_limit is 0.1MiB; expected at least"):
        plan(memory_limit=100_000)


def test_more_videos_take_more_memory() -> None:
    assert plan(videos=2).peak == pytest.approx(2 * plan().peak)
    assert plan(decoding=False).peak < plan().peak


def test_a_size_of_tiles_acts() -> None:
    assert plan(size=240).tiles.rows == Steps(30, 25, keep=200, blend=40)
    assert plan(size=240).tiles.columns == Steps(30, 24, keep=192, blend=48)
    assert plan(size=128, stride=96).tiles.rows == Steps(16, 12, keep=96, blend=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "seamless"}, "tiling='seamless' for CogVideoX"),
        ({"size": 176}, "tiles of 176 x 176 pixels; expected a multiple of 240"),
        ({"size": 244}, "expected a multiple of 240"),
        ({"size": 130, "stride": 96}, "tile_size is 130"),
        ({"size": 128, "stride": 90}, "tile_stride is 90"),
        ({"mode": "off", "memory_limit": 1000}, "memory_limit is"),
        ({"mode": "diffusers", "memory_limit": 1000}, "memory_limit is"),
    ],
)
def test_tiles_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan(**options)


@pytest.mark.parametrize("axis", [0, 1])
def test_tiles_keep_the_size_of_the_picture(axis: int) -> None:
    fitting = [size for size in range(1, 200) if overlapped(size, axis, 8)]
    assert set(range((6, 5)[axis], 200, (6, 5)[axis])) <= set(fitting)
    for size in fitting:
        made = overlapped(size, axis, 8)
        assert made is not None
        factor = (1 / 6, 1 / 5)[axis]
        assert 8 * size - int(8 * size * factor) == 8 * made[1]  # what diffusers keeps is what it strides over


# Sampler


@pytest.mark.parametrize(("kind", "draws"), [(DDIM, 0), (DPM, 4)])
def test_only_dpm_draws(kind: str, draws: int) -> None:
    drawn = []

    def draw() -> np.ndarray:
        drawn.append(1)
        return np.ones(3, np.float32)

    sampler = CogVideoXSampler(kind, schedule(3), draw)
    latents = np.ones(3, np.float32)
    for index in range(3):
        assert sampler.timesteps(index) == np.float32(schedule(3).timesteps[index])
        latents = sampler.step(index, latents, sampler.prepare(index, latents))
    assert len(drawn) == draws  # one at the first step, two at the second, one at the last
    assert latents.dtype == np.float32


# What the model tells, and what the family refuses


def test_the_models_own_size_and_rate_are_the_defaults() -> None:
    got = request()
    assert (got.height, got.width, got.num_frames, got.frame_rate) == (64, 96, 9, 8.0)
    assert request("CogVideoXImageToVideoPipeline", image=np.zeros((8, 8, 3), np.uint8)).num_frames == 49
    newer = FAMILY.pipelines["CogVideoXPipeline"].model_defaults(HOST | {"patch_size_t": 2})
    assert newer["frame_rate"] == 16
    assert request("CogVideoXVideoToVideoPipeline", video="clip.mp4").strength == 0.8


@pytest.mark.parametrize("missing", ["patch_size", "widest_activations", "scheduler", "vae_tile", "positions"])
def test_a_host_without_a_field_is_refused(missing: str) -> None:
    with pytest.raises(BundleError, match=f"no '{missing}'"):
        Host.parse({name: value for name, value in HOST.items() if name != missing})


def test_scales_of_latents() -> None:
    ones = np.ones((1, 1, 1, 1, 1), np.float32)
    plain, inverted = Host.parse(HOST), Host.parse(HOST | {"invert_scale_latents": True})
    assert plain.normalize(ones, image=True).item() == np.float32(0.7)
    assert inverted.normalize(ones, image=True).item() == np.float32(1 / 0.7)
    assert inverted.normalize(ones).item() == np.float32(0.7)
    assert plain.denormalize(ones).item() == np.float32(1 / 0.7)


@pytest.mark.parametrize("parameter", sorted(FAMILY.refuses))
def test_what_the_family_lacks_is_refused_with_what_to_do(parameter: str) -> None:
    with pytest.raises(RequestError, match=f"{parameter} for a cogvideox model") as caught:
        FAMILY.choose("CogVideoXPipeline", {"prompt", parameter})
    assert FAMILY.refuses[parameter] in str(caught.value)


def test_inputs_choose_the_pipeline() -> None:
    assert FAMILY.choose("CogVideoXPipeline", {"prompt"}) == "CogVideoXPipeline"
    assert FAMILY.choose("CogVideoXPipeline", {"video", "strength"}) == "CogVideoXVideoToVideoPipeline"
    assert FAMILY.choose("CogVideoXPipeline", {"image"}) == "CogVideoXImageToVideoPipeline"
    for given in ({"video", "num_frames"}, {"strength"}, {"image", "video"}):
        with pytest.raises(RequestError, match="expected a pipeline that takes it"):
            FAMILY.choose("CogVideoXPipeline", given)


def test_a_preset_leaves_out_what_a_pipeline_lacks() -> None:
    preset = {"num_frames": 81, "height": 768}
    assert FAMILY.settings("CogVideoXVideoToVideoPipeline", preset) == {"height": 768}
    assert FAMILY.settings("CogVideoXPipeline", preset) == preset
