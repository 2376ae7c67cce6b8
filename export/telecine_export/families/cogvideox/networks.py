"""CogVideoX 1.0 and 1.5: its graphs, and the configuration that its host math needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from torch import Tensor, nn

from telecine.schedulers.cogvideox import CogVideoXSchedulerConfig
from telecine_export.families.cogvideox.checks import check_text, check_transformer, check_vae
from telecine_export.families.cogvideox.patches import patch_cogvideox_transformer
from telecine_export.families.cogvideox.vae import decoder_graphs, encoder_graphs, widest_activations
from telecine_export.families.defaults import complete
from telecine_export.families.t5 import text_encoder
from telecine_export.families.weightless import decoder_latents, denoise_step, uint8_frames
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

Config = Mapping[str, Any]

IMAGE_TO_VIDEO = "CogVideoXImageToVideoPipeline"
# What `CogVideoXImageToVideoPipeline` tells every model that takes an offset.
OFS = 2.0


class TransformerGraph(nn.Module):
    """(B, F, C, H, W) latents → (B, F, C', H, W) prediction."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.transformer = CogVideoXTransformer3DModel.from_config(config).eval().to(dtype)
        self.positions = patch_cogvideox_transformer(self.transformer)
        self.dtype = dtype

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        rope_cos: Tensor | None = None,
        rope_sin: Tensor | None = None,
        position_frames: Tensor | None = None,
        position_columns: Tensor | None = None,
        position_rows: Tensor | None = None,
        ofs: Tensor | None = None,
    ) -> Tensor:
        if position_frames is not None and position_columns is not None and position_rows is not None:
            self.positions.tables = (position_frames, position_columns, position_rows)
        rotary = None
        if rope_cos is not None and rope_sin is not None:
            rotary = (rope_cos.flatten(0, 2), rope_sin.flatten(0, 2))
        (prediction,) = self.transformer(
            hidden_states=hidden_states.to(self.dtype),
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            timestep=timestep,
            ofs=ofs,
            image_rotary_emb=rotary,
            return_dict=False,
        )
        return prediction.float()


def graphs(source: Source) -> list[GraphSpec]:
    """T5, the transformer, both halves of the VAE as graphs of chunks, and host math.

    Raises:
        SourceError: a configuration that the graph contracts do not cover.
    """
    config, vae = transformer_config(source), vae_config(source)
    check_vae(source.component("vae").origin, vae)
    text = source.config("text_encoder")
    check_transformer(source.component("transformer").origin, config, vae, source.pipeline_class)
    check_text(source.component("text_encoder").origin, text, config)
    return [
        text_encoder(text),
        transformer(config),
        *encoder_graphs(vae),
        *decoder_graphs(vae),
        denoise_step(),
        decoder_latents(channels=vae["latent_channels"], order=(0, 2, 1, 3, 4), noise=False),  # (B, F, C, H, W)
        uint8_frames(),
    ]


def transformer(config: Config) -> GraphSpec:
    """Axes are tokens' rows and columns and groups of frames, of which latents have `patch_size` and `patch_size_t`."""
    patch, group = config["patch_size"], config["patch_size_t"] or 1
    learned = config["use_learned_positional_embeddings"]
    batch, length, frames, rows, columns = 2, 7, 2, 3, 4
    if learned:  # the checkpoint's table is of one size
        length = config["max_text_seq_length"]
        frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
        rows, columns = config["sample_height"] // patch, config["sample_width"] // patch
    sample = {
        "hidden_states": torch.zeros(batch, group * frames, config["in_channels"], patch * rows, patch * columns),
        "encoder_hidden_states": torch.zeros(batch, length, config["text_embed_dim"]),
        "timestep": torch.zeros(batch),
    }
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in sample}
    shape: tuple[str | int, ...] = tuple(sample["hidden_states"].shape[1:])
    if not learned:
        sides = (_rule(group, "frame_groups"), config["in_channels"], _rule(patch, "rows"), _rule(patch, "columns"))
        axes["hidden_states"] |= {1: sides[0], 3: sides[2], 4: sides[3]}
        axes["encoder_hidden_states"] |= {1: "text_length"}
        shape = sides
    for name, (tensor, named) in _positions(config, frames, rows, columns).items():
        sample[name], axes[name] = tensor, {} if learned else dict(enumerate(named))
    if config["ofs_embed_dim"]:
        sample["ofs"], axes["ofs"] = torch.zeros(1), {}
    return GraphSpec(
        component="transformer",
        build=lambda dtype: TransformerGraph(config, dtype),
        sample=sample,
        axes=axes,
        output="prediction",
        output_shape=("batch", shape[0], config["out_channels"], *shape[2:]),
        checkpoint="transformer",
        rename=lambda name: name.removeprefix("transformer."),
    )


