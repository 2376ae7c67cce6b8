"""What the graph gathers, laid out as it would lay it out, against diffusers' own rotary embeddings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTX2ConditionPipeline
from diffusers.models.transformers.transformer_ltx2 import LTX2AudioVideoRotaryPosEmbed
from diffusers.pipelines.ltx2.connectors import LTX2RotaryPosEmbed1d
from doubles.ltx2 import frequencies

from telecine.families.ltx2.positions import Keyframe, Rope, connector_rope, rope_inputs, spread
from telecine.shapes import LatentShape

# Host math: correctly rounded cosines of the same float32 angles against torch's own.
TOLERANCE = 1e-6
KEYFRAMES = [
    Keyframe(first_frame=17, latent_frames=1, single=True),
    Keyframe(first_frame=1, latent_frames=2, single=False),
]
FPS = [24.0, 25.0, 60.0, 24 / 0.2, 23.976]


def embeddings(rope_type: str, *, double: bool, width: int = 128, audio_width: int = 64) -> dict[str, Any]:
    """The four of `LTX2VideoTransformer3DModel`, of widths that leave 2 columns (128 % 6) and none to pad."""
    shared = {"double_precision": double, "rope_type": rope_type, "num_attention_heads": 4}
    audio = {"sampling_rate": 16000, "hop_length": 160, "modality": "audio", **shared}
    return {
        "rope": LTX2AudioVideoRotaryPosEmbed(width, **shared),
        "audio_rope": LTX2AudioVideoRotaryPosEmbed(audio_width, scale_factors=(4,), **audio),
        "cross_rope": LTX2AudioVideoRotaryPosEmbed(audio_width, base_num_frames=30, **shared),
        "cross_audio_rope": LTX2AudioVideoRotaryPosEmbed(audio_width, base_num_frames=30, **audio),
    }


def rope(*, double: bool, width: int = 128, audio_width: int = 64) -> Rope:
    return Rope(
        scale_factors=(8, 32, 32),
        extent=(20, 2048, 2048),
        causal_offset=1,
        audio_scale_factor=4,
        audio_sampling_rate=16000,
        audio_hop_length=160,
        audio_extent=20,
        frequencies=frequencies(width, 3, double=double),
        audio_frequencies=frequencies(audio_width, 1, double=double),
        cross_frequencies=frequencies(audio_width, 1, double=double),
    )


def theirs(latent: LatentShape, audio: int, fps: float, keyframes: list[Keyframe], ropes: Any) -> dict[str, Any]:
    video = ropes["rope"].prepare_video_coords(1, latent.frames, latent.height, latent.width, "cpu", fps=fps)
    pipeline = SimpleNamespace(
        transformer_spatial_patch_size=1,
        transformer_temporal_patch_size=1,
        vae_temporal_compression_ratio=8,
        vae_spatial_compression_ratio=32,
    )
    extra = [
        LTX2ConditionPipeline._prepare_keyframe_coords(
            pipeline, each.latent_frames, latent.height, latent.width, each.first_frame,
            1 if each.single else 9, fps, torch.device("cpu"),
        )
        for each in keyframes
    ]  # fmt: skip
    video = torch.cat([video, *extra], dim=2)
    sound = ropes["audio_rope"].prepare_audio_coords(1, audio, "cpu")
    coords = {"rope": video, "audio_rope": sound, "cross_rope": video[:, :1], "cross_audio_rope": sound[:, :1]}
    return {name: [table.numpy() for table in ropes[name](coords[name])] for name in ropes}


def ours(inputs: dict[str, Any], rope_type: str, width: int, audio_width: int) -> dict[str, list[np.ndarray]]:
    """Every token's tables, as attention gets them: the graph's work."""
    index = inputs["rope_index"]
    axes = np.arange(3)

    def gathered(name: str, table: np.ndarray) -> np.ndarray:
        if name == "rope":
            return table[axes, index]
        return (table[index[:, 0]] if name == "cross_rope" else table)[:, np.newaxis]

    def laid_out(columns: np.ndarray) -> np.ndarray:
        if rope_type == "interleaved":
            return np.repeat(columns, 2, axis=-1)[np.newaxis]
        return columns.reshape(len(columns), 4, -1).transpose(1, 0, 2)[np.newaxis]

    made = {}
    for name in ("rope", "audio_rope", "cross_rope", "cross_audio_rope"):
        side = width if name == "rope" else audio_width
        made[name] = [
            laid_out(spread(gathered(name, inputs[f"{name}_{kind}"]), side, rope_type, identity))
            for kind, identity in (("cos", 1), ("sin", 0))
        ]
    return made


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("fps", FPS)
def test_every_table_is_diffusers(rope_type: str, double: bool, fps: float) -> None:
    width, audio_width = 128, 64
    for latent, audio, keyframes in (
        (LatentShape(frames=3, height=2, width=5), 18, []),
        (LatentShape(frames=1, height=1, width=1), 1, []),
        (LatentShape(frames=4, height=3, width=2), 7, KEYFRAMES),
        (LatentShape(frames=1, height=7, width=1), 30, KEYFRAMES),
    ):
        inputs = rope_inputs(rope(double=double), latent, audio, fps, keyframes)
        expected = theirs(latent, audio, fps, keyframes, embeddings(rope_type, double=double))
        # The cross extent is the larger of two: here that of neither modality alone.
        cross = rope(double=double)
        wider = rope_inputs(
            Rope(**{name: getattr(cross, name) for name in Rope.__slots__} | {"audio_extent": 30}), latent, audio, fps,
            keyframes,
        )  # fmt: skip
        inputs |= {name: table for name, table in wider.items() if name.startswith("cross")}
        for name, tables in ours(inputs, rope_type, width, audio_width).items():
            for mine, their in zip(tables, expected[name], strict=True):
                assert mine.shape == their.shape, name
                np.testing.assert_allclose(mine, their, rtol=0, atol=TOLERANCE, err_msg=name)


def test_the_real_widths_need_padding_in_front() -> None:
    inputs = rope_inputs(
        rope(double=True, width=4096, audio_width=2048), LatentShape(frames=2, height=2, width=3), 9, 24
    )
    assert inputs["rope_cos"].shape == (3, 3, 682)
    expected = theirs(
        LatentShape(frames=2, height=2, width=3), 9, 24, [],
        {"rope": LTX2AudioVideoRotaryPosEmbed(4096, rope_type="split", num_attention_heads=4)}
        | {name: each for name, each in embeddings("split", double=True, audio_width=2048).items() if name != "rope"},
    )  # fmt: skip
    np.testing.assert_allclose(
        ours(inputs, "split", 4096, 2048)["rope"][0], expected["rope"][0], rtol=0, atol=TOLERANCE
    )
    assert (expected["rope"][0][0, 0, :, :2] == 1).all()


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
def test_connectors(rope_type: str) -> None:
    cos, sin = connector_rope(frequencies(32, 1, double=True), 12, 4096)
    expected = LTX2RotaryPosEmbed1d(32, rope_type=rope_type, num_attention_heads=4)(1, 12, "cpu")
    for mine, their in zip((cos, sin), expected, strict=True):
        mine = mine.reshape(12, 4, 4).transpose(1, 0, 2) if rope_type == "split" else np.repeat(mine, 2, axis=1)
        np.testing.assert_allclose(mine, their[0].numpy(), rtol=0, atol=TOLERANCE)
