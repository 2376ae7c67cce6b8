"""Oracle: diffusers' DiagonalGaussianDistribution, and its upsampling pipeline's loop over videos."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from telecine.bundle import Bundle
from telecine.conditioning import sample_posterior
from telecine.families.ltx_video.encode import encode
from telecine.families.ltx_video.host import Host
from telecine.noise import Generator
from telecine.tiling import TilingOptions


def test_sampling_matches_diffusers_beyond_its_clamps_too() -> None:
    moments = np.random.default_rng(0).standard_normal((2, 5, 2, 3, 4), dtype=np.float32)
    moments[:, -1] *= 20  # from -60 to 60; diffusers clamps to -30 and 20
    theirs = np.concatenate([moments[:, :4], *[moments[:, 4:]] * 4], axis=1)  # the one log-variance, for each channel
    distribution: Any = DiagonalGaussianDistribution(torch.from_numpy(theirs))
    expected = distribution.sample(torch.Generator("cpu").manual_seed(7)).numpy()
    made = sample_posterior(moments, Generator(7).randn((2, 4, 2, 3, 4)))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("seeds", [[5], [5, 6]])
def test_videos_are_drawn_for_one_after_the_other(seeds: list[int], tiny_bundle: Path) -> None:
    """From the one generator in turn, or each from its own."""
    host = Host.parse(Bundle.open(tiny_bundle).manifest.host)
    moments = np.zeros((1, 17, 1, 1, 2), np.float32)
    session = SimpleNamespace(run=lambda feeds: {"moments": moments})
    fake: Any = SimpleNamespace(session=lambda name: session, limits=lambda component: None)
    made = encode(
        fake, host, np.zeros((2, 3, 1, 32, 64), np.float32), [Generator(seed) for seed in seeds], TilingOptions()
    )
    generators = [Generator(seed) for seed in seeds]
    drawn = np.concatenate([(generators * 2)[video].randn((1, 16, 1, 1, 2)) for video in range(2)])
    back = made * host.latents_std.reshape(1, -1, 1, 1, 1) + host.latents_mean.reshape(1, -1, 1, 1, 1)
    np.testing.assert_allclose(back, drawn, atol=1e-6)
