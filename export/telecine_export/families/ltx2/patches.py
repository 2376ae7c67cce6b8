"""Every change to the traced transformer of LTX-2, in one place: set on instances, so that diffusers stays as it is.

What a request may change and diffusers decides in Python (blocks that are perturbed, modalities that are isolated,
whose timestep modulates cross-modality attention), and what the host computes (positions), becomes inputs. The weights
and their names never change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention, LTX2AudioVideoRotaryPosEmbed
from torch import Tensor, nn

from telecine_export.families.ltx_video.patches import Rotary, attend, rotate
from telecine_export.fused_qkv import CROSS, SELF, project
from telecine_export.timesteps import patch_timesteps

# Rows of a block's tables, by which its modulations are told apart: (scale, shift) twice of cross-modality attention,
# and its gate. All others have 2, 6 or 9.
MODALITY_ROWS, MODALITY_GATE_ROWS = 4, 1


class GraphInputs:
    """The graph's inputs in the call being traced, by name: what reaches modules past diffusers' signatures."""

    def __init__(self) -> None:
        self._given: dict[str, Tensor] = {}

    def give(self, **inputs: Tensor | None) -> None:
        self._given = {name: tensor for name, tensor in inputs.items() if tensor is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._given:
            raise RuntimeError(f"GraphInputs.give must have {name} before the transformer is called")
        return self._given[name]


class TableRope(nn.Module):
    """Stands in for LTX2AudioVideoRotaryPosEmbed: lays the host's tables out instead of computing angles.

    Gives cos and sin of (T, D / 2), a value a pair of neighbours ("interleaved"), or of (T, heads, D / heads / 2), a
    value a pair of both halves of a head ("split").
    """

    def __init__(
        self, rope: LTX2AudioVideoRotaryPosEmbed, inputs: GraphInputs, name: str, gather: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.inputs, self.name, self.gather = inputs, name, gather
        self.columns = rope.dim // 2
        self.heads = rope.num_attention_heads if rope.rope_type == "split" else None

    def forward(self, coordinates: Tensor, device: Any = None) -> Rotary:
        return self._laid_out("cos", 1.0), self._laid_out("sin", 0.0)

    def _laid_out(self, kind: str, identity: float) -> Tensor:
        """Source: `telecine.families.ltx2.positions.spread`."""
        values = self.gather(self.inputs[f"{self.name}_{kind}"], self.inputs["rope_index"])
        missing = self.columns - values.shape[1]
        if missing:
            values = F.pad(values, (missing, 0), value=identity)
        return values if self.heads is None else of_heads(values, self.heads)


def _of_axes(table: Tensor, index: Tensor) -> Tensor:
    """(3, U, K) by (T, 3) → (T, 3K), the three axes of a frequency together."""
    axes, rows, _ = table.shape
    flat = index + torch.arange(axes, dtype=torch.int32, device=index.device) * rows
    return F.embedding(flat, table.flatten(0, 1)).transpose(1, 2).flatten(1)


def _of_frames(table: Tensor, index: Tensor) -> Tensor:
    """(U, K) by the first column of (T, 3) → (T, K)."""
    return F.embedding(index[:, 0], table)


def _of_tokens(table: Tensor, index: Tensor) -> Tensor:
    """(S, K): the sound's tokens stand one behind the other, as their rows do."""
    return table


# diffusers' modules: the prefix of their tables' names, and what makes a token's values of a table.
ROPES: Mapping[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "rope": ("rope", _of_axes),
    "audio_rope": ("audio_rope", _of_tokens),
    "cross_attn_rope": ("cross_rope", _of_frames),
    "cross_attn_audio_rope": ("cross_audio_rope", _of_tokens),
}


def of_heads(table: Tensor, heads: int) -> Tensor:
    """(T, D / 2) cos or sin → (T, heads, D / heads / 2): each head's own part."""
    return table.unflatten(1, (heads, -1))


def turn(states: Tensor, rotary: Rotary) -> Tensor:
    """Rotate (B, T, D) in float32: pairs of neighbours by (T, D / 2), or of both halves of a head by `of_heads`.

    Source: diffusers `apply_interleaved_rotary_emb`, `apply_split_rotary_emb`.
    """
    cos, sin = rotary
    if cos.ndim == 2:
        return rotate(states, rotary)
    first, second = states.float().unflatten(2, (cos.shape[1], -1)).chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(2).to(states.dtype)


def attended(
    attn: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Rotary | None,
    keys: Rotary | None,
    bias: Tensor | None = None,
) -> Tensor:
    """(B, T, D) of normalised and rotated queries and keys; bias (B, 1, T, L)."""
    query, key = attn.norm_q(query), attn.norm_k(key)
    if queries is not None and keys is not None:
        query, key = turn(query, queries), turn(key, keys)
    return attend(attn, query, key, value, bias)


