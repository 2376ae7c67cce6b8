"""diffusers' `LTX2LatentUpsamplePipeline`: from the latents of a video to larger ones."""

from __future__ import annotations

from telecine.errors import RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.request import DEFAULTS
from telecine.families.upscaling import UpscaleMemory, given_latents, upsample
from telecine.families.vae import DecodeSettings, decoded
from telecine.latents import mix_decode_noise
from telecine.noise import Generator, randn
from telecine.shapes import LatentShape
from telecine.upscale_request import UpscaleRequest


def run(models: Models, request: UpscaleRequest, *, stage: Stage) -> Output:
    """diffusers' `LTX2LatentUpsamplePipeline.__call__`: (B, C, F, H, W) latents → larger frames or latents, silent.

    Latents are of the decoder's scale, as the pipelines of LTX-2 return them, before and after.

    Raises:
        RequestError: a parameter is wrong, or a video is given in place of latents.
        BundleError: the bundle has no upsampler.
    """
    host = Host.parse(models.host)
    factors = host.require_upsampler()
    if request.latents is None:
        raise RequestError(
            "a video to upscale with LTX-2",
            expected="latents: diffusers samples a video's, of which the bundle's encoder tells the means alone",
            fix="Pass what generate(output_type='latent') returned, or conditions=[Condition(video=...)] to generate.",
        )
    latents = given_latents(request, host)
    latent = LatentShape(frames=latents.shape[2], height=latents.shape[3], width=latents.shape[4])
    memory = UpscaleMemory.plan(models, request, host, latent, encodes=False)
    settings, seeds = DecodeSettings.of(request, memory.decoding), request.seeds()
    models.expect(memory.needs, memory.tiling.memory_limit)
    with stage("upsample"):
        latents = upsample(models, latents, request.adain_factor, request.tone_map_compression_ratio)
    rate = request.frame_rate or DEFAULTS["frame_rate"] * factors.temporal
    if request.output_type == "latent":
        return Output(latents=latents, seeds=seeds, frame_rate=rate)
    with stage("decode"):
        feeds = {}
        if host.timestep_conditioning:
            # Unlike the other pipelines of LTX-2, in the decoder's scale.
            noise = randn([Generator(seed) for seed in seeds], latents.shape)
            latents = mix_decode_noise(latents, noise, settings.noise_scale)
            feeds["timestep"] = settings.timestep
        return Output(frames=decoded(models, host.grid, latents, feeds, settings), seeds=seeds, frame_rate=rate)
