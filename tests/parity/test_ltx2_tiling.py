"""LTX-2's VAE in tiles: mode "diffusers" is `AutoencoderKLLTX2Video`'s own tiling, mode "seamless" the untiled VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKLLTX2Video, LTX2Pipeline

import telecine
from telecine.errors import RequestError
from telecine.families.ltx2.host import Host
from telecine.pipeline import Pipeline
from telecine.shapes import LatentShape
from telecine.tiling import Plan, TilingOptions, plan_decoder, plan_encoder

Array = npt.NDArray[np.float32]
Sizes = tuple[int, int, int, int]

CHANNELS = 16
# One pass of convolutions in another order of summation.
TOLERANCE = 2e-5
# (tile_size, tile_stride, tile_frames, tile_frame_stride) and latents: along all axes, tiles that end beyond the
# picture, overlaps of a half, tiles in space or in time alone.
CASES: dict[str, tuple[Sizes, tuple[int, int, int]]] = {
    "all": ((96, 64, 16, 8), (4, 4, 4)),
    "space": ((128, 96, 16, 8), (2, 5, 8)),
    "time": ((512, 448, 24, 16), (7, 2, 3)),
    "half": ((128, 64, 16, 8), (3, 6, 2)),
    "none needed": ((96, 64, 16, 8), (2, 3, 3)),
}
# The tiny 2.0 pads by mirror images, 2.3 with zeros.
FAST = ("2.3", "all")
EACH = [
    pytest.param(style, case, marks=() if (style, case) == FAST else pytest.mark.slow)
    for style in ("2.0", "2.3")
    for case in CASES
]


class Vae(NamedTuple):
    """diffusers' VAE, the bundle of its source, and what the bundle tells of it."""

    theirs: Any
    ours: Pipeline
    host: Host

    def decoder(self, latents: Array, _: Any) -> Array:
        video: Array = self.ours._models.session("vae_decoder").run({"latents": latents})["video"]
        return video

    def encoder(self, video: Array, _: Any) -> Array:
        means: Array = self.ours._models.session("vae_encoder").run({"video": video})["means"]
        return means

    def plan(self, mode: str, sizes: Sizes, latent: tuple[int, ...], *, decoding: bool = True) -> Plan:
        size, stride, frames, hop = sizes
        options = TilingOptions(mode=mode, size=size, stride=stride, frames=frames, frame_stride=hop)
        shape = LatentShape(frames=latent[0], height=latent[1], width=latent[2])
        make, footprint = (plan_decoder, self.host.decoder) if decoding else (plan_encoder, self.host.encoder)
        return make(options, shape, self.host.grid, footprint, videos=1)


@pytest.fixture(scope="module")
def vae_of(ltx2: Callable[[str], tuple[Path, Path, Path]]) -> Iterator[Callable[[str], Vae]]:
    opened: dict[str, Vae] = {}

    def get(style: str) -> Vae:
        if style not in opened:
            source, _, bundle = ltx2(style)
            ours = telecine.load(bundle)
            theirs: Any = AutoencoderKLLTX2Video.from_pretrained(source / "vae")
            opened[style] = Vae(theirs, ours, Host.parse(ours.bundle.manifest.host))
        return opened[style]

    yield get
    for vae in opened.values():
        vae.ours.close()


def draw(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def joined(pieces: Iterator[Array]) -> Array:
    return np.concatenate(list(pieces), axis=2)


@pytest.mark.parametrize(("style", "case"), EACH)
def test_decoding_as_diffusers(vae_of: Callable[[str], Vae], diffusers_tiling: Any, style: str, case: str) -> None:
    vae, (sizes, latent) = vae_of(style), CASES[case]
    latents = draw(1, CHANNELS, *latent)
    with diffusers_tiling(vae.theirs, sizes):
        theirs = vae.theirs.decode(torch.from_numpy(latents)).sample.numpy()
    ours = joined(vae.plan("diffusers", sizes, latent).run(vae.decoder, latents))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_encoding_as_diffusers(vae_of: Callable[[str], Vae], diffusers_tiling: Any, case: str) -> None:
    vae, (sizes, latent) = vae_of("2.3"), CASES[case]
    frames, height, width = latent
    video = np.tanh(draw(1, 3, 8 * frames - 7, 32 * height, 32 * width))
    with diffusers_tiling(vae.theirs, sizes):
        theirs = vae.theirs.encode(torch.from_numpy(video)).latent_dist.mode().numpy()
    ours = joined(vae.plan("diffusers", sizes, latent, decoding=False).run(vae.encoder, video))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "latent", "what"),
    [
        ((512, 448, 16, 8), (1, 1, 3), "a video of 32 pixels a side"),
        ((96, 64, 16, 8), (1, 2, 5), "a tile of 32 pixels a side"),
    ],
)
def test_mirror_images_of_a_single_latent_are_refused_where_torch_fails(
    vae_of: Callable[[str], Vae], diffusers_tiling: Any, sizes: Sizes, latent: tuple[int, int, int], what: str
) -> None:
    vae = vae_of("2.0")
    with diffusers_tiling(vae.theirs, sizes), pytest.raises(RuntimeError, match="[Pp]adding size"):
        vae.theirs.decode(torch.from_numpy(draw(1, CHANNELS, *latent)))
    with pytest.raises(RequestError, match=f"{what}; expected at least 64"):
        vae.plan("diffusers", sizes, latent)


