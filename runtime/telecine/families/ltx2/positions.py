"""Where the tokens of a video and of its sound stand, as rotations that the transformer's graph gathers.

A token stands at the middle of what it spans: its latent frame in seconds, its row and column in pixels. Each axis
has few distinct coordinates, so the graph gets tables for those and an index per token; the sound, and what the two
modalities see of each other, know time alone.

The graph's inputs (U coordinates an axis, T video tokens, S audio tokens; K frequencies, all float32 but the index):

| input | shape | rotates |
|---|---|---|
| `rope_cos`, `rope_sin` | (3, U, K) | the video's self-attention: axes t, y, x; K = width // 6 |
| `rope_index` | (T, 3) int32 | gathers from them, for each token |
| `audio_rope_cos`, `audio_rope_sin` | (S, K') | the sound's self-attention; K' = audio width // 2 |
| `cross_rope_cos`, `cross_rope_sin` | (U, K'') | the video's side of cross-modality attention, by `rope_index[:, 0]` |
| `cross_audio_rope_cos`, `cross_audio_rope_sin` | (S, K'') | its sound's side; K'' = cross-attention width // 2 |

`spread` says how a graph lays the gathered values out over attention's channels, for both of diffusers' `rope_type`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from telecine.rope import grid_index, make_tables, rotations
from telecine.shapes import LatentShape

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rope:
    """What the transformer's configuration says of positions.

    `scale_factors`: frames and pixels (t, y, x) that a latent spans. `extent`: of training, in seconds and pixels.
    `frequencies` (K,), `audio_frequencies` and `cross_frequencies` are as torch computed them, in double precision
    where `rope_double_precision` is set, then rounded to float32.
    """

    scale_factors: tuple[int, int, int]
    extent: tuple[float, float, float]
    causal_offset: int
    audio_scale_factor: int
    audio_sampling_rate: int
    audio_hop_length: int
    audio_extent: float
    frequencies: Array
    audio_frequencies: Array
    cross_frequencies: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyframe:
    """Latent frames that stand beside the clip's own, from a pixel frame of it on.

    `single`: they hold one picture, and span one frame rather than a latent's.
    """

    first_frame: int
    latent_frames: int
    single: bool


def rope_inputs(
    rope: Rope, latent: LatentShape, audio_latents: int, frame_rate: float, keyframes: Sequence[Keyframe] = ()
) -> dict[str, npt.NDArray[np.generic]]:
    """The graph's inputs of the table above, for a clip, its sound, and the keyframes behind its tokens.

    `frame_rate` is what the transformer is told: the clip's own, divided by `motion_speed`.

    Source: diffusers `LTX2AudioVideoRotaryPosEmbed`.
    """
    seconds = frame_seconds(rope, latent.frames, frame_rate, keyframes)
    y, x = (
        (np.arange(side, dtype=np.float32) * np.float32(scale) + np.float32(scale / 2)) / np.float32(extent)
        for side, scale, extent in zip(
            (latent.height, latent.width), rope.scale_factors[1:], rope.extent[1:], strict=True
        )
    )
    every = LatentShape(frames=len(seconds), height=latent.height, width=latent.width)
    video = make_tables((seconds / np.float32(rope.extent[0]), y, x), grid_index(every), rope.frequencies)
    heard = audio_seconds(rope, audio_latents)
    cross_extent = np.float32(max(rope.extent[0], rope.audio_extent))
    cross_cos, cross_sin = (
        _padded(table, video.cos.shape[1], identity)
        for table, identity in zip(rotations(seconds / cross_extent, rope.cross_frequencies), (1, 0), strict=True)
    )
    audio_cos, audio_sin = rotations(heard / np.float32(rope.audio_extent), rope.audio_frequencies)
    cross_audio_cos, cross_audio_sin = rotations(heard / cross_extent, rope.cross_frequencies)
    return {
        "rope_cos": video.cos,
        "rope_sin": video.sin,
        "rope_index": video.index,
        "audio_rope_cos": audio_cos,
        "audio_rope_sin": audio_sin,
        "cross_rope_cos": cross_cos,
        "cross_rope_sin": cross_sin,
        "cross_audio_rope_cos": cross_audio_cos,
        "cross_audio_rope_sin": cross_audio_sin,
    }


def frame_seconds(rope: Rope, latent_frames: int, frame_rate: float, keyframes: Sequence[Keyframe] = ()) -> Array:
    """(F + keyframes,) seconds in whose middle each latent frame stands, float32, bit for bit torch's.

    The clip's first latent frame spans one frame; a keyframe's spans are not moved so.

    Source: diffusers `prepare_video_coords` and `LTX2ConditionPipeline._prepare_keyframe_coords`.
    """
    scale = rope.scale_factors[0]
    spans = [np.maximum(_spans(latent_frames) * np.float32(scale) + np.float32(rope.causal_offset - scale), 0)]
    for keyframe in keyframes:
        span = _spans(keyframe.latent_frames) * np.float32(scale) + np.float32(keyframe.first_frame)
        if keyframe.single:
            span[:, 1] = span[:, 0] + np.float32(1)
        spans.append(span)
    return _middles(np.concatenate(spans) / np.float32(frame_rate))


def audio_seconds(rope: Rope, audio_latents: int) -> Array:
    """(S,) seconds in whose middle each latent of the sound stands, float32, bit for bit torch's.

    Source: diffusers `LTX2AudioVideoRotaryPosEmbed.prepare_audio_coords`.
    """
    scale = rope.audio_scale_factor
    mel = np.maximum(_spans(audio_latents) * np.float32(scale) + np.float32(rope.causal_offset - scale), 0)
    return _middles(mel * np.float32(rope.audio_hop_length) / np.float32(rope.audio_sampling_rate))


def connector_rope(frequencies: Array, length: int, base_length: int) -> tuple[Array, Array]:
    """(L, K) cos and sin of a text connector's L positions; K is half of its width.

    Source: diffusers `LTX2RotaryPosEmbed1d`.
    """
    return rotations(np.arange(length, dtype=np.float32) / np.float32(base_length), frequencies)


def spread(gathered: Array, width: int, rope_type: str, identity: float) -> Array:
    """(T, axes, K) values of each token → (T, width // 2), the angles of attention's channels, in diffusers' order.

    All axes of a frequency stand together, behind `width // 2 - axes * K` columns of the identity. "split" folds these
    columns into heads (T, heads, half a head), where column j turns channels j and j + half of a head; "interleaved"
    leaves them flat, where column j turns channels 2j and 2j + 1 of the whole width.

    Source: diffusers `LTX2AudioVideoRotaryPosEmbed.forward`.
    """
    assert rope_type in ("split", "interleaved")
    tokens, axes, frequencies = gathered.shape
    # Interleaved, diffusers pads `width % (2 * axes)` channels, which are twice as many as these columns.
    out = np.full((tokens, width // 2), identity, np.float32)
    out[:, width // 2 - axes * frequencies :] = gathered.transpose(0, 2, 1).reshape(tokens, -1)
    return out


def _spans(count: int) -> Array:
    """(N, 2) the latent at which each of N begins, and the one at which it ends."""
    first = np.arange(count, dtype=np.float32)
    return np.stack([first, first + np.float32(1)], axis=1)


def _middles(spans: Array) -> Array:
    return (spans[:, 0] + spans[:, 1]) / np.float32(2)


def _padded(table: Array, rows: int, identity: float) -> Array:
    return np.pad(table, [(0, rows - len(table)), (0, 0)], constant_values=identity)
