"""LTX-Video 0.9.1: its decoder draws noise inside, from torch's global generator; telecine, from the second stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import telecine
from telecine.families.ltx_video.decode import InjectedNoise
from telecine.noise import SECOND_STREAM

REQUEST: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "num_inference_steps": 2,
    "seed": 3,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}


@pytest.fixture(autouse=True)
def global_generator() -> Iterator[None]:
    """torch's global generator, as the second stream of the request's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(REQUEST["seed"] ^ SECOND_STREAM)
        yield


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"height": 32, "width": 32, "num_frames": 1},  # maps of 4, 16 and 64 values: torch draws below 16 otherwise
        {"height": 96, "width": 160, "num_frames": 9},
        {"prompt": ["a blue cube", "the old sailor"]},  # one set of maps for both
        {"output_type": "uint8"},
    ],
    ids=["as-is", "one-latent", "odd", "batch-2", "uint8"],
)
def test_whole_runs(noisy_pair: Any, change: dict[str, Any]) -> None:
    noisy_pair.assert_same(**REQUEST | change)


def test_the_noise_shows(noisy_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the other tests here would pass without it."""
    made = noisy_pair.run_ours(**REQUEST)
    draw = InjectedNoise._draw
    monkeypatch.setattr(
        InjectedNoise, "_draw", lambda *arguments: {name: 0 * maps for name, maps in draw(*arguments).items()}
    )
    assert noisy_pair.compare(noisy_pair.run_ours(**REQUEST), made).excess() > 100


def test_the_order_of_the_maps_counts(noisy_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = noisy_pair.run_ours(**REQUEST)
    draw = InjectedNoise._draw
    monkeypatch.setattr(
        InjectedNoise, "_draw",
        lambda *arguments: {name: np.ascontiguousarray(maps[::-1]) for name, maps in draw(*arguments).items()},
    )  # fmt: skip
    assert noisy_pair.compare(noisy_pair.run_ours(**REQUEST), made).excess() > 100


def test_it_follows_what_the_sampler_drew(
    noisy_pair: Any, noisy_bundle: Any, edited_bundle: Callable[..., Any]
) -> None:
    """Both draw from the one global generator: the sampler's noise of every step first, then the decoder's maps."""
    scheduler = noisy_pair.ours.bundle.manifest.host["scheduler"] | {"stochastic_sampling": True}
    kept = noisy_pair.theirs.scheduler
    noisy_pair.theirs.scheduler = FlowMatchEulerDiscreteScheduler.from_config(kept.config, stochastic_sampling=True)
    try:
        theirs = noisy_pair.run_theirs(**REQUEST)
    finally:
        noisy_pair.theirs.scheduler = kept
    with telecine.load(edited_bundle(noisy_bundle, host={"scheduler": scheduler})) as ours:
        noisy_pair.assert_close(ours.generate(**REQUEST).frames, theirs)


def test_a_list_of_seeds_draws_the_maps_from_the_first(noisy_pair: Any) -> None:
    both = noisy_pair.run_ours(**REQUEST | {"num_videos_per_prompt": 2, "seed": [3, 4]})
    noisy_pair.assert_close(both[:1], noisy_pair.run_ours(**REQUEST))
    alone = noisy_pair.run_ours(**REQUEST | {"seed": 4})
    assert noisy_pair.compare(both[1:], alone).excess() > 1  # the same latents, under other maps


@pytest.mark.parametrize("size", [64, 128])
def test_tiles_as_diffusers_makes_them_draw_their_own_maps(noisy_pair: Any, size: int) -> None:
    vae = noisy_pair.theirs.vae
    vae.enable_tiling(size, size, 16, size // 2, size // 2, 8)
    vae.use_framewise_decoding = True
    request = REQUEST | {"width": 160, "num_frames": 25}
    try:
        theirs = noisy_pair.run_theirs(**request)
    finally:
        vae.disable_tiling()
        vae.use_framewise_decoding = False
    tiles = {"tiling": "diffusers", "tile_size": size, "tile_stride": size // 2, "tile_frames": 16}
    noisy_pair.assert_close(noisy_pair.run_ours(**request, **tiles), theirs)


def test_seamless_tiles_share_one_set_of_maps(noisy_pair: Any) -> None:
    request = REQUEST | {"height": 32, "width": 18 * 32, "num_frames": 1}
    whole = noisy_pair.run_ours(**request)
    # Its receptive field is 7 latents: 16 of overlap leave more than that beside the fade.
    tiled = noisy_pair.run_ours(**request, tiling="seamless", tile_size=17 * 32, tile_stride=32)
    np.testing.assert_allclose(tiled, whole, atol=1e-5, rtol=0)
