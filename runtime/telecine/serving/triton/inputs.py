"""The inputs of the Triton model: every parameter of `generate` as a tensor, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.condition import Condition
from telecine.errors import RequestError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Input:
    """An input in Triton's words, its dimensions -1 where they are free, and what `generate` takes in its place."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    read: Callable[[str, Array], Any]


def parameters(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The parameters of `generate` that a request's tensors stand for; the tensors may be reused after.

    Raises:
        RequestError: text that is not UTF-8 or not JSON, or tensors that do not fit each other.
    """
    values = {entry.name: entry.read(entry.name, tensors[entry.name]) for entry in INPUTS if entry.name in tensors}
    shape, frames = values.pop("latents_shape", None), values.pop("condition_frames", None)
    _check_together(tensors, "latents", "latents_shape")
    _check_together(tensors, "conditions", "condition_frames")
    if shape is not None:
        values["latents"] = _shaped(values["latents"], shape)
    if frames is not None:
        values["conditions"] = _conditions(values["conditions"], frames)
    return values


def _text(name: str, tensor: Array) -> str:
    (text,) = _texts(name, tensor)
    return text


def _texts(name: str, tensor: Array) -> list[str]:
    try:
        return [bytes(item).decode("utf-8") for item in tensor]
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{name} is not UTF-8 ({error})", expected="text in UTF-8", fix="Encode it as UTF-8."
        ) from error


def _text_or_texts(name: str, tensor: Array) -> str | list[str]:
    texts = _texts(name, tensor)
    return texts[0] if len(texts) == 1 else texts


def _scalar(_: str, tensor: Array) -> Any:
    (value,) = tensor.tolist()
    return value


def _list(_: str, tensor: Array) -> Any:
    return tensor.tolist()


def _scalar_or_list(_: str, tensor: Array) -> Any:
    return tensor[0].item() if len(tensor) == 1 else tensor.tolist()


def _array(_: str, tensor: Array) -> Array:
    return tensor.copy()


def _image_or_images(_: str, tensor: Array) -> Array | list[Array]:
    images = list(tensor.copy())
    return images[0] if len(images) == 1 else images


def _json(name: str, tensor: Array) -> Any:
    text = _text(name, tensor)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{name} is {text[:200]!r}, which is not JSON ({error})", expected="JSON", fix=f"Use {_EXAMPLES[name]}"
        ) from error


_EXAMPLES = {
    "stg_blocks": "[19], or [[11, 25], [28]] with a list a step.",
    "second_stage": '{} for the defaults, or settings such as {"denoise_strength": 0.4}.',
    "conditions": '[{"image": 0}, {"video": [1, 10], "frame_index": 16, "strength": 0.8}].',
}
_FREE = (-1,)
_ONE = (1,)
# In the order of `generate`. Strings carry JSON where a parameter has a structure that one tensor has not.
INPUTS = (
    Input("prompt", "TYPE_STRING", _FREE, _text_or_texts),
    Input("negative_prompt", "TYPE_STRING", _FREE, _text_or_texts),
    Input("height", "TYPE_INT64", _ONE, _scalar),
    Input("width", "TYPE_INT64", _ONE, _scalar),
    Input("num_frames", "TYPE_INT64", _ONE, _scalar),
    Input("frame_rate", "TYPE_FP64", _ONE, _scalar),
    Input("motion_speed", "TYPE_FP64", _ONE, _scalar),
    Input("num_inference_steps", "TYPE_INT64", _ONE, _scalar),
    Input("timesteps", "TYPE_FP64", _FREE, _list),
    Input("sigmas", "TYPE_FP64", _FREE, _list),
    Input("guidance_scale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("guidance_rescale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("guidance_sigmas", "TYPE_FP64", _FREE, _list),
    Input("cfg_star", "TYPE_BOOL", _ONE, _scalar),
    Input("stg_scale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("stg_mode", "TYPE_STRING", _ONE, _text),
    Input("stg_blocks", "TYPE_STRING", _ONE, _json),
    Input("spatio_temporal_guidance_blocks", "TYPE_INT64", _FREE, _list),
    Input("modality_scale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("audio_guidance_scale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("audio_guidance_rescale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("audio_stg_scale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("audio_modality_scale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("use_cross_timestep", "TYPE_BOOL", _ONE, _scalar),
    Input("num_videos_per_prompt", "TYPE_INT64", _ONE, _scalar),
    Input("seed", "TYPE_INT64", _FREE, _scalar_or_list),
    Input("image", "TYPE_UINT8", (-1, -1, -1, 3), _image_or_images),
    Input("image_crf", "TYPE_INT64", _ONE, _scalar),
    Input("conditions", "TYPE_STRING", _ONE, _json),
    Input("condition_frames", "TYPE_UINT8", (-1, -1, -1, 3), _array),
    Input("video", "TYPE_UINT8", (-1, -1, -1, 3), _array),
    Input("strength", "TYPE_FP64", _ONE, _scalar),
    Input("use_dynamic_cfg", "TYPE_BOOL", _ONE, _scalar),
    Input("image_cond_noise_scale", "TYPE_FP64", _ONE, _scalar),
    Input("denoise_strength", "TYPE_FP64", _ONE, _scalar),
    Input("latents", "TYPE_FP32", _FREE, _array),
    Input("latents_shape", "TYPE_INT64", _FREE, _list),
    Input("audio_latents", "TYPE_FP32", (-1, -1, -1, -1), _array),
    Input("noise_scale", "TYPE_FP64", _ONE, _scalar),
    Input("prompt_embeds", "TYPE_FP32", (-1, -1, -1), _array),
    Input("prompt_attention_mask", "TYPE_FP32", (-1, -1), _array),
    Input("negative_prompt_embeds", "TYPE_FP32", (-1, -1, -1), _array),
    Input("negative_prompt_attention_mask", "TYPE_FP32", (-1, -1), _array),
    Input("decode_timestep", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("decode_noise_scale", "TYPE_FP64", _FREE, _scalar_or_list),
    Input("output_type", "TYPE_STRING", _ONE, _text),
    Input("max_sequence_length", "TYPE_INT64", _ONE, _scalar),
    Input("second_stage", "TYPE_STRING", _ONE, _json),
    Input("tiling", "TYPE_STRING", _ONE, _text),
    Input("tile_size", "TYPE_INT64", _ONE, _scalar),
    Input("tile_stride", "TYPE_INT64", _ONE, _scalar),
    Input("tile_frames", "TYPE_INT64", _ONE, _scalar),
    Input("tile_frame_stride", "TYPE_INT64", _ONE, _scalar),
    Input("memory_limit", "TYPE_STRING", _ONE, _text),
    Input("pipeline", "TYPE_STRING", _ONE, _text),
    Input("preset", "TYPE_STRING", _ONE, _text),
)


def _check_together(tensors: Mapping[str, Array], *names: str) -> None:
    given = [name for name in names if name in tensors]
    if len(given) == 1:
        raise RequestError(f"{given[0]} alone", expected=" and ".join(names), fix="Give both inputs, or neither.")


def _shaped(latents: Array, shape: Sequence[int]) -> Array:
    """Latents have three axes or five, by the pipeline, and an input of Triton has a fixed number: they come flat."""
    if min(shape, default=0) < 1 or np.prod(shape, dtype=object) != latents.size:
        raise RequestError(
            f"latents_shape is {shape} for {latents.size} latents",
            expected="their shape, (B, T, C) or (B, C, F, H, W)",
            fix="Pass the two outputs of output_type 'latent' as they came.",
        )
    return latents.reshape(tuple(shape))


def _conditions(described: Any, frames: Array) -> list[Condition]:
    """`[{"image": index}, {"video": [start, end], "frame_index": ..., "strength": ...}]` over (N, H, W, 3) frames."""
    if not isinstance(described, list) or not all(isinstance(each, dict) for each in described):
        raise RequestError(
            f"conditions is {described!r}", expected="a list of objects", fix=f"Use {_EXAMPLES['conditions']}"
        )
    return [_condition(each, frames) for each in described]


def _condition(described: Mapping[str, Any], frames: Array) -> Condition:
    unknown = set(described) - {field.name for field in dataclasses.fields(Condition)}
    if unknown:
        raise RequestError(
            f"a condition with {', '.join(sorted(unknown))}",
            expected="image or video, frame_index, strength; for LTX-2 index and crf",
            fix=f"Use {_EXAMPLES['conditions']}",
        )
    fields = dict(described)
    if "image" in fields:
        fields["image"] = frames[_place(fields["image"], 0, len(frames) - 1)]
    if "video" in fields:
        place = fields["video"] if isinstance(fields["video"], list) else []
        start, end = place if len(place) == 2 else (None, None)
        end = _place(end, 1, len(frames))
        fields["video"] = frames[_place(start, 0, end - 1) : end]
    return Condition(**fields)


def _place(index: Any, low: int, high: int) -> int:
    if type(index) is not int or not low <= index <= high:
        raise RequestError(
            f"a condition stands at {index!r} of condition_frames",
            expected=f"a whole number from {low} to {high}",
            fix="An image is an index; a video is [start, end], the end not included.",
        )
    return index
