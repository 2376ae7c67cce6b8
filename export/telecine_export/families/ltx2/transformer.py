"""The transformer of LTX-2 as one graph; `telecine.families.ltx2.transformer` says what its inputs hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from telecine.errors import SourceError
from telecine_export.families.defaults import complete
from telecine_export.families.ltx2.patches import patch_ltx2_transformer
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

Config = Mapping[str, Any]


class TransformerGraph(nn.Module):
    """(N, T, C) tokens of a video and (N, S, C') of its sound → the velocities of both."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.transformer = LTX2VideoTransformer3DModel.from_config(config).eval().to(dtype)
        self.inputs = patch_ltx2_transformer(self.transformer)
        self.dtype = dtype

    def forward(
        self,
        hidden_states: Tensor,
        audio_hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        audio_encoder_hidden_states: Tensor,
        timestep: Tensor,
        audio_timestep: Tensor,
        cross_timestep: Tensor,
        audio_cross_timestep: Tensor,
        modality_mask: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        rope_index: Tensor,
        audio_rope_cos: Tensor,
        audio_rope_sin: Tensor,
        cross_rope_cos: Tensor,
        cross_rope_sin: Tensor,
        cross_audio_rope_cos: Tensor,
        cross_audio_rope_sin: Tensor,
        sigma: Tensor | None = None,
        audio_sigma: Tensor | None = None,
        perturbation_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        self.inputs.give(
            modality_mask=modality_mask,
            rope_cos=rope_cos,
            rope_sin=rope_sin,
            rope_index=rope_index,
            audio_rope_cos=audio_rope_cos,
            audio_rope_sin=audio_rope_sin,
            cross_rope_cos=cross_rope_cos,
            cross_rope_sin=cross_rope_sin,
            cross_audio_rope_cos=cross_audio_rope_cos,
            cross_audio_rope_sin=cross_audio_rope_sin,
            sigma=sigma,
            audio_sigma=audio_sigma,
            perturbation_mask=perturbation_mask,
        )
        velocity, audio_velocity = self.transformer(
            hidden_states=hidden_states.to(self.dtype),
            audio_hidden_states=audio_hidden_states.to(self.dtype),
            encoder_hidden_states=encoder_hidden_states.to(self.dtype),
            audio_encoder_hidden_states=audio_encoder_hidden_states.to(self.dtype),
            timestep=timestep,
            audio_timestep=audio_timestep,
            # With `use_cross_timestep` a modality's side of cross-modality attention is modulated by the other's sigma.
            sigma=audio_cross_timestep,
            audio_sigma=cross_timestep,
            use_cross_timestep=True,
            video_coords=rope_index[None],  # taken apart and handed to what stands in for the rotary embeddings
            audio_coords=rope_index[None],
            return_dict=False,
        )
        return velocity.float(), audio_velocity.float()


def spec(source: Source) -> GraphSpec:
    """
    Raises:
        SourceError: a configuration that the graph contract does not cover.
    """
    config = transformer_config(source)
    check_transformer(source.component("transformer").origin, config)
    return graph(config)


def transformer_config(source: Source) -> dict[str, Any]:
    return complete(LTX2VideoTransformer3DModel, source.config("transformer"))


def graph(config: Config) -> GraphSpec:
    """The graph of a complete configuration. An input that its model does not read is not there."""
    inputs = _inputs(config)
    return GraphSpec(
        component="transformer",
        build=lambda dtype: TransformerGraph(config, dtype),
        sample={name: sample for name, (sample, _) in inputs.items()},
        axes={name: axes for name, (_, axes) in inputs.items()},
        # One timestep a video, or one a token (held frames): the same graph.
        untied=(("timestep", 1, "timestep_tokens"), ("cross_timestep", 1, "cross_timestep_tokens")),
        output="velocity",
        output_shape=("batch", "tokens", config["out_channels"] or config["in_channels"]),
        states={
            "audio_velocity": ("batch", "audio_tokens", config["audio_out_channels"] or config["audio_in_channels"])
        },
        checkpoint="transformer",
        rename=lambda name: name.removeprefix("transformer."),
    )


def _inputs(config: Config) -> dict[str, tuple[Tensor, dict[int, str]]]:
    """Samples and their dynamic axes by name, in the graph's order."""
    batch, tokens, audio_tokens, length = 2, 24, 9, 7
    text, audio_text = text_widths(config)
    per_token, per_row = {0: "batch", 1: "tokens"}, {0: "batch"}
    inputs = {
        "hidden_states": (torch.zeros(batch, tokens, config["in_channels"]), per_token),
        "audio_hidden_states": (
            torch.zeros(batch, audio_tokens, config["audio_in_channels"]), {0: "batch", 1: "audio_tokens"},
        ),
        "encoder_hidden_states": (torch.zeros(batch, length, text), {0: "batch", 1: "text_length"}),
        "audio_encoder_hidden_states": (torch.zeros(batch, length, audio_text), {0: "batch", 1: "text_length"}),
        "timestep": (torch.zeros(batch, tokens), per_token),
        "audio_timestep": (torch.zeros(batch, 1), per_row),
        "cross_timestep": (torch.zeros(batch, tokens), per_token),
        "audio_cross_timestep": (torch.zeros(batch, 1), per_row),
        "modality_mask": (torch.zeros(batch), per_row),
        **_positions(config, tokens, audio_tokens),
    }  # fmt: skip
    if reads_sigma(config):
        inputs |= {name: (torch.zeros(batch), per_row) for name in ("sigma", "audio_sigma")}
    if config["perturbed_attn"]:
        inputs["perturbation_mask"] = (torch.zeros(config["num_layers"], batch), {1: "batch"})
    return inputs


def _positions(config: Config, tokens: int, audio_tokens: int) -> dict[str, tuple[Tensor, dict[int, str]]]:
    """What `telecine.families.ltx2.positions` gives: samples and their dynamic axes."""
    rows = 5
    width, audio_width = widths(config)
    shapes: dict[str, tuple[tuple[int, ...], dict[int, str]]] = {
        "rope": ((3, rows, width // 6), {1: "rope_positions"}),
        "audio_rope": ((audio_tokens, audio_width // 2), {0: "audio_tokens"}),
        "cross_rope": ((rows, config["audio_cross_attention_dim"] // 2), {0: "rope_positions"}),
        "cross_audio_rope": ((audio_tokens, config["audio_cross_attention_dim"] // 2), {0: "audio_tokens"}),
    }
    index = {"rope_index": (torch.zeros(tokens, 3, dtype=torch.int32), {0: "tokens"})}
    return index | {
        f"{name}_{kind}": (torch.zeros(shape), axes)
        for name, (shape, axes) in shapes.items()
        for kind in ("cos", "sin")
    }


def rope(config: Config) -> dict[str, Any]:
    """What the host tells tokens their places by: the manifest's `rope`, with frequencies as torch computes them."""
    width, audio_width = widths(config)
    return {
        "scale_factors": list(config["vae_scale_factors"]),
        "extent": [config["pos_embed_max_pos"], config["base_height"], config["base_width"]],
        "causal_offset": config["causal_offset"],
        "audio_scale_factor": config["audio_scale_factor"],
        "audio_sampling_rate": config["audio_sampling_rate"],
        "audio_hop_length": config["audio_hop_length"],
        "audio_extent": config["audio_pos_embed_max_pos"],
        "frequencies": rope_frequencies(config, width, axes=3),
        "audio_frequencies": rope_frequencies(config, audio_width, axes=1),
        "cross_frequencies": rope_frequencies(config, config["audio_cross_attention_dim"], axes=1),
    }


def rope_frequencies(config: Config, width: int, *, axes: int) -> list[float]:
    """LTX2AudioVideoRotaryPosEmbed.forward's own expression, so that the last bit is torch's and not NumPy's."""
    dtype = torch.float64 if config["rope_double_precision"] else torch.float32
    powers = torch.pow(config["rope_theta"], torch.linspace(0.0, 1.0, width // (2 * axes), dtype=dtype))
    frequencies: list[float] = (powers * torch.pi / 2.0).to(torch.float32).tolist()
    return frequencies


def widths(config: Config) -> tuple[int, int]:
    """Of the video's tokens inside of the network, and of its sound's."""
    return (
        config["num_attention_heads"] * config["attention_head_dim"],
        config["audio_num_attention_heads"] * config["audio_attention_head_dim"],
    )


def text_widths(config: Config) -> tuple[int, int]:
    """Of the connectors' outputs: models of 2.0 project one text for both modalities themselves."""
    if config["use_prompt_embeddings"]:
        return config["caption_channels"], config["caption_channels"]
    return config["cross_attention_dim"], config["audio_cross_attention_dim"]


def reads_sigma(config: Config) -> bool:
    """Whether the text is modulated by how noisy the latents are, as from 2.3 on."""
    return bool((config["cross_attn_mod"] or config["audio_cross_attn_mod"]) and config["use_prompt_adaln_single"])


def check_transformer(origin: Path, config: Config) -> None:
    """
    Raises:
        SourceError: a configuration that diffusers cannot run, or one without a graph contract.
    """
    width, audio_width = widths(config)
    patches = {name: config[name] for name in config if name.endswith(("patch_size", "patch_size_t"))}
    halves = [config[f"{prefix}num_attention_heads"] * 2 for prefix in ("", "audio_") if config["rope_type"] == "split"]
    checks = (
        (
            set(patches.values()) == {1},
            ", ".join(f"{name} {size}" for name, size in patches.items()),
            "1 everywhere: a latent is a token in every published LTX-2",
        ),
        (
            config["rope_type"] in ("split", "interleaved"),
            f"rope_type {config['rope_type']}",
            "split or interleaved",
        ),
        (
            config["audio_cross_attention_dim"] == audio_width,
            f"audio_cross_attention_dim {config['audio_cross_attention_dim']} and sound of width {audio_width}",
            "one width: positions of cross-modality attention have the first, its channels the second",
        ),
        (
            width % 2 == audio_width % 2 == 0 and all(audio_width % each == 0 for each in halves),
            f"widths {width} and {audio_width} in {config['num_attention_heads']} and"
            f" {config['audio_num_attention_heads']} heads",
            "pairs of channels to rotate in every head",
        ),
    )  # fmt: skip
    for right, got, expected in checks:
        if not right:
            raise SourceError(f"{origin} has {got}", expected=expected, fix="This model cannot be exported.")
