"""What the pipelines of CogVideoX share: a request worked out, its denoising, its frames."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.denoise import Callback, denoise
from telecine.errors import EngineError, RequestError
from telecine.families.base import Models, Output, Stage
from telecine.families.bound import Transformer
from telecine.families.cogvideox.guidance import request_guidance
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.memory import RunMemory
from telecine.families.cogvideox.positions import Place
from telecine.families.cogvideox.sampler import CogVideoXSampler
from telecine.families.cogvideox.tiling import VaePlan
from telecine.families.cogvideox.vae import decode
from telecine.families.steps import open_steps
from telecine.families.text import prompt_embeddings
from telecine.guidance import Guidance
from telecine.noise import Generator, randn
from telecine.request import Request
from telecine.schedulers.cogvideox import CogVideoXSchedule, make_schedule
from telecine.shapes import LatentShape, VideoShape

logger = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """A request as the pipelines of CogVideoX see it, all of it checked before a network is loaded.

    `clip` is what is decoded, `latent` what is denoised: models of 1.5 denoise whole groups of frames, and diffusers
    drops the frames that are too many from the front.
    """

    models: Models
    request: Request
    host: Host
    video: VideoShape
    clip: LatentShape
    latent: LatentShape
    schedule: CogVideoXSchedule
    guidance: Guidance
    seeds: tuple[int, ...]
    generators: list[Generator]
    memory: RunMemory

    @classmethod
    def prepare(
        cls,
        models: Models,
        request: Request,
        *,
        num_frames: int,
        strength: float = 1.0,
        image: bool = False,
        video: bool = False,
    ) -> Generation:
        """`strength` below 1 leaves the last part of the steps; `image` says whether the pipeline takes one, `video`
        whether one is encoded.

        Raises:
            RequestError: a parameter is wrong, or the model is of another pipeline.
            BundleError: there is something to encode, and no encoder.
            EngineError: the bundle runs on engines, and there is none for this size.
        """
        host = Host.parse(models.host)
        _check_model(host, image)
        shape = VideoShape.from_request(
            num_frames=num_frames, height=request.height, width=request.width, grid=host.grid
        )
        if shape.num_frames != num_frames:
            logger.warning("%d frames are not what latents hold: making %d", num_frames, shape.num_frames)
        clip = shape.latent(host.grid)
        latent = clip.padded(host.grid)
        host.positions.check(Place.of(latent, host.grid), host.grid.side, host.grid.temporal)
        _check_text(host, request)
        schedule = make_schedule(host.scheduler, request.num_inference_steps)
        schedule = schedule.last_steps(strength) if strength < 1 else schedule
        guidance = request_guidance(request, schedule)
        _check_engine(models, shape, Place.of(latent, host.grid), request.videos, len(guidance.passes))
        encoded = clip if video else dataclasses.replace(clip, frames=1) if image else None
        memory = RunMemory.plan(models, request, host, guidance, clip=clip, latent=latent, encoded=encoded)
        seeds = request.seeds()
        models.expect(memory.needs, request.tiling_options().memory_limit)
        return cls(
            models=models,
            request=request,
            host=host,
            video=shape,
            clip=clip,
            latent=latent,
            schedule=schedule,
            guidance=guidance,
            seeds=seeds,
            generators=[Generator(seed) for seed in seeds],
            memory=memory,
        )

    @property
    def encoding(self) -> VaePlan:
        """How its image or its video is encoded."""
        assert self.memory.encoding is not None
        return self.memory.encoding

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(B, F, C, H, W) of what is denoised."""
        latent = self.latent
        return self.request.videos, latent.frames, self.host.latent_channels, latent.height, latent.width

    def noise(self) -> Array:
        """(B, F, C, H, W) normal noise."""
        return randn(self.generators, self.shape)

    def given_latents(self) -> Array:
        """The caller's (B, F, C, H, W) latents, as they are.

        Raises:
            RequestError: another shape, or values that are not finite.
        """
        latents = np.ascontiguousarray(self.request.latents, dtype=np.float32)
        if latents.shape != self.shape:
            raise RequestError(
                f"latents have shape {latents.shape}",
                expected=f"{self.shape}: (videos, frames, channels, height, width)",
                fix="Pass what output_type='latent' returns, or fit height, width and num_frames to them.",
            )
        if not np.isfinite(latents).all():
            raise RequestError("latents hold NaN or infinity", expected="finite numbers", fix="Look at what made them.")
        return latents

    def embed_prompts(self, stage: Stage) -> Array:
        """(passes * B, L, D) embeddings of the prompts."""
        with stage("text"):
            channels = self.host.text_channels
            embeds, _ = prompt_embeddings(self.models, self.request, channels, self.guidance, attend_pads=True)
        return embeds

    def denoise(
        self, latents: Array, text: Array, *, stage: Stage, callback: Callback | None, image: Array | None = None
    ) -> Array:
        """(B, F, C, H, W) noise → latents; `image` (B, F, C', H, W) stands beside them.

        Raises:
            Cancelled: the callback stopped the run.
        """
        constants = self.host.positions.inputs(Place.of(self.latent, self.host.grid))
        if self.host.ofs is not None:
            constants["ofs"] = np.array([self.host.ofs], np.float32)
        sampler = CogVideoXSampler(self.host.scheduler.class_name, self.schedule, self.noise)
        with stage("denoise"):
            transformer = Transformer(
                session=self.models.session("transformer"),
                latents_shape=latents.shape,
                tokens=math.prod(Place.of(self.latent, self.host.grid)),
                passes=self.guidance.passes,
                rows={"encoder_hidden_states": text},
                constants=constants,
                output="prediction",
                image=image,
                one_by_one=self.memory.one_by_one,
            )
            with open_steps(
                self.models, transformer, latents, sampler=sampler, guidance=self.guidance, stage=stage
            ) as steps:
                return denoise(steps, sampler.sigmas, callback)

    def output(self, latents: Array, stage: Stage) -> Output:
        """What is made of (B, F, C, H, W) latents: frames, or the latents themselves with all that was denoised."""
        if self.request.output_type == "latent":
            return Output(latents=latents, seeds=self.seeds)
        with stage("decode"):
            dropped = self.latent.frames - self.clip.frames
            latents = latents[:, dropped:]
            frames = decode(self.models, self.host, latents, self.memory.decoding, self.request.output_type)
        return Output(frames=frames, seeds=self.seeds)


def _check_engine(models: Models, video: VideoShape, place: Place, videos: int, passes: int) -> None:
    """Refuse what the transformer's engine is too small for, before the text is encoded."""
    limits = models.limits("transformer") or {}
    sizes = {"batch": videos * passes, "frame_groups": place.frames, "rows": place.rows, "columns": place.columns}
    beyond = [symbol for symbol, size in sizes.items() if size > limits.get(symbol, size)]
    if beyond:
        workload = f"{video.width}x{video.height}x{video.num_frames}@b{videos}"
        raise EngineError(
            f"{workload} has {', '.join(f'{sizes[symbol]} {symbol}' for symbol in beyond)}",
            expected=f"at most {', '.join(f'{limits[symbol]} {symbol}' for symbol in beyond)}, by the engine",
            fix=f"Run: telecine build BUNDLE --workload {workload} (beside those that are there), or use "
            "backend='onnxruntime'.",
        )


def _check_text(host: Host, request: Request) -> None:
    given = request.embeds("prompt")
    length = given[0].shape[1] if given else request.max_sequence_length
    if host.text_length not in (None, length):
        raise RequestError(
            f"a text length of {length}",
            expected=f"{host.text_length}, which the model's learned positions are for",
            fix="Leave max_sequence_length out.",
        )


def _check_model(host: Host, image: bool) -> None:
    if bool(host.image_channels) == image:
        return
    takes = "takes an image beside its latents" if host.image_channels else "takes no image"
    raise RequestError(
        f"{'an image' if image else 'no image'} for a model that {takes}",
        expected="image=..., which begins the video" if host.image_channels else "a prompt, or a video",
        fix="Pass image=." if host.image_channels else "Use a bundle of an image-to-video model (I2V).",
    )
