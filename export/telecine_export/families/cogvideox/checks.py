"""Configurations of CogVideoX that cannot be exported, each with the reason; diffusers fails at most of them too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from telecine.errors import SourceError

Config = Mapping[str, Any]


def check_transformer(origin: Path, config: Config, vae: Config, pipeline_class: str) -> None:
    """
    Raises:
        SourceError: a configuration that diffusers' pipelines cannot run, or one without a graph contract.
    """
    latents, image = vae["latent_channels"], pipeline_class == "CogVideoXImageToVideoPipeline"
    rotary, learned = config["use_rotary_positional_embeddings"], config["use_learned_positional_embeddings"]
    head, patch = config["attention_head_dim"], config["patch_size"]
    width = config["num_attention_heads"] * head
    checks = (
        (
            config["out_channels"] == latents,
            f"out_channels {config['out_channels']}",
            f"{latents}, the VAE's latent_channels",
        ),
        (
            config["in_channels"] == latents * (2 if image else 1),
            f"in_channels {config['in_channels']} in a {pipeline_class}",
            f"{latents * (2 if image else 1)}: the VAE's latent_channels"
            + (", and as many for the image" if image else ""),
        ),
        (
            config["temporal_compression_ratio"] == vae["temporal_compression_ratio"],
            f"temporal_compression_ratio {config['temporal_compression_ratio']}",
            f"{vae['temporal_compression_ratio']}, the VAE's",
        ),
        (
            image or not config["ofs_embed_dim"],
            f"ofs_embed_dim {config['ofs_embed_dim']} in a {pipeline_class}",
            "none: only CogVideoXImageToVideoPipeline tells the model an offset",
        ),
        (
            rotary or not learned,
            "learned positional embeddings without rotary ones",
            "both, as diffusers' class requires",
        ),
        (
            rotary or config["patch_size_t"] is None,
            f"patch_size_t {config['patch_size_t']} without rotary embeddings",
            "rotary ones: diffusers' sinusoids count every latent frame, and would not fit",
        ),
        (
            not learned or config["patch_size_t"] is None,
            f"patch_size_t {config['patch_size_t']} with learned positional embeddings",
            "no patch_size_t: the table has a row for every latent frame",
        ),
        (
            not rotary or head % 16 == 0,
            f"attention_head_dim {head}",
            "a multiple of 16: a quarter and twice 3/8 rotate",
        ),
        (rotary or width % 16 == 0, f"a width of {width}", "a multiple of 16, for sinusoids along three axes"),
        (
            not learned or (config["sample_height"] % patch == config["sample_width"] % patch == 0),
            f"learned positional embeddings for {config['sample_height']} x {config['sample_width']} latents",
            f"multiples of patch_size {patch}",
        ),
    )
    _raise_first(f"{origin} has", checks)


def check_vae(origin: Path, config: Config) -> None:
    """
    Raises:
        SourceError: a configuration whose chunks are not CogVideoX's, or that diffusers cannot run.
    """
    levels = len(config["block_out_channels"])
    checks = (
        (
            config["temporal_compression_ratio"] == 4 and levels >= 3,
            f"temporal_compression_ratio {config['temporal_compression_ratio']} and {levels} levels",
            "a ratio of 4 over at least 3 levels: chunks are 8 frames and 2 latents",
        ),
        (
            not (config["use_quant_conv"] or config["use_post_quant_conv"]),
            "use_quant_conv or use_post_quant_conv",
            "neither: in diffusers they have the channels of pixels, and fail",
        ),
        (
            (config["in_channels"], config["out_channels"]) == (3, 3),
            f"{config['in_channels']} channels in and {config['out_channels']} out",
            "3 and 3: red, green, blue",
        ),
    )
    _raise_first(f"{origin} has", checks)


def check_text(origin: Path, config: Config, transformer: Config) -> None:
    """
    Raises:
        SourceError: a text encoder of another width than the transformer's text.
    """
    if config["d_model"] != transformer["text_embed_dim"]:
        raise SourceError(
            f"{origin} has d_model {config['d_model']}",
            expected=f"{transformer['text_embed_dim']}, the transformer's text_embed_dim",
            fix="Check what is passed as --transformer and --text-encoder.",
        )


def _raise_first(where: str, checks: tuple[tuple[bool, str, str], ...]) -> None:
    for right, got, expected in checks:
        if not right:
            raise SourceError(f"{where} {got}", expected=expected, fix="This model cannot be exported.")