def projected(attn: LTX2Attention, hidden_states: Tensor, output: Tensor) -> Tensor:
    """The output projection, behind the gate of each head where the model has them."""
    if attn.to_gate_logits is not None:
        gates = 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))
        output = (output.unflatten(2, (attn.heads, -1)) * gates[..., None]).flatten(2)
    return attn.to_out[0](output)


class PerturbableSelfAttention:
    """LTX2AudioVideoAttnProcessor and LTX2PerturbedAttnProcessor within a modality.

    Where `perturbation_mask` is 0, its output are the values alone.
    """

    projections = SELF

    def __init__(self, inputs: GraphInputs, block: int) -> None:
        self.inputs, self.block = inputs, block

    def __call__(
        self,
        attn: LTX2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: None,
        attention_mask: None,
        query_rotary_emb: Rotary,
        key_rotary_emb: None,
    ) -> Tensor:
        query, key, value = project(attn, SELF, hidden_states)
        output = attended(attn, query, key, value, query_rotary_emb, query_rotary_emb)
        if "perturbation_mask" in self.inputs:
            perturbed = self.inputs["perturbation_mask"][self.block] == 0
            output = torch.where(perturbed[:, None, None], value, output)
        return projected(attn, hidden_states, output)


class CrossAttention:
    """The same processors with the text, which nothing rotates, and with the other modality."""

    projections = CROSS

    def __call__(
        self,
        attn: LTX2Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None,
        query_rotary_emb: Rotary | None,
        key_rotary_emb: Rotary | None,
    ) -> Tensor:
        query = attn.to_q(hidden_states)
        key, value = project(attn, CROSS, encoder_hidden_states)
        return projected(attn, hidden_states, attended(attn, query, key, value, query_rotary_emb, key_rotary_emb))


def _modulations(inputs: GraphInputs, table: Tensor, temb: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """LTX2VideoTransformerBlock.get_mod_params: the rows of (B, T, rows * D) with a block's own added.

    Those of cross-modality attention are (B, T, 1, D): the block squeezes axis 2, whatever its size, which ONNX does
    not take. Where `modality_mask` is 0 their gate is shut.
    """
    rows = table.shape[0]
    values = table[None, None] + temb.unflatten(2, (rows, -1))
    if rows == MODALITY_GATE_ROWS:
        values = values * inputs["modality_mask"][:, None, None, None].to(values.dtype)
    return values.split(1, dim=2) if rows in (MODALITY_ROWS, MODALITY_GATE_ROWS) else values.unbind(dim=2)


def _of_sigma(adaln: Any, inputs: GraphInputs, name: str, timestep: Tensor, **others: Any) -> Any:
    """LTX2AdaLayerNormSingle.forward of an input of the graph instead of its argument."""
    return type(adaln).forward(adaln, inputs[name], **others)


def _rms_norm(norm: RMSNorm, states: Tensor) -> Tensor:
    """RMSNorm.forward without weights as one operator, whose weights are ones."""
    return F.rms_norm(states, tuple(norm.dim), torch.ones(tuple(norm.dim)).to(states), norm.eps)


def patch_ltx2_transformer(model: Any) -> GraphInputs:
    """Give an LTX2VideoTransformer3DModel tables for positions, traceable attention and masks; returns its inputs.

    The forward call's `sigma` and `audio_sigma` are then what modulates cross-modality attention alone, the text's are
    taken from the graph's inputs.
    """
    inputs = GraphInputs()
    patch_timesteps(model)
    for name, (prefix, gather) in ROPES.items():
        setattr(model, name, TableRope(getattr(model, name), inputs, prefix, gather))
    for name, sigma in {"prompt_adaln": "sigma", "audio_prompt_adaln": "audio_sigma"}.items():
        adaln = getattr(model, name, None)
        if adaln is not None:
            adaln.forward = partial(_of_sigma, adaln, inputs, sigma)
    norms: list[Any] = [each for each in model.modules() if isinstance(each, RMSNorm) and each.weight is None]
    for norm in norms:
        norm.forward = partial(_rms_norm, norm)
    for index, block in enumerate(model.transformer_blocks):
        block.perturbed_attn = False  # it would hand masks of diffusers' own to the processors
        block.get_mod_params = partial(_modulations, inputs)
        for attn in (block.attn1, block.audio_attn1):
            attn.processor = PerturbableSelfAttention(inputs, index)
        for attn in (block.attn2, block.audio_attn2, block.audio_to_video_attn, block.video_to_audio_attn):
            attn.processor = CrossAttention()
    return inputs
