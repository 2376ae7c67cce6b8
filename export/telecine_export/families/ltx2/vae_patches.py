"""Every change to LTX-2's traced VAEs and vocoders: set on instances, so that diffusers stays as it is.

What diffusers pads by repeating or reflecting becomes a Concat or a Pad, where its own code traces to gathers of
computed indices; a filter that all channels share runs over them as over a picture's rows, where its own code expands
a weight to groups. Values are the same. Buffers that checkpoints have are weights here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_ltx2 import LTX2VideoCausalConv3d
from diffusers.pipelines.ltx2.vocoder import CausalSTFT, DownSample1d, MelSTFT, UpSample1d
from torch import Tensor, nn

from telecine_export.timesteps import patch_timesteps

# `pads` of ONNX's Pad on (B, C, F, H, W): one pixel around every frame.
AROUND = (0, 0, 0, 1, 1, 0, 0, 0, 1, 1)


def repeat_edges(states: Tensor, dim: int, before: int, after: int) -> Tensor:
    """The first value along `dim` so often before it, and the last one after it: one Concat."""
    first, last = states.narrow(dim, 0, 1), states.narrow(dim, -1, 1)
    pieces = [first] * before + [states] + [last] * after
    return torch.cat(pieces, dim=dim) if len(pieces) > 1 else states


def _reflect(states: Tensor) -> Tensor:
    """A pixel more around each frame of (B, C, F, H, W), as its mirror image: one Pad."""
    *outer, height, width = states.shape
    padded: Tensor = torch.onnx.ops.symbolic(
        "Pad",
        (states, torch.tensor(AROUND, device="cpu")),
        attrs={"mode": "reflect"},
        dtype=states.dtype,
        shape=(*outer, height + 2, width + 2),
        version=19,
    )
    return padded.to(states.device)  # tracing takes the operator's output for one on the CPU


def _causal_conv(conv: LTX2VideoCausalConv3d, hidden_states: Tensor, causal: bool = True) -> Tensor:
    """LTX2VideoCausalConv3d.forward."""
    span = conv.kernel_size[0] - 1
    states = repeat_edges(hidden_states, 2, span if causal else span // 2, 0 if causal else span // 2)
    if conv.conv.padding_mode == "zeros":
        return conv.conv(states)
    inner = conv.conv
    return F.conv3d(_reflect(states), inner.weight, inner.bias, inner.stride, 0, inner.dilation, inner.groups)


def patch_video_vae(half: nn.Module) -> None:
    """Make an encoder or a decoder of AutoencoderKLLTX2Video traceable for free sizes."""
    patch_timesteps(half)
    for module in half.modules():
        if isinstance(module, LTX2VideoCausalConv3d):
            module.forward = partial(_causal_conv, module)  # type: ignore[method-assign]


def _upsample(upsampler: UpSample1d, states: Tensor) -> Tensor:
    """UpSample1d.forward."""
    padded = repeat_edges(states, 2, upsampler.pad, upsampler.pad)
    weight: Any = upsampler.filter
    return upsample(padded, weight, upsampler.ratio)[..., upsampler.pad_left : -upsampler.pad_right]


def upsample(states: Tensor, filter_: Tensor, ratio: int) -> Tensor:
    """(B, C, T) through one (1, 1, K) filter, `ratio` values for each: as pictures of C rows."""
    return ratio * F.conv_transpose2d(states[:, None], filter_[:, :, None], stride=(1, ratio))[:, 0]


def _downsample(downsampler: DownSample1d, states: Tensor) -> Tensor:
    """DownSample1d.forward."""
    padded = repeat_edges(states, 2, downsampler.pad_left, downsampler.pad_right)
    weight: Any = downsampler.filter
    return F.conv2d(padded[:, None], weight[:, :, None], stride=(1, downsampler.ratio))[:, 0]


FILTERS: Mapping[type, Any] = {UpSample1d: _upsample, DownSample1d: _downsample}
BUFFERS: Mapping[type, str] = {
    UpSample1d: "filter", DownSample1d: "filter", CausalSTFT: "forward_basis", MelSTFT: "mel_basis",
}  # fmt: skip


def patch_vocoder(vocoder: nn.Module) -> None:
    """Make an LTX2Vocoder, or one with bandwidth extension, traceable for free lengths."""
    for module in vocoder.modules():
        kind = type(module)
        if kind in BUFFERS:
            buffer = getattr(module, BUFFERS[kind])
            delattr(module, BUFFERS[kind])
            setattr(module, BUFFERS[kind], nn.Parameter(buffer, requires_grad=False))
        if kind in FILTERS:
            module.forward = partial(FILTERS[kind], module)
