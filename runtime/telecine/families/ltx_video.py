"""LTX-Video 0.9.x on the host: what runs in which order, in NumPy, around its graphs.

Axes: B videos, C latent channels, F H W latent frames, height, width, T = F·H·W tokens, L text length, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.backends.base import Session
from telecine.denoise import Callback, denoise
from telecine.errors import BundleError, RequestError
from telecine.families.base import Family, Models, Output, PipelineSpec, Stage
from telecine.guidance import Guidance
from telecine.latents import denormalize, mix_decode_noise, pack, unpack
from telecine.noise import Generator, randn, second_stream
from telecine.pixels import to_uint8, to_unit_range
from telecine.request import Request
from telecine.rope import RopeTables, grid_index, make_tables, video_positions
from telecine.schedulers.flow_match_euler import (
    FlowMatchEulerConfig,
    Schedule,
    calculate_shift,
    make_schedule,
    pipeline_sigmas,
)
from telecine.shapes import Grid, LatentShape, VideoShape
from telecine.tokenizer import TokenizedText

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Host:
    """What the manifest tells the host math of one LTX-Video model."""

    grid: Grid
    latent_channels: int
    text_channels: int
    transformer_blocks: int
    timestep_conditioning: bool
    latents_mean: Array
    latents_std: Array
    scaling_factor: float
    rope_frequencies: Array
    scheduler: FlowMatchEulerConfig

    @classmethod
    def parse(cls, host: Mapping[str, Any]) -> Host:
        """
        Raises:
            BundleError: a field is missing, or the scheduler is one that telecine does not have.
        """
        try:
            return cls(
                grid=Grid(spatial=host["spatial_ratio"], temporal=host["temporal_ratio"]),
                latent_channels=host["latent_channels"],
                text_channels=host["text_channels"],
                transformer_blocks=host["transformer_blocks"],
                timestep_conditioning=host["timestep_conditioning"],
                latents_mean=np.array(host["latents_mean"], dtype=np.float32),
                latents_std=np.array(host["latents_std"], dtype=np.float32),
                scaling_factor=host["scaling_factor"],
                rope_frequencies=np.array(host["rope_frequencies"], dtype=np.float32),
                scheduler=FlowMatchEulerConfig.from_dict(host["scheduler"]),
            )
        except KeyError as error:
            raise BundleError(
                f"the manifest's host configuration has no {error}",
                expected="an LTX-Video bundle of this telecine",
                fix="Export the bundle again.",
            ) from error


def text_to_video(models: Models, request: Request, *, stage: Stage, callback: Callback | None) -> Output:
    """diffusers' `LTXPipeline.__call__`: a prompt → (B, num_frames, height, width, 3) frames.

    Raises:
        RequestError: a parameter is wrong.
        Cancelled: the callback stopped the run.
    """
    host = Host.parse(models.host)
    shape = _video_shape(request, host)
    latent = shape.latent(host.grid)
    guidance = Guidance(scale=request.guidance_scale, rescale=request.guidance_rescale)
    schedule = _schedule(request, host, latent)
    seeds = request.seeds()
    generators = [Generator(seed) for seed in seeds]
    stochastic = [second_stream(seed) for seed in seeds]
    latents = _initial_latents(request, host, latent, generators)
    decode_timestep, decode_noise_scale = _decode_settings(request)  # refused now, not after the denoising

    with stage("text"):
        text, mask = _text(models, request, host, guidance)
    with stage("denoise"):
        rope = make_tables(
            video_positions(latent, host.grid, request.frame_rate), grid_index(latent), host.rope_frequencies
        )
        session = models.session("transformer")
        with BoundTransformer(session, host, text, mask, rope, latents.shape, guidance.passes) as network:
            latents = denoise(
                network,
                latents,
                config=host.scheduler,
                schedule=schedule,
                guidance=guidance,
                draw_noise=(lambda: randn(stochastic, latents.shape)) if host.scheduler.stochastic_sampling else None,
                callback=callback,
            )
    if request.output_type == "latent":
        return Output(latents=latents, seeds=seeds)
    with stage("decode"):
        feeds: dict[str, Array] = {"latents": _denormalize(unpack(latents, latent), host)}
        if host.timestep_conditioning:
            noise = _draw(generators, feeds["latents"].shape)
            feeds["latents"] = mix_decode_noise(feeds["latents"], noise, decode_noise_scale)
            feeds["timestep"] = decode_timestep
        video = models.session("vae_decoder").run(feeds)["video"]
        frames = to_unit_range(video)
        return Output(frames=to_uint8(frames) if request.output_type == "uint8" else frames, seeds=seeds)


class BoundTransformer:
    """The transformer with all that a run does not change bound once: a function of latents and timestep.

    Returns (passes * B, T, C) velocities, in a buffer that the next call overwrites. A context manager: leaving it
    unbinds what the session would otherwise keep alive.
    """

    def __init__(
        self,
        session: Session,
        host: Host,
        text: Array,
        mask: Array,
        rope: RopeTables,
        latents_shape: tuple[int, ...],
        passes: int,
    ) -> None:
        batch, tokens, channels = latents_shape
        self._session = session
        self._hidden_states = np.empty((passes, batch, tokens, channels), np.float32)
        self._timestep = np.empty((passes * batch, 1), np.float32)
        self._velocity = np.empty((passes * batch, tokens, channels), np.float32)
        buffers: dict[str, npt.NDArray[Any]] = {
            "hidden_states": self._hidden_states.reshape(passes * batch, tokens, channels),
            "encoder_hidden_states": text,
            "encoder_attention_mask": mask,
            "timestep": self._timestep,
            "rope_cos": rope.cos,
            "rope_sin": rope.sin,
            "rope_index": rope.index,
            "stg_mode": np.zeros((host.transformer_blocks, passes * batch), np.int32),
        }
        session.output_shapes({name: buffer.shape for name, buffer in buffers.items()})
        for name, buffer in (buffers | {"velocity": self._velocity}).items():
            session.bind(name, buffer)

    def __call__(self, latents: Array, timestep: float) -> Array:
        self._hidden_states[:] = latents
        self._timestep.fill(timestep)
        self._session.enqueue()
        return self._velocity

    def __enter__(self) -> BoundTransformer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session.unbind()


def _video_shape(request: Request, host: Host) -> VideoShape:
    shape = VideoShape.from_request(
        num_frames=request.num_frames, height=request.height, width=request.width, grid=host.grid
    )
    if shape.num_frames != request.num_frames:
        logger.warning(
            "num_frames %d is not %d*k+1: making %d frames", request.num_frames, host.grid.temporal, shape.num_frames
        )
    return shape


def _schedule(request: Request, host: Host, latent: LatentShape) -> Schedule:
    """The schedule of `LTXPipeline`; given timesteps replace its sigmas (diffusers fails there)."""
    mu = calculate_shift(latent.tokens, host.scheduler)
    if request.timesteps is not None:
        return make_schedule(host.scheduler, timesteps=request.timesteps, mu=mu)
    return make_schedule(host.scheduler, sigmas=pipeline_sigmas(request.num_inference_steps), mu=mu)


def _text(models: Models, request: Request, host: Host, guidance: Guidance) -> tuple[Array, Array]:
    """(passes * B, L, D) embeddings and (passes * B, L) mask, negative before positive."""
    sides = ("prompt",) if guidance.passes == 1 else ("negative_prompt", "prompt")
    given = {side: request.embeds(side, host.text_channels) for side in sides}
    length = given["prompt"][0].shape[1] if given["prompt"] else request.max_sequence_length
    # All is tokenized before the text encoder, gigabytes of it, is loaded for any.
    tokens = {side: _tokenize(models, _prompts(request, side), length) for side in sides if given[side] is None}
    parts = [given[side] or _encode(models, tokens[side]) for side in sides]
    # Each prompt's videos stand together (diffusers tiles its masks in another order than its embeddings).
    repeated = [[np.repeat(array, request.num_videos_per_prompt, axis=0) for array in part] for part in parts]
    return np.concatenate([part[0] for part in repeated]), np.concatenate([part[1] for part in repeated])


def _prompts(request: Request, side: str) -> list[str]:
    """One text a prompt: a single negative prompt, or none, is everyone's."""
    texts = getattr(request, side) or ""
    return [texts] * request.prompts if isinstance(texts, str) else list(texts)


