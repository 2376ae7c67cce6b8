"""diffusers' names for the tensors of LTX-Video's original files (and of GGUF files, which keep the original names)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from telecine.families.base import Naming
from telecine.families.names import TIED_NAMES, own_names

TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
TRANSFORMER_PARTS = {
    "patchify_proj": "proj_in",
    "adaln_single": "time_embed",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
VAE_PREFIX = "vae."
VAE_PARTS = {
    "res_blocks": "resnets",
    "conv_shortcut": "conv_shortcut.conv",
    "norm3.norm": "norm3",
    "last_time_embedder": "time_embedder",
    "last_scale_shift_table": "scale_shift_table",
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}
# The original files number all blocks of a coder in one row; diffusers nests resamplers and wideners in stages.
RESNETS_FIRST = {
    "encoder.down_blocks": (
        "down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.0.conv_out",
        "down_blocks.1", "down_blocks.1.downsamplers.0", "down_blocks.1.conv_out",
        "down_blocks.2", "down_blocks.2.downsamplers.0", "down_blocks.3", "mid_block",
    ),
    "decoder.up_blocks": (
        "mid_block", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1",
        "up_blocks.2.conv_in", "up_blocks.2.upsamplers.0", "up_blocks.2",
        "up_blocks.3.conv_in", "up_blocks.3.upsamplers.0", "up_blocks.3",
    ),
}  # fmt: skip
# From 0.9.1 (decoder) and 0.9.5 (encoder) on, resamplers have a residual path and come between stages of one width.
RESAMPLERS_BETWEEN = {
    "encoder.down_blocks": (
        "down_blocks.0", "down_blocks.0.downsamplers.0", "down_blocks.1", "down_blocks.1.downsamplers.0",
        "down_blocks.2", "down_blocks.2.downsamplers.0", "down_blocks.3", "down_blocks.3.downsamplers.0", "mid_block",
    ),
    "decoder.up_blocks": (
        "mid_block", "up_blocks.0.upsamplers.0", "up_blocks.0", "up_blocks.1.upsamplers.0", "up_blocks.1",
        "up_blocks.2.upsamplers.0", "up_blocks.2", "up_blocks.3.upsamplers.0", "up_blocks.3",
    ),
}  # fmt: skip
VAE_BLOCK = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)(?=\.)")


def transformer_name(name: str) -> str:
    """diffusers' name of a transformer's tensor; a name that is diffusers' already stays as it is.

    Source: convert_ltx_transformer_checkpoint_to_diffusers.
    """
    for prefix in TRANSFORMER_PREFIXES:
        name = name.removeprefix(prefix)
    return _replaced(name, TRANSFORMER_PARTS)


def transformer_names(names: Collection[str]) -> dict[str, str]:
    """The transformer's tensors of a file, by diffusers' names: {new: old}; empty where there is no transformer."""
    for prefix in (*TRANSFORMER_PREFIXES, ""):
        if {f"{prefix}patchify_proj.weight", f"{prefix}proj_in.weight"}.intersection(names):
            inside = (name for name in names if name.startswith(prefix) and not name.startswith(VAE_PREFIX))
            return {transformer_name(name): name for name in inside}
    return {}


def vae_names(names: Collection[str]) -> dict[str, str]:
    """The VAE's tensors of a file, by diffusers' names: {new: old}; empty where there is no VAE.

    Source: convert_ltx_vae_checkpoint_to_diffusers, but that the blocks' arrangement is told from their names and not
    from a width.
    """
    for prefix in (VAE_PREFIX, ""):
        if f"{prefix}encoder.conv_in.conv.weight" not in names:
            continue
        inside = [name for name in names if name.startswith(prefix)]
        if "latents_mean" in names:
            return {name: name for name in inside}
        blocks = {
            part: (RESAMPLERS_BETWEEN if f"{prefix}{part}.1.conv.conv.weight" in names else RESNETS_FIRST)[part]
            for part in RESNETS_FIRST
        }
        return {_vae_name(name.removeprefix(prefix), blocks): name for name in inside}
    return {}


def _vae_name(name: str, blocks: Mapping[str, tuple[str, ...]]) -> str:
    def place(match: re.Match[str]) -> str:
        row, number = blocks[match[1]], int(match[2])
        return f"{match[1].partition('.')[0]}.{row[number]}" if number < len(row) else match[0]

    return _replaced(VAE_BLOCK.sub(place, name), VAE_PARTS)


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    for old, new in parts.items():
        name = name.replace(old, new)
    return name


NAMING = Naming(
    lora="transformer",  # diffusers' LTXVideoLoraLoaderMixin loads into nothing else
    rename=transformer_name,
    tensors={
        "text_encoder": own_names,
        "transformer": transformer_names,
        "vae_encoder": vae_names,
        "vae_decoder": vae_names,
        "latent_upsampler": own_names,
    },
    tied=TIED_NAMES,
    recorded={
        half: {name: name for name in ("latents_mean", "latents_std")} for half in ("vae_encoder", "vae_decoder")
    },
)
