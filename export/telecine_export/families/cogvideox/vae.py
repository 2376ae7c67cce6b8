"""The VAE of CogVideoX, which runs in chunks along time: a graph for each kind of chunk, over one weights file.

A convolution sees the last two frames that it was given before: outputs of one chunk's graph that are inputs of the
next one's. Group norms are of a chunk, so the chunks are diffusers' own. Roles, by what a chunk holds:

| role         | encoder takes              | decoder takes            |
|--------------|----------------------------|--------------------------|
| `image`      | 1 frame, alone             | 1 latent, alone          |
| `first`      | 4k+1 frames (5, 9 or 13)   | 3 latents, for 9 frames  |
| `first_even` | 4k frames (4, 8 or 12)     | 2 latents, for 8 frames  |
| `next`       | 8 frames                   | 2 latents, for 8 frames  |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from telecine_export.families.cogvideox.patches import flatten_caches, named_forward, nest_caches, patch_cogvideox_vae
from telecine_export.graphs import GraphSpec

Config = Mapping[str, Any]

# Of the inputs that are caches. Python identifiers, since torch.export names arguments: dots become two underscores.
# As an output, a cache's name has `new_` before it.
CACHE = "cache_"
# Frames that the encoder's chunks are traced at, and their rule; latents of the decoder's.
ENCODER_CHUNKS: Mapping[str, tuple[int, str | None]] = {
    "image": (1, None), "first": (9, "4*chunk_latents+1"), "first_even": (8, "4*chunk_latents"), "next": (8, None),
}  # fmt: skip
DECODER_CHUNKS: Mapping[str, int] = {"image": 1, "first": 3, "first_even": 2, "next": 2}
ONLY_CHUNK, LATER_CHUNK = "image", "next"


class ChunkGraph(nn.Module):
    """A chunk of a video, and the caches of the chunk before → what a half of the VAE makes of it, and its caches."""

    def __init__(self, config: Config, half: str, data: str, role: str, caches: list[str], dtype: torch.dtype) -> None:
        super().__init__()
        network = getattr(AutoencoderKLCogVideoX.from_config(config), half).eval().to(dtype)
        patch_cogvideox_vae(network)
        self.add_module(half, network)  # its parameters then have the checkpoint's names
        self.network, self.data, self.role, self.dtype = half, data, role, dtype
        taken = [_input(path) for path in caches] if role == LATER_CHUNK else []
        self.forward = named_forward(self._run, [data, *taken])

    def _run(self, given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        caches = {_path(name): tensor.to(self.dtype) for name, tensor in given.items() if name != self.data}
        made, kept = getattr(self, self.network)(
            given[self.data].to(self.dtype), conv_cache=nest_caches(caches) or None
        )
        if self.role == ONLY_CHUNK:  # nothing comes after it
            return (made.float(),)
        return (made.float(), *(cache.float() for cache in flatten_caches(kept).values()))


def _input(path: str) -> str:
    return CACHE + path.replace(".", "__")


def _path(name: str) -> str:
    return name.removeprefix(CACHE).replace("__", ".")


def encoder_graphs(config: Config) -> list[GraphSpec]:
    """(B, 3, frames, 8h, 8w) video in [-1, 1] → (B, 2C, latents, h, w) moments: C means, C log-variances."""
    spatial = 2 ** (len(config["block_out_channels"]) - 1)
    caches = cache_shapes(config, "encoder")
    specs = []
    for role, (frames, rule) in ENCODER_CHUNKS.items():
        latents: int | str = (frames - 1) // 4 + 1
        if rule:
            latents = "chunk_latents+1" if rule.endswith("+1") else "chunk_latents"
        video = torch.zeros(2, 3, frames, 2 * spatial, 3 * spatial)
        axes = {0: "batch", 3: f"{spatial}*latent_height", 4: f"{spatial}*latent_width"} | ({2: rule} if rule else {})
        shape = ("batch", 2 * config["latent_channels"], latents, "latent_height", "latent_width")
        specs.append(_spec(config, "encoder", role, "video", video, axes, "moments", shape, caches))
    return specs


def decoder_graphs(config: Config) -> list[GraphSpec]:
    """(B, C, latents, H, W) latents → (B, 3, frames, 8H, 8W) video in [-1, 1]."""
    spatial = 2 ** (len(config["block_out_channels"]) - 1)
    caches = cache_shapes(config, "decoder")
    specs = []
    for role, count in DECODER_CHUNKS.items():
        frames = 4 * (count - 1) + 1 if count % 2 else 4 * count
        latents = torch.zeros(2, config["latent_channels"], count, 3, 4)
        axes = {0: "batch", 3: "latent_height", 4: "latent_width"}
        shape = ("batch", 3, frames, f"{spatial}*latent_height", f"{spatial}*latent_width")
        specs.append(_spec(config, "decoder", role, "latents", latents, axes, "video", shape, caches))
    return specs


def _spec(
    config: Config, half: str, role: str, data: str, sample: Tensor, axes: dict[int, str], output: str,
    shape: tuple[str | int, ...], caches: Mapping[str, tuple[int, int]],
) -> GraphSpec:  # fmt: skip
    paths = list(caches)
    batch, height, width = sample.shape[0], sample.shape[3], sample.shape[4]
    per_latent = 2 ** (len(config["block_out_channels"]) - 1) if half == "encoder" else 1
    samples: dict[str, Tensor] = {data: sample}
    named: dict[str, dict[int, str]] = {data: axes}
    states: dict[str, tuple[str | int, ...]] = {}
    for path, (channels, scale) in caches.items():
        sides = [f"{scale}*latent_{side}" if scale > 1 else f"latent_{side}" for side in ("height", "width")]
        if role == LATER_CHUNK:
            size = (height // per_latent * scale, width // per_latent * scale)
            samples[_input(path)] = torch.zeros(batch, channels, 2, *size)
            named[_input(path)] = {0: "batch", 3: sides[0], 4: sides[1]}
        if role != ONLY_CHUNK:
            states[f"new_{_input(path)}"] = ("batch", channels, 2, *sides)
    return GraphSpec(
        component=f"vae_{half}",
        role=role,
        build=lambda dtype: ChunkGraph(config, half, data, role, paths, dtype),
        sample=samples,
        axes=named,
        output=output,
        output_shape=shape,
        states=states,
        checkpoint="vae",
    )


def cache_shapes(config: Config, half: str) -> dict[str, tuple[int, int]]:
    """Channels of each cache, and its values along a side for each latent there; by path, in the order of the run."""
    caches, _ = _meta_run(config, half, latents=3)
    return {path: (cache.shape[1], cache.shape[3] // 2) for path, cache in caches.items()}


def widest_activations(config: Config) -> dict[str, float]:
    """Values of the largest activation of each half, in its largest chunk (13 frames, 3 latents), for each latent of a
    picture: what the runtime predicts memory from."""
    return {
        f"vae_{half}": _meta_run(config, half, latents=latents)[1] / 4
        for half, latents in (("encoder", 4), ("decoder", 3))
    }


def _meta_run(config: Config, half: str, *, latents: int) -> tuple[dict[str, Tensor], int]:
    """Caches of a first chunk of 2 x 2 latents a picture, on the meta device, and its largest activation's values."""
    spatial = 2 ** (len(config["block_out_channels"]) - 1)
    shape = (1, config["latent_channels"], latents, 2, 2)
    if half == "encoder":
        shape = (1, 3, 4 * (latents - 1) + 1, 2 * spatial, 2 * spatial)
    widest = 0

    def watch(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        nonlocal widest
        tensor = output[0] if isinstance(output, tuple) else output
        widest = max(widest, tensor.numel())

    with torch.device("meta"), torch.no_grad():
        module = getattr(AutoencoderKLCogVideoX.from_config(config), half).eval()
        patch_cogvideox_vae(module)
        for part in module.modules():
            part.register_forward_hook(watch)
        _, kept = module(torch.empty(shape))
    return flatten_caches(kept), widest
