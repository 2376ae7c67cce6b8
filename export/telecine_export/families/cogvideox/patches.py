"""Every change to a traced network of CogVideoX: set on instances, so that diffusers stays as it is.

What its own code cannot do for free sizes (interpolation by a float, branches on the bytes of an array, writing into
slices) is written so that it traces, to the same values; what the host computes (positions) and keeps between chunks
(the last frames that a convolution saw) becomes inputs and outputs. The weights and their names never change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXSafeConv3d,
    CogVideoXSpatialNorm3D,
)
from diffusers.models.downsampling import CogVideoXDownsample3D
from diffusers.models.embeddings import CogVideoXPatchEmbed
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import Tensor, nn

from telecine_export.fused_qkv import SELF, project
from telecine_export.timesteps import patch_timesteps

# diffusers' `conv_cache`: caches by the names of blocks, resnets and convolutions, one within the other.
Nested: TypeAlias = "dict[str, Tensor | Nested | None]"
# (F, D/4), (W, 3D/8) and (H, 3D/8): sinusoids of frames, columns and rows of tokens.
Sinusoids = tuple[Tensor, Tensor, Tensor]


class PositionTables:
    """Sinusoids of the call being traced: what reaches the patch embedding past diffusers' signatures."""

    def __init__(self) -> None:
        self.tables: Sinusoids | None = None

    def joined(self, like: Tensor) -> Tensor:
        """(F*H*W, D) of every token, as `get_3d_sincos_pos_embed` joins them."""
        if self.tables is None:
            raise RuntimeError("PositionTables.tables must be set before the transformer is called")
        frames, columns, rows = self.tables
        size = (frames.shape[0], rows.shape[0], columns.shape[0], -1)
        parts = (frames[:, None, None], columns[None, None], rows[None, :, None])
        return torch.cat([part.expand(size) for part in parts], dim=-1).flatten(0, 2).to(like.dtype)


class JointAttention:
    """CogVideoXAttnProcessor2_0 with rotated tokens joined to the text's instead of written into a slice.

    Tables are (T, head size / 2), a value a rotated pair; None rotates nothing.
    """

    projections = SELF

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        text = encoder_hidden_states.shape[1]
        states = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = (
            each.unflatten(2, (attn.heads, -1)).transpose(1, 2) for each in project(attn, SELF, states)
        )
        if attn.norm_q is not None and attn.norm_k is not None:
            query, key = attn.norm_q(query), attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = (
                torch.cat([each[:, :, :text], rotate_heads(each[:, :, text:], image_rotary_emb)], dim=2)
                for each in (query, key)
            )
        output = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        output = attn.to_out[0](output)
        return output[:, text:], output[:, :text]


