"""Configurations of LTX-2's VAEs and vocoders that cannot be exported, each with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telecine.errors import SourceError

Config = Mapping[str, Any]
Checks = tuple[tuple[bool, str, str], ...]

RATIO = 4  # mel frames of a latent of sound, and bands of one: diffusers' LATENT_DOWNSAMPLE_FACTOR
HALVINGS = {"spatial": (1, 2), "temporal": (2, 1), "spatiotemporal": (2, 2), "conv": (2, 2)}  # of time, of each side
PADDING = ("zeros", "reflect")


def check_vae(origin: Path, config: Config, ratios: tuple[int, int]) -> None:
    """`ratios`: (temporal, spatial) pixels per latent, as diffusers' pipelines take them to be.

    Raises:
        SourceError: a configuration that diffusers cannot run, or one without a graph contract.
    """
    padding = (config["encoder_spatial_padding_mode"], config["decoder_spatial_padding_mode"])
    checks = (
        (
            not any(_all(config["decoder_inject_noise"])),
            "decoder_inject_noise",
            "none: no published LTX-2 injects noise into its decoder, and no graph has an input for it",
        ),
        (config["patch_size_t"] == 1, f"patch_size_t {config['patch_size_t']}", "1: diffusers can run no other"),
        (
            set(padding) <= set(PADDING),
            f"spatial padding modes {' and '.join(padding)}",
            " or ".join(PADDING),
        ),
        (
            (config["in_channels"], config["out_channels"]) == (3, 3),
            f"{config['in_channels']} channels in and {config['out_channels']} out",
            "3 and 3: red, green, blue",
        ),
        (
            ratios == encoder_ratios(config),
            f"compression ratios {ratios[0]} and {ratios[1]}",
            f"{encoder_ratios(config)[0]} and {encoder_ratios(config)[1]}, by which its encoder makes videos smaller",
        ),
    )
    _raise_first(origin, checks)


def encoder_ratios(config: Config) -> tuple[int, int]:
    """(temporal, spatial) pixels per latent, as the encoder's blocks have them."""
    kinds = [
        HALVINGS[kind]
        for kind, scales in zip(config["downsample_type"], _all(config["spatio_temporal_scaling"], 4), strict=False)
        if scales
    ]
    temporal, spatial = (math.prod(each) for each in zip(*kinds, strict=True))
    return temporal * config["patch_size_t"], spatial * config["patch_size"]


def _all(value: Any, count: int = 1) -> tuple[bool, ...]:
    """diffusers takes one flag for all blocks too."""
    return (value,) * count if isinstance(value, bool) else tuple(value)


def check_audio_vae(origin: Path, config: Config) -> None:
    """
    Raises:
        SourceError: as `check_vae`.
    """
    bins = config["mel_bins"]
    checks: Checks = (
        (
            config["causality_axis"] == "height",
            f"causality_axis {config['causality_axis']}",
            "height: the first latent stands for one frame",
        ),
        (
            not config["attn_resolutions"],
            f"attn_resolutions {config['attn_resolutions']}",
            "none, as every published one has",
        ),
        (bins is not None and bins % RATIO == 0, f"mel_bins {bins}", f"a multiple of {RATIO}"),
        (len(config["ch_mult"]) == 3, f"{len(config['ch_mult'])} levels", f"3, which are {RATIO} frames a latent"),
    )
    _raise_first(origin, checks)
    statistics = config["latent_channels"] * bins // RATIO
    checks = (
        (
            config["base_channels"] == statistics,
            f"base_channels {config['base_channels']}",
            f"{statistics}, the values of a latent: diffusers keeps their statistics in so many",
        ),
    )
    _raise_first(origin, checks)


def check_vocoder(origin: Path, config: Config, audio_vae: Config) -> None:
    """
    Raises:
        SourceError: as `check_vae`.
    """
    channels = audio_vae["output_channels"] * audio_vae["mel_bins"]
    samples, hop = math.prod(config["upsample_factors"]), config.get("hop_length", 1)
    checks: Checks = (
        (
            config["in_channels"] == channels,
            f"in_channels {config['in_channels']}",
            f"{channels}, the audio VAE's channels of all its mel bins",
        ),
        (
            samples % hop == 0,
            f"{samples} samples a frame and a hop_length of {hop}",
            "whole hops a frame: diffusers fails to pad others",
        ),
    )
    _raise_first(origin, checks)


def _raise_first(origin: Path, checks: Checks) -> None:
    for right, got, expected in checks:
        if not right:
            raise SourceError(f"{origin} has {got}", expected=expected, fix="This model cannot be exported.")
