"""Layout and statistics of latents, as the LTX pipelines handle them at float32."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from telecine.errors import RequestError
from telecine.shapes import LatentShape

Array = npt.NDArray[np.float32]


def pack(latents: Array) -> Array:
    """Fold (B, C, F, H, W) latents into (B, T, C) tokens: frames vary slowest, columns fastest.

    Source: diffusers `LTXPipeline._pack_latents` at patch size 1.
    """
    batch, channels = latents.shape[:2]
    return latents.reshape(batch, channels, -1).transpose(0, 2, 1).copy()


def unpack(tokens: Array, shape: LatentShape) -> Array:
    """Unfold (B, T, C) tokens into (B, C, F, H, W) latents: the inverse of `pack`.

    Raises:
        RequestError: T is not what `shape` has.

    Source: diffusers `LTXPipeline._unpack_latents` at patch size 1.
    """
    if tokens.ndim != 3 or tokens.shape[1] != shape.tokens:
        raise RequestError(
            f"packed latents of shape {tokens.shape}",
            expected=f"(batch, {shape.tokens}, channels), for {shape.frames} x {shape.height} x {shape.width} latents",
            fix="Pass latents made for the num_frames, height and width of this request.",
        )
    batch, _, channels = tokens.shape
    return tokens.transpose(0, 2, 1).copy().reshape(shape.array_shape(batch, channels))


def normalize(latents: Array, mean: Array, std: Array, scaling_factor: float) -> Array:
    """Bring (B, C, F, H, W) latents of the VAE to the transformer's scale, by (C,) mean and std.

    (z - mean) * scaling_factor / std.

    Source: diffusers `LTXPipeline._normalize_latents`, float32, in its order of operations.
    """
    out = np.subtract(latents, _per_channel(mean), dtype=np.float32)
    out *= np.float32(scaling_factor)
    out /= _per_channel(std)
    return out


def denormalize(latents: Array, mean: Array, std: Array, scaling_factor: float) -> Array:
    """Bring (B, C, F, H, W) latents of the transformer to the VAE's scale, by (C,) mean and std.

    z * std / scaling_factor + mean, the inverse of `normalize`.

    Source: diffusers `LTXPipeline._denormalize_latents`, float32, in its order of operations.
    """
    out = np.multiply(latents, _per_channel(std), dtype=np.float32)
    out /= np.float32(scaling_factor)
    out += _per_channel(mean)
    return out


def mix_decode_noise(latents: Array, noise: Array, scale: npt.ArrayLike) -> Array:
    """Mix noise into (B, C, F, H, W) latents before decoding: (1 - s) z + s noise, s of shape (B,) in 0..1.

    Only VAEs with timestep conditioning are decoded so.

    Source: diffusers `LTXPipeline.__call__` after denormalising, at float32.
    """
    weight = np.asarray(scale, np.float32).reshape(-1, 1, 1, 1, 1)
    assert len(weight) == len(latents)
    assert noise.shape == latents.shape
    out = np.multiply(latents, 1 - weight, dtype=np.float32)
    out += noise * weight
    return out


def _per_channel(statistics: Array) -> Array:
    return np.asarray(statistics, np.float32).reshape(1, -1, 1, 1, 1)
