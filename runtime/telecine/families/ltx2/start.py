"""What a denoising starts from: noise, or latents that were made before, drawn and mixed as diffusers does.

Each pipeline draws in its own order and shapes, so that one seed makes another video in each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.families.ltx2 import audio
from telecine.families.ltx2.audio import AudioGrid
from telecine.families.ltx2.host import Host
from telecine.families.ltx2.modalities import AudioVideo
from telecine.families.ltx2.request import LTX2Request, checked_latents
from telecine.families.ltx2.sampler import Held
from telecine.latents import pack
from telecine.noise import Generator, randn
from telecine.shapes import LatentShape

Array = npt.NDArray[np.float32]
ONE = np.float32(1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draw:
    """What noise is drawn for: B videos of a shape and channels, and their sound; generators are one, or one a video.

    Video noise is drawn before the sound's.
    """

    generators: list[Generator]
    batch: int
    latent: LatentShape
    channels: int
    audio_grid: AudioGrid
    audio_latents: int

    def video(self) -> Array:
        """(B, C, F, H, W)."""
        return randn(self.generators, self.latent.array_shape(self.batch, self.channels))

    def audio(self) -> Array:
        """(B, S, C * M), drawn as (B, C, S, M)."""
        return audio.pack(randn(self.generators, self.audio_grid.array_shape(self.batch, self.audio_latents)))

    def packed_audio(self) -> Array:
        """(B, S, C * M), drawn as such."""
        return randn(
            self.generators, (self.batch, self.audio_latents, self.audio_grid.channels * self.audio_grid.bands)
        )

    def like(self, tokens: Array) -> Array:
        """Noise of the shape of (B, T, C) tokens, drawn as such."""
        return randn(self.generators, tokens.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Given:
    """Latents that a caller passed, normalised and packed: (B, T, C) of the video and (B, S, C') of its sound."""

    video: Array | None = None
    audio: Array | None = None

    @classmethod
    def of(cls, request: LTX2Request, host: Host, draw: Draw) -> Given:
        """The request's `latents` and `audio_latents`, which are of the decoders' scale, as diffusers returns them.

        Raises:
            RequestError: another shape than the request's, or values that are not finite.
        """
        video, sound = request.latents, request.audio_latents
        if video is not None:
            shape = draw.latent.array_shape(draw.batch, draw.channels)
            video = checked_latents("latents", video, shape, "(videos, channels, frames, height, width)")
        if sound is not None:
            audio_shape = draw.audio_grid.array_shape(draw.batch, draw.audio_latents)
            sound = checked_latents("audio_latents", sound, audio_shape, "(videos, channels, latents, bands)")
        return cls(
            video=None if video is None else pack(host.normalize(video)),
            audio=None if sound is None else host.normalize_audio(sound),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placed:
    """(1 or B, N, C) normalised tokens of a condition, and how firmly they are held."""

    tokens: Array
    strength: float


def noised(tokens: Array, noise: Array, scale: float | Array) -> Array:
    """n noise + (1 - n) latents, float32.

    Source: diffusers `LTX2Pipeline._create_noised_state`.
    """
    out = np.multiply(noise, np.asarray(scale, np.float32), dtype=np.float32)
    out += np.asarray(1 - scale, np.float32) * tokens
    return out


def from_text(draw: Draw, given: Given, noise_scale: float) -> AudioVideo:
    """Where `LTX2Pipeline` starts. Given latents are noised by packed draws, even where the scale is 0."""
    video = pack(draw.video()) if given.video is None else noised(given.video, draw.like(given.video), noise_scale)
    return AudioVideo(video, _audio(draw, given.audio, noise_scale))


def from_image(draw: Draw, image: Array | None, given: Given, noise_scale: float) -> tuple[AudioVideo, Held]:
    """Where `LTX2ImageToVideoPipeline` starts: with (1 or B, C, 1, H, W) normalised latents of an image, or with given
    ones whose first frame is clean. That frame is held.
    """
    frame = draw.latent.height * draw.latent.width
    strengths = np.zeros(draw.latent.tokens, np.float32)
    strengths[:frame] = 1
    noise = pack(draw.video())
    if given.video is None:
        assert image is not None
        video = _begun(noise, pack(image))
    else:
        video = noised(given.video, noise, (np.float32(noise_scale) * (ONE - strengths))[:, np.newaxis])
    start = AudioVideo(video, _audio(draw, given.audio, noise_scale))
    return start, Held(strengths=strengths, latents=video.copy())


def from_conditions(
    draw: Draw, firsts: Sequence[Placed], keyframes: Sequence[Placed], given: Given, noise_scale: float
) -> tuple[AudioVideo, Held | None]:
    """Where `LTX2ConditionPipeline` starts: `firsts` replace the clip's first tokens, `keyframes` stand behind them.

    A token that is held by s begins with the share n (1 - s) of noise, of which n is `noise_scale`.
    """
    shape = (draw.batch, draw.latent.tokens, draw.channels)
    video = np.zeros(shape, np.float32) if given.video is None else given.video
    held, strengths = np.zeros(shape, np.float32), np.zeros(draw.latent.tokens, np.float32)
    for placed in firsts:
        video, held = (_begun(each, placed.tokens) for each in (video, held))
        strengths[: placed.tokens.shape[1]] = placed.strength
    for placed in keyframes:
        behind = _for_all(placed.tokens, draw.batch)
        video, held = (np.concatenate([each, behind], axis=1) for each in (video, held))
        strengths = np.concatenate([strengths, np.full(behind.shape[1], placed.strength, np.float32)])
    video = noised(video, draw.like(video), ((ONE - strengths) * np.float32(noise_scale))[:, np.newaxis])
    sound = draw.packed_audio() if given.audio is None else noised(given.audio, draw.like(given.audio), noise_scale)
    start = AudioVideo(video, sound)
    return start, Held(strengths=strengths, latents=held) if firsts or keyframes else None


def _begun(tokens: Array, first: Array) -> Array:
    """(B, T, C) tokens, of which the first are (1 or B, N, C) others. What a network made is not written into NumPy's
    arrays: a plan could not record it."""
    return np.concatenate([_for_all(first, len(tokens)), tokens[:, first.shape[1] :]], axis=1)


def _for_all(tokens: Array, batch: int) -> Array:
    """(1 or B, N, C) tokens → (B, N, C)."""
    return np.repeat(tokens, batch // len(tokens), axis=0)


def _audio(draw: Draw, given: Array | None, noise_scale: float) -> Array:
    return draw.audio() if given is None else noised(given, draw.like(given), noise_scale)
