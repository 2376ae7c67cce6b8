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
from telecine.tiling import TilingOptions

OUTPUT_TYPES = ("np", "uint8", "latent")
# Far above what anyone asks for, far below what overflows an array's size or stops the process in native code.
MAX_COUNT = 10**6
MAX_PIXELS = 2**40
MAX_FLOAT = float(np.finfo(np.float32).max)

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
    tiling: str = "auto"
    tile_size: int | None = None
    tile_stride: int | None = None
    tile_frames: int | None = None
    tile_frame_stride: int | None = None
    memory_limit: int | str | None = None

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
        request._check_arrays()
        request._check_size()
        request.tiling_options()
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
            _check(
                _is_whole(value) and 1 <= value <= MAX_COUNT,
                f"{name} is {value!r}",
                f"a whole number from 1 to {MAX_COUNT}",
                f"Give {name} as such a number.",
            )
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
            "one of prompt and prompt_embeds",
            "Give one of the two.",
        )
        for name in ("prompt", "negative_prompt"):
            text = getattr(self, name)
            texts = [text] if isinstance(text, str) or not isinstance(text, Sequence) else text
            _check(
                text is None or (len(texts) > 0 and all(isinstance(item, str) for item in texts)),
                f"{name} is {text!r}",
                "a string or a list of strings",
                "Pass text.",
            )
        for kind in ("prompt", "negative_prompt"):
            embeds, mask = f"{kind}_embeds", f"{kind}_attention_mask"
            lonely = (mask, embeds) if getattr(self, embeds) is None else (embeds, mask)
            _check(
                (getattr(self, embeds) is None) == (getattr(self, mask) is None),
                " without ".join(lonely),
                "both, or neither",
                "Pass the mask that came with the embeddings: (B, L), 1 for text and 0 for padding.",
            )

    def _check_arrays(self) -> None:
        """What can be said of arrays before the bundle is asked how many channels it has."""
        if self.prompt_embeds is not None:  # the number of prompts comes from it
            shape = _floats("prompt_embeds", self.prompt_embeds).shape
            _check(len(shape) == 3 and 0 not in shape, *_wrong_embeds("prompt", shape, "(prompts, L, channels)"))
        if self.negative_prompt is not None and not isinstance(self.negative_prompt, str):
            _check(
                len(self.negative_prompt) == self.prompts,
                f"{len(self.negative_prompt)} negative prompts for {self.prompts} prompts",
                "one for all, or one each",
                "Give a single string, or a list as long as the prompts.",
            )
        positive, negative = self.embeds("prompt"), self.embeds("negative_prompt")
        length = positive[0].shape[1] if positive else self.max_sequence_length
        if negative is not None:
            _check(
                negative[0].shape[1] == length,
                f"negative_prompt_embeds have a text length of {negative[0].shape[1]}",
                f"{length}, as the prompt's",
                "Encode both at the same text length.",
            )
        if self.latents is not None:
            _floats("latents", self.latents)

    def _check_size(self) -> None:
        """The kinds of the sides and the grid are `VideoShape`'s to check."""
        sides = [int(side) for side in (self.num_frames, self.height, self.width) if _is_whole(side) and side > 0]
        _check(
            math.prod(sides) * self.videos <= MAX_PIXELS,
            f"num_frames is {self.num_frames}, height {self.height}, width {self.width}, for {self.videos} videos",
            f"at most {MAX_PIXELS} pixels in all",
            "Ask for fewer frames, a smaller size or a smaller batch.",
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
            # All the bits that count (`noise.Generator`); more would not survive JSON readers that have doubles only.
            return (secrets.randbits(32),)
        if isinstance(self.seed, str) or not isinstance(self.seed, Sequence):
            return (self.seed,)  # Generator refuses what is no integer
        _check(
            len(self.seed) in (1, self.videos),
            f"{len(self.seed)} seeds",
            f"one, or {self.videos}: one a video",
            "Give a single seed, or a list as long as the batch.",
        )
        return tuple(self.seed)

    def tiling_options(self) -> TilingOptions:
        """How the VAE is to be run.

        Raises:
            RequestError: a value of the wrong kind, or options that contradict each other.
        """
        return TilingOptions.parse(
            tiling=self.tiling,
            tile_size=self.tile_size,
            tile_stride=self.tile_stride,
            tile_frames=self.tile_frames,
            tile_frame_stride=self.tile_frame_stride,
            memory_limit=self.memory_limit,
        )

    def per_video(self, name: str, value: float | Sequence[float]) -> npt.NDArray[np.float32]:
        """(B,) float32 of a parameter that is given once, per prompt or per video.

        Raises:
            RequestError: not finite numbers, or another count.
        """
        values = np.atleast_1d(_floats(name, value))
        counts = sorted({1, self.prompts, self.videos})
        _check(
            values.ndim == 1 and len(values) in counts and bool(np.isfinite(values).all()),
            f"{name} is {value!r}",
            f"a finite number, or a list of {' or '.join(map(str, counts))}",
            "Give one for all, one a prompt, or one a video.",
        )
        if len(values) == self.prompts:
            values = np.repeat(values, self.num_videos_per_prompt)
        return np.broadcast_to(values, (self.videos,)).copy()

    def embeds(self, kind: str, channels: int | None = None) -> tuple[Array, Array] | None:
        """(B, L, D) embeddings and (B, L) mask that the caller passed for "prompt" or "negative_prompt", float32.

        B is the number of prompts here, and D is `channels` where that is given.

        Raises:
            RequestError: another shape than the model's, a mask that does not fit, or values that are not finite.
        """
        embeds, mask = getattr(self, f"{kind}_embeds"), getattr(self, f"{kind}_attention_mask")
        if embeds is None:
            return None
        embeds, mask = _floats(f"{kind}_embeds", embeds), _floats(f"{kind}_attention_mask", mask)
        _check(
            embeds.ndim == 3
            and embeds.shape[0] == self.prompts
            and embeds.shape[1] > 0
            and embeds.shape[2] == (channels or embeds.shape[2]),
            *_wrong_embeds(kind, embeds.shape, f"({self.prompts}, L, {channels or 'channels'})"),
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


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # False for NaN, and for what float32 would make infinite; unlike math.isfinite it takes an integer of any length.
    return (_is_whole(value) or isinstance(value, (float, np.floating))) and abs(value) <= MAX_FLOAT  # type: ignore


def _floats(name: str, value: object) -> Array:
    """An array that a caller passed, as float32 of any shape."""
    try:
        array = np.asarray(value)
        _check(array.dtype.kind not in "OSUMmc", f"{name} holds {array.dtype}", "numbers", "Pass an array of floats.")
        with np.errstate(over="ignore"):  # to infinity, which is looked for where it matters
            return array.astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:  # ragged lists; tensors on a device or of a dtype that NumPy lacks
        raise RequestError(
            f"{name} is no array ({error})", expected="a NumPy array of floats", fix="Convert it to float32 first."
        ) from error


def _wrong_embeds(kind: str, shape: tuple[int, ...], expected: str) -> tuple[str, str, str]:
    return f"{kind}_embeds have shape {shape}", expected, "Take them from this model's own text encoder."


def _check(right: bool, got: str, expected: str, fix: str) -> None:
    if not right:
        raise RequestError(got, expected=expected, fix=fix)
