"""LTX-2's connectors: small transformers that turn a prompt's features into what the video and the sound attend to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from diffusers.pipelines.ltx2.connectors import LTX2ConnectorTransformer1d, LTX2TextConnectors
from torch import Tensor, nn

from telecine.errors import SourceError
from telecine_export.families.ltx2.gemma import HIDDEN, connectors_config, feature_widths
from telecine_export.families.ltx2.patches import attended, of_heads, projected
from telecine_export.families.ltx_video.patches import Rotary
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source

Config = Mapping[str, Any]

SIDES = ("video", "audio")


class ConnectorAttention:
    """LTX2AudioVideoAttnProcessor for tables from the host, without writing into slices; the mask is (B, 1, L, L)."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: Tensor | None,
        query_rotary_emb: Rotary,
        key_rotary_emb: None,
    ) -> Tensor:
        cos, sin = query_rotary_emb
        if attn.rope_type == "split":
            cos, sin = of_heads(cos, attn.heads), of_heads(sin, attn.heads)
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        output = attended(attn, query, key, value, (cos, sin), (cos, sin), attention_mask)
        return projected(attn, hidden_states, output)


def _rms_norm(norm: nn.RMSNorm, states: Tensor) -> Tensor:
    """nn.RMSNorm.forward without weights, which the exporter would spell as ones of the size of the states."""
    return F.rms_norm(states, norm.normalized_shape, torch.ones(norm.normalized_shape).to(states), norm.eps)


def patch_connectors(model: nn.Module) -> None:
    """Change what of LTX2TextConnectors does not trace well, on its instances; weights and their names stay."""
    attentions: list[Any] = [each for each in model.modules() if isinstance(each, LTX2Attention)]
    for attention in attentions:
        attention.processor = ConnectorAttention()
    norms: list[Any] = [each for each in model.modules() if isinstance(each, nn.RMSNorm) and each.weight is None]
    for norm in norms:
        norm.forward = partial(_rms_norm, norm)