def test_a_request_is_refused_before_anything_is_run(
    ltx2: Callable[[str], tuple[Path, Path, Path]], edited_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of latents that are not decoded, a single one a side is none too few."""
    request: dict[str, Any] = {
        "prompt": "x", "num_frames": 9, "num_inference_steps": 2, "max_sequence_length": 32, "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
    }  # fmt: skip
    tiles = {"tiling": "diffusers", "tile_size": 96, "tile_stride": 64}
    mirrors = {"least_sides": {"vae_encoder": 1, "vae_decoder": 2}}
    with telecine.load(edited_bundle(ltx2("2.3")[2], host=mirrors)) as pipe:
        made = pipe.generate(**request, width=96, height=32, output_type="latent").latents
        assert made is not None
        assert made.shape[3:] == (1, 3)
        monkeypatch.setattr(pipe._models, "session", pytest.fail)
        for size, what in (({"width": 96, "height": 32}, "video"), ({"width": 160, "height": 64, **tiles}, "tile")):
            with pytest.raises(RequestError, match=f"a {what} of 32 pixels a side"):
                pipe.generate(**request, **size)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["2.0", "2.3"])
@pytest.mark.parametrize("axis", range(3), ids=["frames", "rows", "columns"])
def test_seamless_tiles_with_context_for_the_receptive_field_are_the_untiled_decoder(
    vae_of: Callable[[str], Vae], style: str, axis: int
) -> None:
    """A third of an overlap is context: 8 latents of 24."""
    vae = vae_of(style)
    latent = [1, 2, 2]
    latent[axis] = 27
    latents = draw(1, CHANNELS, *latent)
    plan = vae.plan("seamless", (26 * 32, 32, 26 * 8, 8), tuple(latent))
    assert not plan.whole
    np.testing.assert_allclose(
        joined(plan.run(vae.decoder, latents)), vae.decoder(latents, None), atol=TOLERANCE, rtol=0
    )


@pytest.mark.slow
@pytest.mark.parametrize("style", ["2.0", "2.3"])
def test_a_whole_run_in_tiles(
    vae_of: Callable[[str], Vae], ltx2: Callable[[str], tuple[Path, Path, Path]], diffusers_tiling: Any, style: str
) -> None:
    sizes = (96, 64, 16, 8)
    request: dict[str, Any] = {
        "prompt": "a red ball", "height": 128, "width": 192, "num_frames": 25, "num_inference_steps": 2,
        "max_sequence_length": 32, "guidance_scale": 1.0, "stg_scale": 0.0, "modality_scale": 1.0,
        "audio_guidance_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
        "spatio_temporal_guidance_blocks": [1],
    }  # fmt: skip
    pipe: Any = LTX2Pipeline.from_pretrained(ltx2(style)[0])
    pipe.set_progress_bar_config(disable=True)
    with diffusers_tiling(pipe.vae, sizes):
        theirs = pipe(**request, generator=torch.Generator("cpu").manual_seed(0), output_type="np").frames
    names = ("tile_size", "tile_stride", "tile_frames", "tile_frame_stride")
    ours = vae_of(style).ours.generate(**request, seed=0, tiling="diffusers", **dict(zip(names, sizes, strict=True)))
    assert ours.frames is not None
    np.testing.assert_allclose(ours.frames, theirs, atol=2e-3, rtol=0)
    assert np.abs(ours.frames - theirs).mean() < 2e-5
