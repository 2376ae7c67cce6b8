"""Checks of the graphs without weights: against the host's NumPy, which the run's own stages hold against torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from telecine.bundle import Bundle
from telecine.families.cogvideox.host import Host as CogVideoXHost
from telecine.families.ltx_video.host import Host as LtxVideoHost
from telecine.guidance import StepGuidance
from telecine.latents import mix_decode_noise
from telecine.linear_step import LinearStep
from telecine.pixels import to_uint8, to_unit_range
from telecine_export.source import Source
from telecine_export.verify.checks import Array, open_session
from telecine_export.verify.comparison import Pair

GUIDED = (
    StepGuidance(),
    StepGuidance(scale=3.0),
    StepGuidance(scale=5.0, rescale=0.7, cfg_star=True),
    StepGuidance(scale=3.0, rescale=0.7, stg_scale=1.0, stg_blocks=(0,)),
)
# Of latents: (videos, tokens, channels) of a step, and (videos, frames, height, width).
STEPPED = ((1, 24, 8), (2, 35, 128), (3, 1, 960))
DECODED = ((1, 1, 2, 3), (2, 4, 5, 6), (3, 2, 3, 4))
SEED = 0


def denoise_step(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, T, C) latents, and clean ones, after steps with a weight for each token, by every kind of guidance."""
    random = np.random.default_rng(SEED)
    pairs = []
    with open_session(bundle, "denoise_step") as session:
        for guided in GUIDED:
            for shape in STEPPED:
                sample, noise, anchor = (_normal(random, *shape) for _ in range(3))
                predictions = _normal(random, len(guided.passes), *shape)
                a, b, c, d, e, f = random.uniform(-1, 1, (6, shape[1]))
                step = LinearStep(sample=a, prediction=b, noise=c, anchor=d, denoised_sample=e, denoised_prediction=f)
                feeds = {
                    "predictions": predictions, "guidance": guided.weights(),
                    "rescale": np.array([guided.rescaled], np.float32), "sample": sample, "noise": noise,
                    "anchor": anchor, "coefficients": step.coefficients(shape[1]),
                }  # fmt: skip
                made = session.run(feeds)
                combined = guided.combine(predictions.reshape(-1, *shape[1:]).copy())
                expected = np.concatenate(step.apply(sample, combined, noise, anchor))
                case = f"{'+'.join(guided.passes)}, {' x '.join(map(str, shape))}"
                pairs.append(_pair(case, feeds, np.concatenate([made["latents"], made["denoised"]]), expected))
    return pairs


def decoder_latents(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, C, F, H, W) latents for the decoder."""
    host: LtxVideoHost | CogVideoXHost
    if bundle.manifest.family == "cogvideox":
        host, order = CogVideoXHost.parse(bundle.manifest.host), (0, 2, 1, 3, 4)
    else:
        host, order = LtxVideoHost.parse(bundle.manifest.host), (0, 4, 1, 2, 3)
    random = np.random.default_rng(SEED)
    scale, shift = host.to_decoder()
    pairs = []
    with open_session(bundle, "decoder_latents") as session:
        for batch, *sides in DECODED:
            latents = _normal(random, batch, host.latent_channels, *sides)
            given = np.ascontiguousarray(latents.transpose(np.argsort(order)))
            expected = host.denormalize(latents)
            feeds = {"latents": given, "scale": scale, "shift": shift}
            if "noise" in session.inputs:
                noise, share = _normal(random, *latents.shape), random.uniform(0, 1, batch).astype(np.float32)
                feeds |= {"noise": noise, "noise_scale": share}
                expected = mix_decode_noise(expected, noise, share)
            made = session.run(feeds)["decoder_latents"]
            pairs.append(_pair(f"{batch} x {' x '.join(map(str, sides))} latents", feeds, made, expected))
    return pairs


def uint8_frames(bundle: Bundle, source: Source) -> list[Pair]:
    """(B, F, H, W, 3) bytes of random videos, as numbers."""
    random = np.random.default_rng(SEED)
    pairs = []
    with open_session(bundle, "uint8_frames") as session:
        for batch, *sides in DECODED:
            video = _normal(random, batch, 3, *sides)
            made, expected = session.run({"video": video})["frames"], to_uint8(to_unit_range(video))
            case = f"{batch} x {' x '.join(map(str, sides))} pixels"
            pairs.append(_pair(case, {"video": video}, made.astype(np.float32), expected.astype(np.float32)))
    return pairs


def _pair(case: str, feeds: dict[str, Any], got: Array, expected: Array) -> Pair:
    return Pair(case=case, shapes={name: feed.shape for name, feed in feeds.items()}, got=got, expected=expected)


def _normal(random: np.random.Generator, *shape: int) -> Array:
    return random.standard_normal(shape, dtype=np.float32)


WEIGHTLESS = {"denoise_step": denoise_step, "decoder_latents": decoder_latents, "uint8_frames": uint8_frames}