def _tokenize(models: Models, prompts: list[str], length: int) -> TokenizedText:
    tokens = models.tokenizer.encode(prompts, max_sequence_length=length)
    for removed in filter(None, tokens.truncated):
        logger.warning("the prompt is longer than max_sequence_length=%d tokens; cut off: %r", length, removed)
    return tokens


def _encode(models: Models, tokens: TokenizedText) -> tuple[Array, Array]:
    """(B, L, D) embeddings and (B, L) mask of B prompts; pads are embedded too, as diffusers does."""
    embeds = models.session("text_encoder").run({"input_ids": tokens.input_ids})["prompt_embeds"]
    return embeds, tokens.attention_mask.astype(np.float32)


def _initial_latents(request: Request, host: Host, latent: LatentShape, generators: list[Generator]) -> Array:
    """(B, T, C) normal noise, drawn as (B, C, F, H, W) and packed; or the caller's packed latents as they are."""
    expected = (request.videos, latent.tokens, host.latent_channels)
    if request.latents is None:
        return pack(_draw(generators, latent.array_shape(request.videos, host.latent_channels)))
    latents = np.ascontiguousarray(request.latents, dtype=np.float32)
    if latents.shape != expected:
        raise RequestError(
            f"latents have shape {latents.shape}",
            expected=f"{expected}: packed, (videos, tokens, channels)",
            fix="Pass what output_type='latent' returns, or fit height, width and num_frames to them.",
        )
    if not np.isfinite(latents).all():
        raise RequestError("latents hold NaN or infinity", expected="finite numbers", fix="Look at what made them.")
    return latents


def _draw(generators: list[Generator], shape: tuple[int, ...]) -> Array:
    """One generator draws the batch at once; a list draws video by video (diffusers' `randn_tensor`)."""
    return randn(generators[0] if len(generators) == 1 else generators, shape)


def _decode_settings(request: Request) -> tuple[Array, Array]:
    """(B,) timestep and (B,) noise scale of the decoder; the scale is the timestep where none is given."""
    timestep = request.per_video("decode_timestep", request.decode_timestep)
    if request.decode_noise_scale is None:
        return timestep, timestep
    return timestep, request.per_video("decode_noise_scale", request.decode_noise_scale)


def _denormalize(latents: Array, host: Host) -> Array:
    return denormalize(latents, host.latents_mean, host.latents_std, host.scaling_factor)


LTX_VIDEO = Family(
    name="ltx-video",
    pipelines={
        "LTXPipeline": PipelineSpec(
            run=text_to_video,
            # LTXPipeline.__call__'s own.
            defaults={
                "height": 512,
                "width": 704,
                "num_frames": 161,
                "frame_rate": 25.0,
                "num_inference_steps": 50,
                "guidance_scale": 3.0,
                "guidance_rescale": 0.0,
                "num_videos_per_prompt": 1,
                "decode_timestep": 0.0,
                "output_type": "np",
                "max_sequence_length": 128,
            },
        ),
    },
)
