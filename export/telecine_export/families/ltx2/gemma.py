"""Gemma-3, the text encoder of LTX-2, and the part of the connectors that makes features of all of its hidden states.

A token has 188,160 channels of those in the releases, which never leave the graph. Each layer's are normalised by
themselves, while the rest are still to come; the projections then see them side by side, as diffusers' do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors, per_layer_masked_mean_norm, per_token_rms_norm
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3TextModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm, Gemma3RotaryEmbedding

from telecine.errors import SourceError
from telecine.families.ltx2.gemma import PREFIX
from telecine_export.families.defaults import complete
from telecine_export.graphs import GraphSpec
from telecine_export.source import Source
from telecine_export.timesteps import TorchFrequencies

Config = Mapping[str, Any]

SLIDING = "sliding_attention"
# Added to scores that are not to count. A row of padding attends to nothing: it must stay finite, as its values are
# multiplied by the zeros of other rows' softmax.
HIDDEN = -10000.0
# Kinds of rotary embedding whose frequencies do not follow a text's length.
ROPE_TYPES = ("default", "linear", "llama3")
# What the pipelines let the connectors assume: they set the tokenizer's padding_side, and never pass scale_factor.
PADDING_SIDE, SCALE_FACTOR = "left", 8


class Rotary(TorchFrequencies):
    """(1, L, head size) cos and sin of L places, for one kind of Gemma's layers.

    Padding counts: the pipelines pass no positions, so that the first token stands where the padding ends.
    """

    def __init__(self, gemma: Any, layer_type: str) -> None:
        with torch.device("cpu"):
            computed: Any = Gemma3RotaryEmbedding(gemma)
        super().__init__(getattr(computed, f"{layer_type}_inv_freq").float())
        self.scaling = getattr(computed, f"{layer_type}_attention_scaling")

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        angles = places.float()[None, :, None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.scaling, angles.sin() * self.scaling


class ScaledLinear(nn.Linear):
    """A linear layer of `scale` times its inputs: the scale is taken from fewer values behind it."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, scale: float) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = F.linear(inputs, self.weight)
        outputs = outputs if self.scale == 1 else outputs * self.scale
        return outputs if self.bias is None else outputs + self.bias


class TextEncoderGraph(nn.Module):
    """(B, L) token ids and their mask → (B, L, D) features."""

    def __init__(self, gemma: Any, connectors: Config, dtype: torch.dtype) -> None:
        super().__init__()
        self.gemma: Any = Gemma3TextModel(gemma).eval().to(dtype)
        patch_gemma(self.gemma)
        self.rotary = nn.ModuleDict({kind: Rotary(gemma, kind) for kind in sorted(set(gemma.layer_types))})
        self.per_modality = connectors["per_modality_projections"]
        self.projections = projections(connectors)
        for name, projection in self.projections.items():  # as the connectors name them
            self.add_module(name, projection.to(dtype))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.hidden_states(input_ids, attention_mask)
        normalised = torch.stack([self.normalise(each, attention_mask) for each in states], dim=-1).flatten(2)
        features = [getattr(self, name)(normalised) for name in self.projections]
        return torch.cat(features, dim=-1).float()

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor) -> list[Tensor]:
        """(B, L, C) embeddings and what each layer makes of them; the last passes through the final norm."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        types = self.gemma.config.layer_types
        window = self.gemma.config.sliding_window
        biases = {kind: _bias(attention_mask, places, window if kind == SLIDING else None) for kind in self.rotary}
        rotary = {kind: tuple(each.to(self.gemma.dtype) for each in make(places)) for kind, make in self.rotary.items()}
        states = [self.gemma.embed_tokens(input_ids)]
        for layer, kind in zip(self.gemma.layers, types, strict=True):
            bias = biases[kind].to(states[-1].dtype)
            states.append(layer(states[-1], position_embeddings=rotary[kind], attention_mask=bias))
        return [*states[:-1], self.gemma.norm(states[-1])]

    def normalise(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L, C) hidden states of one layer, normalised as the connectors do, zeros in place of padding."""
        layer = states[..., None]
        if self.per_modality:
            return torch.where(attention_mask.bool()[..., None], per_token_rms_norm(layer)[..., 0], 0.0)
        lengths = attention_mask.sum(dim=-1)
        return per_layer_masked_mean_norm(layer, lengths, layer.device, PADDING_SIDE, SCALE_FACTOR)


def projections(connectors: Config) -> dict[str, ScaledLinear]:
    """The connectors' layers that make features, by name: one for both modalities up to 2.0, then one for each."""
    width, bias = connectors["caption_channels"], connectors["proj_bias"]
    inputs = width * connectors["text_proj_in_factor"]
    if not connectors["per_modality_projections"]:
        return {"text_proj_in": ScaledLinear(inputs, width, bias=bias, scale=1)}
    return {
        f"{side}_text_proj_in": ScaledLinear(inputs, outputs, bias=bias, scale=math.sqrt(outputs / width))
        for side, outputs in (("video", connectors["video_hidden_dim"]), ("audio", connectors["audio_hidden_dim"]))
    }