class ConnectorsGraph(nn.Module):
    """(B, L, D) features → (B, L, D') for the video and (B, L, D'') for the sound."""

    def __init__(self, config: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.connectors: Any = LTX2TextConnectors.from_config(config).eval().to(dtype)
        self.widths = feature_widths(config)
        self.dtype = dtype
        patch_connectors(self.connectors)

    def forward(
        self,
        prompt_embeds: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        audio_rope_cos: Tensor,
        audio_rope_sin: Tensor,
        token_index: Tensor | None = None,
        token_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        video = audio = prompt_embeds.to(self.dtype)
        if len(self.widths) > 1:
            video, audio = video.split(self.widths, dim=-1)
        bias = None
        if token_index is not None and token_mask is not None:
            video = _with_registers(self.connectors.video_connector, video, token_index, token_mask)
            audio = _with_registers(self.connectors.audio_connector, audio, token_index, token_mask)
        elif attention_mask is not None:
            length = attention_mask.shape[1]
            bias = ((1.0 - attention_mask) * HIDDEN)[:, None, None].expand(-1, 1, length, -1).to(self.dtype)
        return (
            _connect(self.connectors.video_connector, video, bias, (rope_cos, rope_sin)).float(),
            _connect(self.connectors.audio_connector, audio, bias, (audio_rope_cos, audio_rope_sin)).float(),
        )


def _with_registers(
    connector: LTX2ConnectorTransformer1d, features: Tensor, token_index: Tensor, token_mask: Tensor
) -> Tensor:
    """(B, L, D) features of the tokens in front, then registers, each by its place."""
    batch, length, _ = features.shape
    starts = length * torch.arange(batch, device=features.device)
    tokens = F.embedding(token_index + starts[:, None], features.flatten(0, 1))
    table: Any = connector.learnable_registers
    registers = F.embedding(torch.arange(length, device=features.device) % table.shape[0], table)
    return torch.where(token_mask[..., None] > 0, tokens, registers)


def _connect(connector: LTX2ConnectorTransformer1d, states: Tensor, bias: Tensor | None, rotary: Rotary) -> Tensor:
    """LTX2ConnectorTransformer1d.forward behind its registers."""
    for block in connector.transformer_blocks:
        states = block(states, attention_mask=bias, rotary_emb=rotary)
    output: Tensor = connector.norm_out(states)
    return output


def spec(source: Source) -> GraphSpec:
    """The connectors' graph, without the part that makes features (`gemma`).

    Raises:
        SourceError: connectors that diffusers cannot run, or whose registers differ.
    """
    config = connectors_config(source)
    check(source.component("connectors").origin, config)
    return graph(config)


def graph(config: Config) -> GraphSpec:
    """The graph of a complete configuration."""
    batch, length = 2, 7
    rows = {0: "batch", 1: "text_length"}
    sample = {"prompt_embeds": torch.zeros(batch, length, sum(feature_widths(config)))}
    axes: dict[str, dict[int, str]] = {"prompt_embeds": rows}
    if registers(config):
        sample["token_index"] = torch.zeros(batch, length, dtype=torch.int64)
        sample["token_mask"] = torch.zeros(batch, length)
        axes |= {"token_index": rows, "token_mask": rows}
    else:
        sample["attention_mask"] = torch.zeros(batch, length)
        axes["attention_mask"] = rows
    for prefix, side in (("", "video"), ("audio_", "audio")):
        for name in (f"{prefix}rope_cos", f"{prefix}rope_sin"):
            sample[name] = torch.zeros(length, width(config, side) // 2)
            axes[name] = {0: "text_length"}
    return GraphSpec(
        component="connectors",
        build=lambda dtype: ConnectorsGraph(config, dtype),
        sample=sample,
        axes=axes,
        output="encoder_hidden_states",
        output_shape=("batch", "text_length", width(config, "video")),
        states={"audio_encoder_hidden_states": ("batch", "text_length", width(config, "audio"))},
        checkpoint="connectors",
        rename=lambda name: name.removeprefix("connectors."),
    )


def host(config: Config) -> dict[str, Any]:
    """What the runtime feeds the connectors by: registers, and the frequencies of both ropes as torch computes them."""
    return {
        "registers": registers(config),
        "base_length": config["connector_rope_base_seq_len"],
        "frequencies": frequencies(config, "video").tolist(),
        "audio_frequencies": frequencies(config, "audio").tolist(),
    }


def frequencies(config: Config, side: str) -> Tensor:
    """(K,) float32: the expression of `LTX2RotaryPosEmbed1d.forward`, so that the last bit is torch's."""
    dtype = torch.float64 if config["rope_double_precision"] else torch.float32
    steps = torch.linspace(0.0, 1.0, steps=width(config, side) // 2, dtype=dtype)
    return (torch.pow(config["rope_theta"], steps) * torch.pi / 2.0).to(torch.float32)


def registers(config: Config) -> int | None:
    """The learned rows that stand in for padding, as many in both connectors; None where padding is not attended to."""
    count: int | None = config["video_connector_num_learnable_registers"]
    return count


def width(config: Config, side: str) -> int:
    """The channels of one connector, "video" or "audio"."""
    total: int = config[f"{side}_connector_num_attention_heads"] * config[f"{side}_connector_attention_head_dim"]
    return total


def check(origin: Path, config: Config) -> None:
    """
    Raises:
        SourceError: a configuration that diffusers cannot run, or that the graph's contract does not cover.
    """
    widths = dict(zip(SIDES, feature_widths(config) * 2, strict=False))
    counts = [config[f"{side}_connector_num_learnable_registers"] for side in SIDES]
    rope_type = config["rope_type"]
    checks: Sequence[tuple[bool, str, str]] = (
        *(
            (
                width(config, side) == features,
                f"a connector of {width(config, side)} channels for the {side}",
                f"{features}, the features' channels",
            )
            for side, features in widths.items()
        ),
        (
            counts[0] == counts[1],
            f"{counts[0]} learnable registers for the video and {counts[1]} for the sound",
            "as many for both: the runtime packs each prompt's tokens once",
        ),
        (rope_type in ("split", "interleaved"), f"rope_type {rope_type}", "split or interleaved"),
        *(
            (
                config[f"{side}_connector_attention_head_dim"] % 2 == 0,
                f"heads of {config[f'{side}_connector_attention_head_dim']} channels for the {side}",
                "an even number, of which rotary embeddings turn pairs",
            )
            for side in SIDES
        ),
    )
    for right, got, expected in checks:
        if not right:
            raise SourceError(f"{origin} has {got}", expected=expected, fix="These connectors cannot be exported.")
