"""Every change to a traced network of LTX-Video, in one place: set on instances, so diffusers stays as it is.

A network is patched only where its own code cannot be traced for free sizes, or where the graph contract asks for an
input that the module computes itself (RoPE tables, spatio-temporal guidance). The weights and their names never
change.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d, LTXVideoResnetBlock3d
from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoTransformerBlock
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from torch import Tensor, nn

from telecine_export.fused_qkv import CROSS, SELF, project
from telecine_export.timesteps import patch_timesteps

# Values of the transformer graph's `stg_mode` input (STGuidance, arXiv 2411.18664; Lightricks' SkipLayerStrategy).
STG_ATTENTION_VALUES = 1
STG_SKIP_ATTENTION = 2
STG_SKIP_BLOCK = 3

Rotary = tuple[Tensor, Tensor]


class StgModes:
    """(blocks, B) modes of the call being traced: the one value that reaches blocks past diffusers' signatures."""

    def __init__(self) -> None:
        self.modes: Tensor | None = None

    def equals(self, block: int, mode: int) -> Tensor:
        """(B, 1, 1) booleans: which batch elements perturb this block so."""
        if self.modes is None:
            raise RuntimeError("StgModes.modes must be set before the transformer is called")
        return (self.modes[block] == mode)[:, None, None]


class TableRope(nn.Module):
    """Stands in for LTXVideoRotaryPosEmbed: gathers the host's tables instead of computing angles.

    The angles reach 15,708 radians, where float32 trigonometry of another backend is off by 1e-3; so the host
    computes cos and sin once, and the graph gathers. Returns (T, D / 2) cos and sin, one value per rotated pair.
    """

    def __init__(self, inner_dim: int) -> None:
        super().__init__()
        self.padded_pairs = inner_dim % 6 // 2

    def forward(self, hidden_states: Tensor, *unused: Any) -> Rotary:
        rope_cos, rope_sin, rope_index = unused[-1]
        rows = rope_cos.shape[1]
        flat = rope_index + torch.arange(3, dtype=torch.int32, device=rope_index.device) * rows
        return self._gather(rope_cos, flat, 1.0), self._gather(rope_sin, flat, 0.0)

    def _gather(self, table: Tensor, flat: Tensor, padding: float) -> Tensor:
        # (T, 3, K) → (T, K, 3) → (T, 3K): diffusers interleaves the three axes within each frequency.
        values = F.embedding(flat, table.flatten(0, 1)).transpose(1, 2).flatten(1)
        return F.pad(values, (self.padded_pairs, 0), value=padding) if self.padded_pairs else values


def rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """Rotate (B, T, D) by (T, D / 2) cos and sin, in float32 (diffusers' apply_rotary_emb, tables at half width)."""
    cos, sin = rotary
    real, imaginary = states.float().unflatten(2, (-1, 2)).unbind(-1)
    rotated = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
    return rotated.flatten(2).to(states.dtype)


