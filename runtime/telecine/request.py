"""A request for a video: every parameter of `generate`, checked before any work is done."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.checks import MAX_FLOAT, check_output_type, check_range, first_given, numbers_of, seeds_of
from telecine.checks import check as _check
from telecine.checks import floats as _floats
from telecine.checks import is_number as _is_number
from telecine.checks import is_whole as _is_whole
from telecine.condition import Condition, ImageInput, VideoInput
from telecine.errors import BundleError
from telecine.guidance import STG_MODES
from telecine.per_step import listed
from telecine.tiling.options import TilingParameters

# Far above what anyone asks for, far below what overflows an array's size or stops the process in native code.
MAX_COUNT = 10**6
MAX_PIXELS = 2**40

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(TilingParameters):
    """One call of `generate`, with diffusers' names; a family's pipeline gives the defaults."""

    prompt: str | Sequence[str] | None = None
    negative_prompt: str | Sequence[str] | None = None
    height: int
    width: int
    num_frames: int
    frame_rate: float
    num_inference_steps: int
    timesteps: Sequence[float] | None = None
    guidance_scale: float | Sequence[float]
    guidance_rescale: float | Sequence[float]
    guidance_sigmas: Sequence[float] | None = None
    cfg_star: bool = False
    stg_scale: float | Sequence[float] = 0.0
    stg_mode: str = "attention_values"
    stg_blocks: Sequence[int] | Sequence[Sequence[int]] | None = None
    num_videos_per_prompt: int
    seed: int | Sequence[int] | None = None
    image: ImageInput | Sequence[ImageInput] | None = None
    conditions: Condition | Sequence[Condition] | None = None
    image_cond_noise_scale: float = 0.0
    denoise_strength: float = 1.0
    video: VideoInput | None = None
    strength: float = 1.0
    use_dynamic_cfg: bool = False
    latents: Array | None = None
    prompt_embeds: Array | None = None
    prompt_attention_mask: Array | None = None
    negative_prompt_embeds: Array | None = None
    negative_prompt_attention_mask: Array | None = None
    decode_timestep: float | Sequence[float]
    decode_noise_scale: float | Sequence[float] | None = None
    output_type: str
    max_sequence_length: int
    masked_text: bool = True  # whether the family's embeddings come with masks: its defaults say so

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
        request = cls(**first_given(*layers))
        request._check_numbers()
        request._check_guidance()
        request._check_guidance_lists()
        request._check_texts()
        request._check_arrays()
        request._check_size()
        request.tiling_options()
        return request

    def changed(self, **changes: Any) -> Request:
        """The same request but for these, checked as a whole again; None keeps what there is.

        Raises:
            RequestError: as `resolve`.
        """
        return Request.resolve(changes, {field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def _check_numbers(self) -> None:
        rate = self.frame_rate
        _check(_is_number(rate), f"frame_rate is {rate!r}", "a finite number", "Give a number such as 24.0.")
        _check(rate > 0, f"frame_rate is {rate}", "above 0", "Use 24 or 25.")
        check_range(
            "denoise_strength", self.denoise_strength, 0, 1,
            "Use 1 for a new video; 0.4 changes the details of given latents.",
        )  # fmt: skip
        check_range("strength", self.strength, 0, 1, "Use 0.8; 1 keeps nothing of the video.")
        _check(
            _is_number(self.image_cond_noise_scale) and self.image_cond_noise_scale >= 0,
            f"image_cond_noise_scale is {self.image_cond_noise_scale!r}",
            "a number, 0 or more",
            "Use 0 for none; 0.15 is usual.",
        )
        for name in ("num_inference_steps", "num_videos_per_prompt", "max_sequence_length"):
            value = getattr(self, name)
            _check(
                _is_whole(value) and 1 <= value <= MAX_COUNT,
                f"{name} is {value!r}",
                f"a whole number from 1 to {MAX_COUNT}",
                f"Give {name} as such a number.",
            )
        check_output_type(self.output_type)

    def _check_guidance(self) -> None:
        """What can be said before the steps of the run and the blocks of the model are known."""
        for name, low, high, kind, fix in (
            ("guidance_scale", -MAX_FLOAT, MAX_FLOAT, "a finite number", "Give a number such as 3.0."),
            ("guidance_rescale", 0, 1, "a number from 0 to 1", "Use 0 for none; 0.7 is usual."),
            ("stg_scale", 0, MAX_FLOAT, "a number from 0", "Use 0 for none; 1.0 is usual."),
        ):
            value = getattr(self, name)
            right = all(_is_number(item) and low <= item <= high for item in listed(value) or [value])
            _check(right, f"{name} is {value!r}", f"{kind}, or a list of such", fix)
        for name in ("cfg_star", "use_dynamic_cfg"):
            value = getattr(self, name)
            _check(isinstance(value, bool), f"{name} is {value!r}", "True or False", "Use one of them.")
        _check(
            self.stg_mode in tuple(STG_MODES),
            f"stg_mode is {self.stg_mode!r}",
            f"one of {', '.join(STG_MODES)}",
            "LTX-Video's attention has no residual of its own to leave out: that mode would change nothing."
            if self.stg_mode == "residual"
            else "Leave it out for attention_values.",
        )

    def _check_guidance_lists(self) -> None:
        blocks = [] if self.stg_blocks is None else listed(self.stg_blocks)
        rows = blocks if blocks and listed(blocks[0]) is not None else [blocks]
        _check(
            all((row := listed(each)) is not None and all(map(_is_whole, row)) for each in rows),
            f"stg_blocks is {self.stg_blocks!r}",
            "a list of block indexes, or a list of such lists",
            "Pass stg_blocks=[19], or [[11, 25], [28], ...] with a list a step.",
        )
        sigmas = [] if self.guidance_sigmas is None else listed(self.guidance_sigmas)
        _check(
            sigmas is not None
            and all(_is_number(sigma) and 0 <= sigma <= 1 for sigma in sigmas)
            and all(high > low for high, low in itertools.pairwise(sigmas)),
            f"guidance_sigmas is {self.guidance_sigmas!r}",
            "strictly descending numbers from 1 to 0",
            "Give sigmas such as [1.0, 0.98, 0.6], and a value for each in the lists.",
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
                not self.masked_text or (getattr(self, embeds) is None) == (getattr(self, mask) is None),
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
        return seeds_of(self.seed, self.videos)

    def per_video(self, name: str, value: float | Sequence[float]) -> npt.NDArray[np.float32]:
        """(B,) float32 of a parameter that is given once, per prompt or per video.

        Raises:
            RequestError: not finite numbers, or another count.
        """
        values = numbers_of(name, value, {1, self.prompts, self.videos})
        if len(values) == self.prompts:
            values = np.repeat(values, self.num_videos_per_prompt)
        return np.broadcast_to(values, (self.videos,)).copy()

    def embeds(self, kind: str, channels: int | None = None) -> tuple[Array, Array] | None:
        """(B, L, D) embeddings and (B, L) mask that the caller passed for "prompt" or "negative_prompt", float32.

        B is the number of prompts here, and D is `channels` where that is given. Without masks, all of the text counts.

        Raises:
            RequestError: another shape than the model's, a mask that does not fit, or values that are not finite.
        """
        embeds, mask = getattr(self, f"{kind}_embeds"), getattr(self, f"{kind}_attention_mask")
        if embeds is None:
            return None
        embeds = _floats(f"{kind}_embeds", embeds)
        if not self.masked_text:
            mask = np.ones(embeds.shape[:2], np.float32)
        mask = _floats(f"{kind}_attention_mask", mask)
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


def _wrong_embeds(kind: str, shape: tuple[int, ...], expected: str) -> tuple[str, str, str]:
    return f"{kind}_embeds have shape {shape}", expected, "Take them from this model's own text encoder."
