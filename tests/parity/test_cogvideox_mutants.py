"""Each fault below, put into telecine's CogVideoX, must break the contract that test_cogvideox.py holds.

A mutant replaces one function of the runtime by a wrong one; the comparison is the parity tests' own. The faults are
those that ports of CogVideoX have really had, and all leave a plausible video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from diffusers import CogVideoXVideoToVideoPipeline

import telecine.guidance
from telecine.families import text as text_module
from telecine.families.cogvideox import generation, guidance, image_to_video, positions, vae, video_to_video
from telecine.families.cogvideox.chunks import Half
from telecine.families.cogvideox.host import Host
from telecine.families.cogvideox.positions import Rope, Sincos
from telecine.noise import Generator, randn
from telecine.schedulers import cogvideox as scheduler
from telecine.schedulers import cogvideox_ddim, cogvideox_dpm
from telecine.schedulers.cogvideox import CogVideoXSchedule

# Everything that a fault could hide behind is unequal.
REQUEST: dict[str, Any] = {
    "prompt": ["a red ball rolls to the left", "The old sailor walks through the quiet forest"],
    "negative_prompt": ["worst quality, blurry", "jittery"],
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 4,
    "seed": 0,
}
IMAGES = [np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8) for seed in range(2)]
CLIP = np.random.default_rng(2).integers(0, 256, (9, 40, 60, 3), dtype=np.uint8)
# A fault must exceed one of the contract's two bounds this many times: caught by a margin, not by luck.
MARGIN = 5

# Of each kind of fault, and of each style: the others are slow tests.
QUICK = {
    "guidance order swapped",
    "dynamic guidance by the step's index",
    "a step ends where the next begins",
    "SNR not shifted",
    "DPM draws once a step",
    "a stretched grid that reaches its end",
    "sinusoids of rows and columns swapped",
    "an offset of 1",
    "frames dropped from the end",
    "noise drawn before the image",
    "each chunk by itself",
    "strength a step short",
}

Patch = Callable[[Any, str, Any], None]
Mutant = Callable[[Patch], None]
MUTANTS: dict[str, tuple[Mutant, str, str, dict[str, Any]]] = {}


def mutant(name: str, style: str = "5b", kind: str = "ddim", **change: Any) -> Callable[[Mutant], Mutant]:
    """Register a fault, the style and scheduler that reach it, and what of the request."""

    def register(function: Mutant) -> Mutant:
        MUTANTS[name] = (function, style, kind, change)
        return function

    return register


# Text and guidance


@mutant("guidance order swapped")
def _(patch: Patch) -> None:
    right = telecine.guidance.classifier_free
    patch(telecine.guidance, "classifier_free", lambda uncond, cond, scale, out: right(cond, uncond, scale))


@mutant("negative prompt ignored")
def _(patch: Patch) -> None:
    right = generation.prompt_embeddings

    def wrong(models: Any, request: Any, *rest: Any, **named: Any) -> Any:
        return right(models, dataclasses.replace(request, negative_prompt=None), *rest, **named)

    patch(generation, "prompt_embeddings", wrong)


@mutant("pads masked out of T5")
def _(patch: Patch) -> None:
    patch(text_module, "_encode", text_module._encode_unpadded)


@mutant("dynamic guidance by the fourth power", use_dynamic_cfg=True)
def _(patch: Patch) -> None:
    patch(guidance, "dynamic_scale", lambda scale, t, n: 1 + scale * (1 - np.cos(np.pi * ((n - t) / n) ** 4)) / 2)


@mutant("dynamic guidance by the step's index", use_dynamic_cfg=True)
def _(patch: Patch) -> None:
    right = guidance.dynamic_scale
    patch(guidance, "dynamic_scale", lambda scale, t, n: right(scale, int(t / 1000 * n), n))


# Schedules


@mutant("a step ends where the next begins", num_inference_steps=7)
def _(patch: Patch) -> None:
    def wrong(schedule: CogVideoXSchedule, index: int) -> np.float64:
        last = index == len(schedule.timesteps) - 1
        return np.float64(schedule.final_level) if last else schedule.level(index + 1)

    patch(CogVideoXSchedule, "next_level", wrong)


@mutant("SNR not rescaled to zero")
def _(patch: Patch) -> None:
    right = scheduler.noise_levels
    patch(scheduler, "noise_levels", lambda config: right(dataclasses.replace(config, rescale_betas_zero_snr=False)))


@mutant("SNR not shifted", "2b")
def _(patch: Patch) -> None:
    right = scheduler.noise_levels
    patch(scheduler, "noise_levels", lambda config: right(dataclasses.replace(config, snr_shift_scale=1.0)))


@mutant("timesteps spaced as leading")
def _(patch: Patch) -> None:
    right = scheduler._timesteps
    patch(
        scheduler,
        "_timesteps",
        lambda config, count: right(dataclasses.replace(config, timestep_spacing="leading"), count),
    )


@mutant("v taken for epsilon")
def _(patch: Patch) -> None:
    def wrong(schedule: Any, index: int, prediction: np.ndarray, sample: np.ndarray) -> np.ndarray:
        level = max(schedule.level(index), 1e-2)
        return ((sample - np.sqrt(1 - level) * prediction) / np.sqrt(level)).astype(np.float32)

    patch(cogvideox_ddim, "predict_original", wrong)


@mutant("DPM draws once a step", kind="dpm")
def _(patch: Patch) -> None:
    right = cogvideox_dpm.step

    def wrong(*arguments: Any, draw_noise: Any, **named: Any) -> Any:
        once = draw_noise()
        return right(*arguments, draw_noise=lambda: once, **named)

    patch(cogvideox_dpm, "step", wrong)


@mutant("DPM forgets the step before", kind="dpm")
def _(patch: Patch) -> None:
    right = cogvideox_dpm.coefficients
    patch(cogvideox_dpm, "coefficients", lambda *arguments: right(*arguments)._replace(now=1.0, before=0.0))


@mutant("DDIM for DPM", kind="dpm")
def _(patch: Patch) -> None:
    right = generation.CogVideoXSampler
    patch(generation, "CogVideoXSampler", lambda _, *rest: right(scheduler.DDIM, *rest))


# Positions


@mutant("rotary rows and columns swapped")
def _(patch: Patch) -> None:
    right = Rope.axes

    def wrong(rope: Rope, place: Any) -> Any:
        frames, rows, columns = right(rope, place)
        return frames, np.resize(columns, rows.shape), np.resize(rows, columns.shape)

    patch(Rope, "axes", wrong)


@mutant("a grid counted instead of stretched", height=48, width=48)
def _(patch: Patch) -> None:
    patch(Rope, "axes", lambda rope, place: tuple(np.arange(count, dtype=np.float32) for count in place))


@mutant("a stretched grid that reaches its end", height=48, width=48)
def _(patch: Patch) -> None:
    right = positions.linspace
    patch(positions, "linspace", lambda start, stop, n: right(start, stop * n / (n - 1) if n > 1 else stop, n))


@mutant("sinusoids of rows and columns swapped", "2b")
def _(patch: Patch) -> None:
    right = Sincos.inputs

    def wrong(sincos: Sincos, place: Any) -> Any:
        tables = right(sincos, place)
        rows, columns = tables["position_rows"], tables["position_columns"]
        return tables | {
            "position_rows": np.resize(columns, rows.shape), "position_columns": np.resize(rows, columns.shape)
        }  # fmt: skip

    patch(Sincos, "inputs", wrong)


@mutant("sinusoids not scaled", "2b")
def _(patch: Patch) -> None:
    right = positions.sinusoids
    patch(positions, "sinusoids", lambda count, scale, size: right(count, 1.0, size))


@mutant("an offset of 1", "1.5-5b-I2V", image=IMAGES)
def _(patch: Patch) -> None:
    patch_host(patch, ofs=1.0)


def patch_host(patch: Patch, **changes: Any) -> None:
    right = Host.parse
    patch(generation.Host, "parse", lambda host: dataclasses.replace(right(host), **changes))


# Latents and draws


@mutant("noise drawn as (B, C, F, H, W)")
def _(patch: Patch) -> None:
    def wrong(generators: list[Generator], shape: tuple[int, ...]) -> np.ndarray:
        batch, frames, channels, *sides = shape
        return np.ascontiguousarray(randn(generators, (batch, channels, frames, *sides)).swapaxes(1, 2))

    patch(generation, "randn", wrong)


@mutant("latents decoded at the transformer's scale")
def _(patch: Patch) -> None:
    patch(Host, "denormalize", lambda host, latents: latents)


@mutant("frames dropped from the end", "1.5-5b")
def _(patch: Patch) -> None:
    right = generation.decode
    patch(generation, "decode", lambda models, host, latents, *others: right(models, host, wrong(latents), *others))

    def wrong(latents: np.ndarray) -> np.ndarray:
        whole = latents.base if latents.base is not None else latents
        return whole[:, : latents.shape[1]]


@mutant("the image's scale not inverted", "1.5-5b-I2V", image=IMAGES, num_frames=13)
def _(patch: Patch) -> None:
    patch_host(patch, invert_scale_latents=False)


@mutant("an image at every frame", "5b-I2V", image=IMAGES)
def _(patch: Patch) -> None:
    right = image_to_video._image_latents

    def wrong(*arguments: Any) -> np.ndarray:
        latents = right(*arguments)
        latents[:] = latents[:, :1]
        return latents

    patch(image_to_video, "_image_latents", wrong)


@mutant("the posterior's mean for a sample", "5b-I2V", image=IMAGES)
def _(patch: Patch) -> None:
    def wrong(moments: np.ndarray, generator: Generator) -> np.ndarray:
        mean = np.split(moments, 2, axis=1)[0]
        generator.randn(mean.shape)
        return mean

    patch(vae, "sample_posterior", wrong)


@mutant("noise drawn before the image", "5b-I2V", image=IMAGES)
def _(patch: Patch) -> None:
    right, drawn = image_to_video._image_latents, []

    def encode_after_noise(made: Any, *rest: Any) -> np.ndarray:
        drawn.append(right_noise(made))
        return right(made, *rest)

    right_noise = generation.Generation.noise
    patch(image_to_video, "_image_latents", encode_after_noise)
    patch(generation.Generation, "noise", lambda made: drawn.pop() if drawn else right_noise(made))


# Chunks


@mutant("caches of the first chunk kept", num_frames=25)
def _(patch: Patch) -> None:
    right = Half.run

    def wrong(half: Half, models: Any, source: np.ndarray) -> Any:
        first = half.chunks(source.shape[2])[0].stop
        pieces = list(right(half, models, source[:, :, : first + half.size]))
        yield from pieces
        for start in range(first + half.size, source.shape[2], half.size):
            later = np.concatenate([source[:, :, :first], source[:, :, start : start + half.size]], axis=2)
            yield list(right(half, models, later))[-1]

    patch(Half, "run", wrong)


@mutant("each chunk by itself", num_frames=17)
def _(patch: Patch) -> None:
    right = Half.run

    def wrong(half: Half, models: Any, source: np.ndarray) -> Any:
        for _, start, stop in half.chunks(source.shape[2]):
            yield from right(half, models, source[:, :, start:stop])

    patch(Half, "run", wrong)


@mutant("strength a step short", video=CLIP, strength=0.75)
def _(patch: Patch) -> None:
    right = CogVideoXSchedule.last_steps
    patch(CogVideoXSchedule, "last_steps", lambda schedule, strength: right(schedule, strength - 1 / 4))


@mutant("noise added by a sigma", video=CLIP, strength=0.5)
def _(patch: Patch) -> None:
    def wrong(schedule: CogVideoXSchedule, original: np.ndarray, noise: np.ndarray) -> np.ndarray:
        sigma = schedule.sigmas[0]
        return (1 - sigma) * original + sigma * noise

    patch(video_to_video, "add_noise", wrong)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in MUTANTS]
)
def test_a_fault_breaks_parity(name: str, cogvideox_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, style, kind, change = MUTANTS[name]
    request = REQUEST | change
    pipeline = CogVideoXVideoToVideoPipeline if "video" in change else None
    if pipeline is not None:
        del request["num_frames"]
    pair = cogvideox_pair(style, kind, pipeline)
    theirs = pair.run_theirs(**request)
    mutate(monkeypatch.setattr)
    broken = pair.compare(pair.run_ours(**request), theirs)
    assert broken.excess() >= MARGIN, f"{name} goes unseen: {broken}"


@pytest.mark.parametrize("style", ["2b", "5b", "5b-I2V", "1.5-5b", "1.5-5b-I2V"])
def test_the_request_itself_is_within_the_contract(style: str, cogvideox_pair: Callable[..., Any]) -> None:
    """Or the mutants would be caught for another reason."""
    image = {"image": IMAGES} if style.endswith("I2V") else {}
    cogvideox_pair(style).assert_same(**REQUEST | image)