def rotate_heads(states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate (B, heads, T, size) by (T, size / 2) cos and sin, in float32 (diffusers' apply_rotary_emb)."""
    cos, sin = rotary
    real, imaginary = states.float().unflatten(3, (-1, 2)).unbind(-1)
    rotated = torch.stack([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)
    return rotated.flatten(3).to(states.dtype)


def _patch_embed(embed: CogVideoXPatchEmbed, positions: PositionTables, text: Tensor, images: Tensor) -> Tensor:
    """CogVideoXPatchEmbed.forward, with positions from the host or from the checkpoint."""
    text = embed.text_proj(text)
    if embed.patch_size_t is None:
        batch = images.shape[0]
        states = embed.proj(images.flatten(0, 1)).flatten(2).transpose(1, 2).unflatten(0, (batch, -1)).flatten(1, 2)
    else:
        states = _patches(images, embed.patch_size, embed.patch_size_t)
        states = embed.proj(states)
    if embed.use_learned_positional_embeddings:
        table: Any = embed.pos_embedding
        return torch.cat([text, states], dim=1) + table
    if embed.use_positional_embeddings:  # zeros on the text
        states = states + positions.joined(states)
    return torch.cat([text, states], dim=1)


def _patches(images: Tensor, patch: int, frames: int) -> Tensor:
    """(B, F, C, H, W) → (B, tokens, values of a token)."""
    batch, count, channels, height, width = images.shape
    states = images.permute(0, 1, 3, 4, 2).reshape(
        batch, count // frames, frames, height // patch, patch, width // patch, patch, channels
    )
    return states.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4, 7).flatten(1, 3)


def patch_cogvideox_transformer(model: Any) -> PositionTables:
    """Give a CogVideoXTransformer3DModel traceable attention and positions from outside; returns where to put them."""
    patch_timesteps(model)
    positions = PositionTables()
    embed = model.patch_embed
    if embed.use_learned_positional_embeddings:  # a buffer in diffusers; here a weight like the others
        table = embed.pos_embedding
        del embed.pos_embedding
        embed.pos_embedding = nn.Parameter(table.to(embed.text_proj.weight), requires_grad=False)
    embed.forward = partial(_patch_embed, embed, positions)
    for block in model.transformer_blocks:
        block.attn1.processor = JointAttention()
    return positions


def _causal_conv(
    conv: CogVideoXCausalConv3d, inputs: Tensor, conv_cache: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """CogVideoXCausalConv3d.forward; of a kernel of one frame, which looks at none before, no cache is kept."""
    before = conv.time_kernel_size - 1
    if not before:
        return conv.conv(inputs), None
    first = [inputs[:, :, :1]] * before if conv_cache is None else [conv_cache]
    inputs = torch.cat([*first, inputs], dim=2)
    return conv.conv(inputs), inputs[:, :, -before:]


def _enlarge(states: Tensor, frames: int, side: int) -> Tensor:
    """(B, C, F, H, W) → every value so often along time and on both sides, by whole factors: one Resize."""
    if frames == side == 1:
        return states
    return F.interpolate(states, scale_factor=(float(frames), float(side), float(side)), mode="nearest")


def _enlarge_chunk(states: Tensor, frames: int, side: int) -> Tensor:
    """As `_enlarge`, but of an odd number of frames the first stays one: it stands for one frame of the video."""
    if frames == 1 or states.shape[2] % 2 == 0:
        return _enlarge(states, frames, side)
    first, rest = _enlarge(states[:, :, :1], 1, side), states[:, :, 1:]
    return torch.cat([first, _enlarge(rest, frames, side)], dim=2) if rest.shape[2] else first


def _spatial_norm(
    norm: CogVideoXSpatialNorm3D, scales: tuple[int, int], f: Tensor, zq: Tensor, conv_cache: Any = None
) -> tuple[Tensor, Nested]:
    """CogVideoXSpatialNorm3D.forward: the latents enlarged to the level's size by whole factors."""
    zq = _enlarge_chunk(zq, *scales)
    return norm.norm_layer(f) * norm.conv_y(zq)[0] + norm.conv_b(zq)[0], {}


def _upsample(upsampler: CogVideoXUpsample3D, inputs: Tensor) -> Tensor:
    states = _enlarge_chunk(inputs, 2 if upsampler.compress_time else 1, 2)
    return _per_frame(upsampler.conv, states)


def _downsample(downsampler: CogVideoXDownsample3D, inputs: Tensor) -> Tensor:
    """CogVideoXDownsample3D.forward: two frames become their mean; of an odd number the first stays."""
    states = inputs
    if downsampler.compress_time:
        odd = 1 if states.shape[2] % 2 else 0
        first, rest = states[:, :, :odd], states[:, :, odd:]
        parts = [first] if odd else []
        if rest.shape[2]:
            pairs = rest.unflatten(2, (-1, 2))
            parts.append((pairs[:, :, :, 0] + pairs[:, :, :, 1]) * 0.5)
        states = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    return _per_frame(downsampler.conv, F.pad(states, (0, 1, 0, 1)))


def _per_frame(conv: nn.Conv2d, states: Tensor) -> Tensor:
    """A convolution of every frame of (B, C, F, H, W)."""
    batch = states.shape[0]
    return conv(states.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, -1)).transpose(1, 2)


VAE_FORWARDS: Mapping[type, Callable[..., Any]] = {
    CogVideoXSafeConv3d: nn.Conv3d.forward,  # its own splits what is above 2 GB
    CogVideoXCausalConv3d: _causal_conv,
    CogVideoXUpsample3D: _upsample,
    CogVideoXDownsample3D: _downsample,
}


def patch_cogvideox_vae(half: Any) -> None:
    """Make an encoder or a decoder traceable for free heights, widths and batches."""
    for module in half.modules():
        if type(module) in VAE_FORWARDS:
            module.forward = partial(VAE_FORWARDS[type(module)], module)
    frames = side = 1
    for level in (half.mid_block, *getattr(half, "up_blocks", ()), half.norm_out):
        norms: list[Any] = [each for each in level.modules() if isinstance(each, CogVideoXSpatialNorm3D)]
        for norm in norms:
            norm.forward = partial(_spatial_norm, norm, (frames, side))
        for upsampler in getattr(level, "upsamplers", None) or ():
            frames, side = frames * (2 if upsampler.compress_time else 1), side * 2


def flatten_caches(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """{"up_block_0": {"resnet_1": {"conv1": x}}} → {"up_block_0.resnet_1.conv1": x}, in the order of the run."""
    flat: dict[str, Tensor] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten_caches(value, f"{prefix}{name}.")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def nest_caches(flat: Mapping[str, Tensor]) -> Nested:
    """The inverse of `flatten_caches`."""
    nested: Any = {}
    for path, value in flat.items():
        *outer, last = path.split(".")
        level = nested
        for name in outer:
            level = level.setdefault(name, {})
        level[last] = value
    return nested


def named_forward(run: Callable[[Mapping[str, Tensor]], Any], names: Sequence[str]) -> Callable[..., Any]:
    """A `forward` that takes these arguments by name: torch.export asks a function for its signature."""

    def forward(**given: Tensor) -> Any:
        return run(given)

    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward
