"""A request for a video: every parameter of `generate`, checked before any work is done."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.errors import BundleError, RequestError

OUTPUT_TYPES = ("np", "uint8", "latent")

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call of `generate`, with diffusers' names; a family's pipeline gives the defaults."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    height: int
    width: int
    num_frames: int
    frame_rate: float
    num_inference_steps: int
    timesteps: Sequence[float] | None = None
    guidance_scale: float
    guidance_rescale: float
    num_videos_per_prompt: int
    seed: int | Sequence[int] | None = None
    latents: Array | None = None
    prompt_embeds: Array | None = None
    prompt_attention_mask: Array | None = None
    negative_prompt_embeds: Array | None = None
    negative_prompt_attention_mask: Array | None = None
    decode_timestep: float | Sequence[float]
    decode_noise_scale: float | Sequence[float] | None = None
    output_type: str
    max_sequence_length: int

    @classmethod
    def resolve(cls, *layers: Mapping[str, Any]) -> Request:
        """The first layer that gives a parameter wins: what was asked, then the preset, then the defaults.

        Raises:
            RequestError: a value is of the wrong kind or out of range, or two contradict each other.
            BundleError: a preset sets what `generate` does not have.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted({name for layer in layers for name in layer} - names)
        if unknown:
            raise BundleError(
                f"a preset sets {', '.join(unknown)}",
                expected=f"parameters of generate: {', '.join(sorted(names))}",
                fix="Export the bundle again with this telecine.",
            )
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= {name: value for name, value in layer.items() if value is not None and name not in merged}
        request = cls(**merged)
        request._check_numbers()
        request._check_texts()
        return request

    def _check_numbers(self) -> None:
        finite = {"frame_rate": self.frame_rate, "guidance_scale": self.guidance_scale}
        for name, value in finite.items():
            _check(_is_number(value), f"{name} is {value!r}", "a finite number", "Give a number such as 3.0.")
        _check(self.frame_rate > 0, f"frame_rate is {self.frame_rate}", "above 0", "Use 24 or 25.")
        _check(
            _is_number(self.guidance_rescale) and 0 <= self.guidance_rescale <= 1,
            f"guidance_rescale is {self.guidance_rescale!r}",
            "a number from 0 to 1",
            "Use 0 for none; 0.7 is usual.",
        )
        for name in ("num_inference_steps", "num_videos_per_prompt", "max_sequence_length"):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
            _check(whole, f"{name} is {value!r}", "a whole number of 1 or more", f"Give {name} as such a number.")
        _check(
            self.output_type in OUTPUT_TYPES,
            f"output_type is {self.output_type!r}",
            f"one of {', '.join(OUTPUT_TYPES)}",
            "Use 'np' for floats in [0, 1], 'uint8' for bytes, 'latent' to skip the decoder.",
        )

    def _check_texts(self) -> None:
        given = [name for name in ("prompt", "prompt_embeds") if getattr(self, name) is not None]
        _check(
            len(given) == 1,
            f"{' and '.join(given) or 'neither'} given",
            "prompt or prompt_embeds",
            "Give one of the two.",
        )
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            texts = [text or ""] if isinstance(text, str) or text is None else list(text)
            _check(
                bool(texts) and all(isinstance(item, str) for item in texts),
                f"{name} is {text!r}",
                "a string or a list of strings",
                "Pass text.",
            )
        if self.negative_prompt is not None and not isinstance(self.negative_prompt, str):
            _check(
                len(self.negative_prompt) == self.prompts,
                f"{len(self.negative_prompt)} negative prompts for {self.prompts} prompts",
                "one for all, or one each",
                "Give a single string, or a list as long as the prompts.",
            )
        for kind in ("prompt", "negative_prompt"):
            _check(
                getattr(self, f"{kind}_embeds") is None or getattr(self, f"{kind}_attention_mask") is not None,
                f"{kind}_embeds without {kind}_attention_mask",
                "both, or neither",
                "Pass the mask that came with the embeddings: (B, L), 1 for text and 0 for padding.",
            )

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        if self.prompt is None:
            assert self.prompt_embeds is not None
            return len(self.prompt_embeds)
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    @property
    def videos(self) -> int:
        """B: how many videos are made."""
        return self.prompts * self.num_videos_per_prompt

    def seeds(self) -> tuple[int, ...]:
        """One seed for all videos, or one a video; a fresh random one where none is given.

        Raises:
            RequestError: a list of another length.
        """
        if self.seed is None:
            return (secrets.randbits(63),)
        if not isinstance(self.seed, Sequence):
            return (self.seed,)
        _check(
            len(self.seed) == self.videos,
            f"{len(self.seed)} seeds",
            f"one, or {self.videos}: one a video",
            "Give a single seed, or a list as long as the batch.",
        )
        return tuple(self.seed)

    def per_video(self, name: str, value: float | Sequence[float]) -> npt.NDArray[np.float32]:
        """(B,) float32 of a parameter that is given once, per prompt or per video.

        Raises:
            RequestError: not finite numbers, or another count.
        """
        values = np.atleast_1d(np.asarray(value, dtype=np.float64))
        if len(values) == self.prompts:
            values = np.repeat(values, self.num_videos_per_prompt)
        _check(
            values.ndim == 1 and len(values) in (1, self.videos) and bool(np.isfinite(values).all()),
            f"{name} is {value!r}",
            f"a finite number, or a list of {self.prompts} or {self.videos}",
            "Give one for all, one a prompt, or one a video.",
        )
        return np.broadcast_to(values, (self.videos,)).astype(np.float32)

    def embeds(self, kind: str, channels: int) -> tuple[Array, Array] | None:
        """(B, L, D) embeddings and (B, L) mask that the caller passed for "prompt" or "negative_prompt", float32.

        Raises:
            RequestError: another shape than the model's, a mask that does not fit, or values that are not finite.
        """
        embeds, mask = getattr(self, f"{kind}_embeds"), getattr(self, f"{kind}_attention_mask")
        if embeds is None:
            return None
        embeds, mask = np.asarray(embeds, dtype=np.float32), np.asarray(mask, dtype=np.float32)
        _check(
            embeds.ndim == 3
            and embeds.shape[0] == self.prompts
            and embeds.shape[2] == channels
            and embeds.shape[1] > 0,
            f"{kind}_embeds have shape {embeds.shape}",
            f"({self.prompts}, L, {channels})",
            "Take them from this model's own text encoder.",
        )
        _check(
            mask.shape == embeds.shape[:2],
            f"{kind}_attention_mask has shape {mask.shape}",
            f"{embeds.shape[:2]}, as its embeddings",
            "Pass the mask that came with the embeddings.",
        )
        for name, array in ((f"{kind}_embeds", embeds), (f"{kind}_attention_mask", mask)):
            _check(
                bool(np.isfinite(array).all()),
                f"{name} holds NaN or infinity",
                "finite numbers",
                "Look at what made them: half precision overflows in T5.",
            )
        return embeds, mask


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def _check(right: bool, got: str, expected: str, fix: str) -> None:
    if not right:
        raise RequestError(got, expected=expected, fix=fix)