def _positions(config: Config, frames: int, rows: int, columns: int) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
    """What the host computes of tokens' places, rotary tables or sinusoids along each axis: samples and their axes."""
    if config["use_rotary_positional_embeddings"]:
        table = torch.zeros(frames, rows, columns, config["attention_head_dim"] // 2)
        return {name: (table.clone(), ("frame_groups", "rows", "columns")) for name in ("rope_cos", "rope_sin")}
    width = config["num_attention_heads"] * config["attention_head_dim"]
    return {
        "position_frames": (torch.zeros(frames, width // 4), ("frame_groups",)),
        "position_columns": (torch.zeros(columns, 3 * width // 8), ("columns",)),
        "position_rows": (torch.zeros(rows, 3 * width // 8), ("rows",)),
    }


def _rule(scale: int, symbol: str) -> str:
    return symbol if scale == 1 else f"{scale}*{symbol}"


def host(source: Source) -> dict[str, Any]:
    """What the NumPy side needs: ratios, schedule, positions, what the VAE's chunks take, sizes that are defaults.

    Raises:
        BundleError: a scheduler that the runtime does not have.
    """
    config, vae = transformer_config(source), vae_config(source)
    scheduler = source.config("scheduler")
    CogVideoXSchedulerConfig.from_dict(scheduler)
    spatial = 2 ** (len(vae["block_out_channels"]) - 1)
    return {
        "spatial_ratio": spatial,
        "temporal_ratio": vae["temporal_compression_ratio"],
        "patch_size": config["patch_size"],
        "patch_size_t": config["patch_size_t"],
        "latent_channels": vae["latent_channels"],
        "image_channels": config["in_channels"] - vae["latent_channels"],
        "text_channels": config["text_embed_dim"],
        "text_length": config["max_text_seq_length"],
        "scaling_factor": vae["scaling_factor"],
        "invert_scale_latents": vae["invert_scale_latents"],
        "positions": positions(config),
        "ofs": OFS if config["ofs_embed_dim"] else None,
        "widest_activations": widest_activations(vae),
        "vae_tile": {"height": vae["sample_height"] // 2, "width": vae["sample_width"] // 2},
        "sample": sample_size(source),
        "scheduler": scheduler,
    }


def positions(config: Config) -> dict[str, Any]:
    """How the host tells tokens their places: `kind` "rope", "sincos" or "learned" (a table of one size).

    `rows` and `columns` are the grid that the model was trained on. A model of 1.5 (`patch_size_t`) counts places from
    0, one of 1.0 stretches them to that grid.
    """
    patch = config["patch_size"]
    base = {"rows": config["sample_height"] // patch, "columns": config["sample_width"] // patch}
    if config["use_rotary_positional_embeddings"]:
        size = config["attention_head_dim"]
        rope = {
            "rope_frequencies": {
                "frames": rope_frequencies(size // 4).tolist(),
                "sides": rope_frequencies(size // 8 * 3).tolist(),
            },
            "stretched": config["patch_size_t"] is None,
        }
        learned = config["use_learned_positional_embeddings"]
        frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
        return base | rope | {"kind": "rope", "table": {"frames": frames} if learned else None}
    return base | {
        "kind": "sincos",
        "width": config["num_attention_heads"] * config["attention_head_dim"],
        "spatial_interpolation_scale": config["spatial_interpolation_scale"],
        "temporal_interpolation_scale": config["temporal_interpolation_scale"],
    }


def rope_frequencies(size: int) -> Tensor:
    """(size / 2,) float32: get_1d_rotary_pos_embed's own expression, so that the last bit is torch's."""
    frequencies: Tensor = 1.0 / (10000.0 ** (torch.arange(0, size, 2, dtype=torch.float32) / size)) / 1.0
    return frequencies


def variant(source: Source) -> str:
    """The release with this architecture: 2b, 5b, 5b-I2V, 1.5-5b or 1.5-5b-I2V."""
    config = transformer_config(source)
    image = "-I2V" if source.pipeline_class == IMAGE_TO_VIDEO else ""
    if config["patch_size_t"] is not None:
        return f"1.5-5b{image}"
    return f"5b{image}" if config["use_rotary_positional_embeddings"] else "2b"


# What the model cards recommend, at the size that the transformer's configuration names; those of 1.5 name no usable
# one (diffusers' default is 2400 x 2400).
RECOMMENDED: Mapping[str, Mapping[str, Any]] = {
    "2b": {"num_inference_steps": 50, "guidance_scale": 6.0},
    "5b": {"num_inference_steps": 50, "guidance_scale": 6.0, "use_dynamic_cfg": True},
    "5b-I2V": {"num_inference_steps": 50, "guidance_scale": 6.0, "use_dynamic_cfg": True},
    "1.5-5b": {"width": 1360, "height": 768, "num_frames": 81, "num_inference_steps": 50, "guidance_scale": 6.0},
    "1.5-5b-I2V": {"width": 1360, "height": 768, "num_frames": 81, "num_inference_steps": 50, "guidance_scale": 6.0},
}


def presets(source: Source) -> dict[str, dict[str, Any]]:
    """Named settings of `generate`."""
    return {"recommended": {**sample_size(source), **RECOMMENDED[variant(source)]}}


def sample_size(source: Source) -> dict[str, int]:
    """What diffusers falls back to."""
    config, vae = transformer_config(source), vae_config(source)
    spatial = 2 ** (len(vae["block_out_channels"]) - 1)
    return {
        "height": config["sample_height"] * spatial,
        "width": config["sample_width"] * spatial,
        "num_frames": config["sample_frames"],
    }


def transformer_config(source: Source) -> dict[str, Any]:
    return complete(CogVideoXTransformer3DModel, source.config("transformer"))


def vae_config(source: Source) -> dict[str, Any]:
    return complete(AutoencoderKLCogVideoX, source.config("vae"))