def attend(
    attn: LTXAttention | LTX2Attention, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
) -> Tensor:
    """Multi-head attention of (B, T, D) over (B, L, D), bias (B, 1, T, L); before the output projection."""
    q, k, v = (states.unflatten(2, (attn.heads, -1)).transpose(1, 2) for states in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class PerturbableSelfAttention:
    """LTXVideoAttnProcessor for `attn1`, with two of the perturbations of spatio-temporal guidance."""

    projections = SELF

    def __init__(self, stg: StgModes, block: int) -> None:
        self.stg, self.block = stg, block

    def __call__(
        self,
        attn: LTXAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Tensor:
        if image_rotary_emb is None:
            raise RuntimeError("self-attention of LTX-Video always rotates")
        query, key, value = project(attn, SELF, hidden_states)
        query = rotate(attn.norm_q(query), image_rotary_emb)
        key = rotate(attn.norm_k(key), image_rotary_emb)
        output = attend(attn, query, key, value, None)
        output = torch.where(self.stg.equals(self.block, STG_ATTENTION_VALUES), value, output)
        output = torch.where(self.stg.equals(self.block, STG_SKIP_ATTENTION), hidden_states, output)
        return attn.to_out[0](output)


class MaskedCrossAttention:
    """LTXVideoAttnProcessor for `attn2`, with the text bias spelled out per query.

    ONNX Runtime's Attention does not broadcast the query axis of its mask.
    """

    projections = CROSS

    def __call__(
        self,
        attn: LTXAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: None = None,
    ) -> Tensor:
        query = attn.norm_q(attn.to_q(hidden_states))
        key, value = project(attn, CROSS, encoder_hidden_states)
        key = attn.norm_k(key)
        bias = attention_mask[:, None].expand(-1, -1, hidden_states.shape[1], -1)
        return attn.to_out[0](attend(attn, query, key, value, bias))


def _perturbable_block(
    block: LTXVideoTransformerBlock, stg: StgModes, index: int, hidden_states: Tensor, **inputs: Any
) -> Tensor:
    output = type(block).forward(block, hidden_states, **inputs)
    return torch.where(stg.equals(index, STG_SKIP_BLOCK), hidden_states, output)


def patch_ltx_transformer(model: Any) -> StgModes:
    """Give an LTXVideoTransformer3DModel table RoPE, traceable attention, perturbable blocks; returns their modes."""
    stg = StgModes()
    patch_timesteps(model)
    model.rope = TableRope(model.config.num_attention_heads * model.config.attention_head_dim)
    for index, block in enumerate(model.transformer_blocks):
        block.attn1.processor = PerturbableSelfAttention(stg, index)
        block.attn2.processor = MaskedCrossAttention()
        block.forward = partial(_perturbable_block, block, stg, index)
    return stg


def _causal_conv(conv: LTXVideoCausalConv3d, hidden_states: Tensor) -> Tensor:
    before = conv.kernel_size[0] - 1 if conv.is_causal else (conv.kernel_size[0] - 1) // 2
    after = 0 if conv.is_causal else before
    pieces = [hidden_states[:, :, :1]] * before + [hidden_states] + [hidden_states[:, :, -1:]] * after
    return conv.conv(torch.cat(pieces, dim=2) if len(pieces) > 1 else hidden_states)


def patch_ltx_vae(model: nn.Module) -> None:
    """Pad in time by one Concat: `.repeat` becomes a chain of shape arithmetic with no constant shape."""
    patch_timesteps(model)
    for module in model.modules():
        if isinstance(module, LTXVideoCausalConv3d):
            module.forward = partial(_causal_conv, module)  # type: ignore[method-assign]


class NoiseMaps:
    """Maps of the decoder call being traced, by level: what `torch.randn` gives diffusers' resnets one by one.

    A level is a resolution, told by its scale: pixels of a map per latent along a side. Its maps are stacked in the
    order in which the decoder draws them.
    """

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.levels: dict[int, Tensor | None] = {}

    def reserve(self, scale: int) -> int:
        """The next map of a level, by its place in the stack."""
        self.counts[scale] = self.counts.get(scale, 0) + 1
        return self.counts[scale] - 1

    def noise(self, scale: int, index: int) -> Tensor:
        """(1, 1, 1, height, width): one map serves every video, channel and frame."""
        maps = self.levels.get(scale)
        if maps is None:
            raise RuntimeError(f"NoiseMaps.levels[{scale}] must be set before the decoder is called")
        return maps[index][None, None, None]


def _noisy_resnet(
    resnet: LTXVideoResnetBlock3d,
    maps: NoiseMaps,
    scale: int,
    places: tuple[int, int],
    inputs: Tensor,
    temb: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """LTXVideoResnetBlock3d.forward of equal widths, with its two draws taken from `maps`."""
    strengths: Any = (resnet.per_channel_scale1, resnet.per_channel_scale2)
    shifts_and_scales: tuple[tuple[Tensor, Tensor] | None, ...] = (None, None)
    if resnet.scale_shift_table is not None and temb is not None:
        rows = temb.unflatten(1, (4, -1)) + resnet.scale_shift_table[None, ..., None, None, None]
        shift_1, scale_1, shift_2, scale_2 = rows.unbind(dim=1)
        shifts_and_scales = ((shift_1, scale_1), (shift_2, scale_2))
    states = inputs
    halves = ((resnet.norm1, resnet.conv1), (resnet.norm2, resnet.conv2))
    for (norm, conv), modulation, strength, place in zip(halves, shifts_and_scales, strengths, places, strict=True):
        states = norm(states.movedim(1, -1)).movedim(-1, 1)
        if modulation is not None:
            states = states * (1 + modulation[1]) + modulation[0]
        states = conv(resnet.nonlinearity(states))
        states = states + maps.noise(scale, place).to(states.dtype) * strength[None, :, None]
    return states + inputs


def patch_ltx_noise(decoder: Any) -> NoiseMaps:
    """Let an LTXVideoDecoder3d take the noise that its resnets draw (`inject_noise`); returns where to put it."""
    maps = NoiseMaps()
    scale = 1
    # In the order in which they run; an up block's `conv_in` never injects: diffusers cannot run such a block.
    for block in (decoder.mid_block, *decoder.up_blocks):
        for upsampler in getattr(block, "upsamplers", None) or ():
            scale *= upsampler.stride[1]
        for resnet in block.resnets:
            if resnet.per_channel_scale1 is not None:
                places = (maps.reserve(scale), maps.reserve(scale))
                resnet.forward = partial(_noisy_resnet, resnet, maps, scale, places)
    return maps
