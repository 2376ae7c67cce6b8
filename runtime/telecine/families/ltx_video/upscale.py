"""diffusers' `LTXLatentUpsamplePipeline`: from a video or its latents to larger ones."""

from __future__ import annotations

from telecine.families.base import Models, Output, Stage
from telecine.families.ltx_video.decode import decode
from telecine.families.ltx_video.encode import encode
from telecine.families.ltx_video.host import Host
from telecine.families.upscaling import UpscaleMemory, given_latents, given_video, upsample
from telecine.families.vae import DecodeSettings
from telecine.noise import Generator, second_stream
from telecine.shapes import LatentShape, VideoShape
from telecine.upscale_request import UpscaleRequest

FRAME_RATE = 25.0  # of videos that do not tell theirs: LTX-Video's own default


def run(models: Models, request: UpscaleRequest, *, stage: Stage) -> Output:
    """diffusers' `LTXLatentUpsamplePipeline.__call__`: a video or (B, C, F, H, W) latents → larger frames or latents.

    Raises:
        RequestError: a parameter is wrong.
        BundleError: the bundle has no upsampler.
    """
    host = Host.parse(models.host)
    factors = host.require_upsampler()
    seeds = request.seeds()
    generators = [Generator(seed) for seed in seeds]
    rate = None
    if request.latents is not None:
        latents = given_latents(request, host)
        latent = LatentShape(frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4])
        memory = UpscaleMemory.plan(models, request, host, latent, encodes=False)
    else:
        video, rate = given_video(request, host)
        latent = VideoShape(num_frames=video.shape[2], height=video.shape[3], width=video.shape[4]).latent(host.grid)
        memory = UpscaleMemory.plan(models, request, host, latent, encodes=True)
    settings = DecodeSettings.of(request, memory.decoding)  # refused now, not after the encoding
    models.expect(memory.needs, memory.tiling.memory_limit)
    if request.latents is None:
        with stage("encode"):
            latents = encode(models, host, video, generators, memory.tiling)
    with stage("upsample"):
        latents = upsample(models, host.denormalize(latents), request.adain_factor, request.tone_map_compression_ratio)
    # A temporal upsampler puts frames between frames: the video stays as long as it was.
    rate = request.frame_rate or (rate or FRAME_RATE) * factors.temporal
    if request.output_type == "latent":
        return Output(latents=host.normalize(latents), seeds=seeds, frame_rate=rate)
    with stage("decode"):
        frames = decode(models, host, latents, settings, generators, [second_stream(seed) for seed in seeds])
        return Output(frames=frames, seeds=seeds, frame_rate=rate)