def feature_widths(connectors: Config) -> tuple[int, ...]:
    """The channels of the features: one width for both modalities, or the video's and the sound's."""
    if connectors["per_modality_projections"]:
        return connectors["video_hidden_dim"], connectors["audio_hidden_dim"]
    return (connectors["caption_channels"],)


def _bias(attention_mask: Tensor, places: Tensor, window: int | None) -> Tensor:
    """(B, 1, L, L): 0 where a token (rows) attends to another, and to itself. Up to `window` - 1 back, or all before.

    Source: transformers `create_causal_mask` and `create_sliding_window_causal_mask`.
    """
    back = places[:, None] - places[None]
    seen = (back >= 0) if window is None else (back >= 0) & (back < window)
    return torch.where(seen & attention_mask.bool()[:, None, None], 0.0, HIDDEN)


def _embed(embed: Any, input_ids: Tensor) -> Tensor:
    """Gemma3TextScaledWordEmbedding.forward, whose scale is a buffer without a value on the meta device."""
    return F.embedding(input_ids, embed.weight) * embed.scalar_embed_scale


def _rms_norm(norm: Gemma3RMSNorm, states: Tensor) -> Tensor:
    """Gemma3RMSNorm.forward as one operator."""
    weight = 1.0 + norm.weight.float()
    return F.rms_norm(states.float(), weight.shape, weight, norm.eps).type_as(states)


def patch_gemma(model: Any) -> None:
    """Change what of Gemma3TextModel does not trace well, on its instances; weights and their names stay."""
    model.embed_tokens.forward = partial(_embed, model.embed_tokens)
    norms: list[Any] = [each for each in model.modules() if isinstance(each, Gemma3RMSNorm)]
    for norm in norms:
        norm.forward = partial(_rms_norm, norm)


def spec(source: Source) -> GraphSpec:
    """The text encoder's graph; its weights come from the text encoder and, of the projections, the connectors.

    Raises:
        SourceError: a text encoder that is no Gemma-3, or not of the connectors' kind.
    """
    gemma, connectors = text_config(source), connectors_config(source)
    check(source.component("text_encoder").origin, gemma, connectors)
    return graph(gemma, connectors)


def graph(gemma: Any, connectors: Config) -> GraphSpec:
    """The graph of complete configurations."""
    axes = {0: "batch", 1: "text_length"}
    return GraphSpec(
        component="text_encoder",
        build=lambda dtype: TextEncoderGraph(gemma, connectors, dtype),
        sample={
            "input_ids": torch.zeros(2, 12, dtype=torch.int64),
            "attention_mask": torch.ones(2, 12, dtype=torch.int64),
        },
        axes={"input_ids": axes, "attention_mask": axes},
        output="prompt_embeds",
        output_shape=("batch", "text_length", sum(feature_widths(connectors))),
        checkpoint="text_encoder",
        also="connectors",
        rename=_stored_name,
    )


def _stored_name(name: str) -> str:
    own = "gemma."
    return PREFIX + name.removeprefix(own) if name.startswith(own) else name


def text_config(source: Source) -> Any:
    """Gemma's Gemma3TextConfig, complete.

    Raises:
        SourceError: the text encoder is of another kind.
    """
    config, origin = source.config("text_encoder"), source.component("text_encoder").origin
    if config.get("model_type") != Gemma3Config.model_type:
        raise SourceError(
            f"{origin} has model_type {config.get('model_type')}",
            expected=f"{Gemma3Config.model_type}: Gemma-3, which LTX-2.0 and 2.3 read their prompts with",
            fix="Check what is passed as --text-encoder; other text encoders cannot be exported.",
        )
    whole: Any = Gemma3Config(**config)
    return whole.text_config


def connectors_config(source: Source) -> dict[str, Any]:
    """The connectors' configuration, with diffusers' defaults for what it leaves out."""
    return complete(LTX2TextConnectors, source.config("connectors"))


def check(origin: Path, gemma: Any, connectors: Config) -> None:
    """
    Raises:
        SourceError: the connectors are for other hidden states, or the graph would depend on the text's length.
    """
    states = gemma.num_hidden_layers + 1
    rope_types = [gemma.rope_parameters[kind]["rope_type"] for kind in sorted(set(gemma.layer_types))]
    unknown = [kind for kind in rope_types if kind not in ROPE_TYPES]
    checks: Sequence[tuple[bool, str, str]] = (
        (
            gemma.hidden_size == connectors["caption_channels"],
            f"hidden_size {gemma.hidden_size}",
            f"{connectors['caption_channels']}, the connectors' caption_channels",
        ),
        (
            states == connectors["text_proj_in_factor"],
            f"{states} hidden states",
            f"{connectors['text_proj_in_factor']}, the connectors' text_proj_in_factor",
        ),
        (
            not gemma.use_bidirectional_attention,
            "use_bidirectional_attention",
            "a causal Gemma-3, as in every release",
        ),
        (not unknown, f"rope_type {', '.join(unknown)}", f"one of {', '.join(ROPE_TYPES)}"),
    )
    for right, got, expected in checks:
        if not right:
            raise SourceError(
                f"{origin} has {got}", expected=expected, fix="Check that text encoder and connectors belong together."
            )
