"""A parity test that cannot fail proves nothing: each fault below, put into telecine, must break the contract.

A mutant replaces one function of the runtime by a wrong one; the comparison is the parity tests' own. The faults are
those that ports of video models have really had, and all leave a plausible video.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import telecine.guidance
from telecine.families import bound, vae
from telecine.families import text as text_module
from telecine.families.ltx_video import decode, generation, text_to_video
from telecine.families.ltx_video.host import Host
from telecine.families.vae import DecodeSettings
from telecine.noise import Generator, randn

# Everything that a fault could hide behind is unequal: height and width, prompts, decoder settings of the two videos.
REQUEST: dict[str, Any] = {
    "prompt": ["a red ball rolls to the left", "The old sailor walks through the quiet forest"],
    "negative_prompt": ["worst quality, blurry", "jittery"],
    "height": 64,
    "width": 96,
    "num_frames": 17,
    "frame_rate": 24,
    "num_inference_steps": 4,
    "seed": 0,
    "decode_timestep": [0.05, 0.1],
    "decode_noise_scale": [0.025, 0.05],
}
RESCALED = {"guidance_rescale": 0.7}
SEEDS = {"seed": [3, 8]}
BYTES = {"output_type": "uint8"}
# A fault must exceed one of the contract's two bounds this many times: caught by a margin, not by luck.
MARGIN = 5

Patch = Callable[[Any, str, Any], None]
Mutant = Callable[[Patch], None]
MUTANTS: dict[str, tuple[Mutant, dict[str, Any]]] = {}


def mutant(name: str, **change: Any) -> Callable[[Mutant], Mutant]:
    """Register a fault, and what the request needs to reach it."""

    def register(function: Mutant) -> Mutant:
        MUTANTS[name] = (function, change)
        return function

    return register


def patch_draws(patch: Patch, wrong: Callable[..., np.ndarray]) -> None:
    """Replace what draws from the request's generators."""
    for module in (text_to_video, decode):
        patch(module, "randn", wrong)


# Text


@mutant("text mask ignored")
def _(patch: Patch) -> None:
    right = generation.prompt_embeddings

    def wrong(*arguments: Any, **named: Any) -> Any:
        embeds, mask = right(*arguments, **named)
        return embeds, np.ones_like(mask)

    patch(generation, "prompt_embeddings", wrong)


@mutant("masks of negative and positive prompts swapped")
def _(patch: Patch) -> None:
    right = generation.prompt_embeddings

    def wrong(*arguments: Any, **named: Any) -> Any:
        embeds, mask = right(*arguments, **named)
        return embeds, np.concatenate(np.split(mask, 2)[::-1])

    patch(generation, "prompt_embeddings", wrong)


@mutant("negative prompt ignored")
def _(patch: Patch) -> None:
    right = generation.prompt_embeddings

    def wrong(models: Any, request: Any, *rest: Any, **named: Any) -> Any:
        return right(models, dataclasses.replace(request, negative_prompt=None), *rest, **named)

    patch(generation, "prompt_embeddings", wrong)


@mutant("pads masked out of T5")
def _(patch: Patch) -> None:
    # T5's position bias depends on distances alone: masking the pads is encoding the text without them.
    right = text_module._encode

    def wrong(models: Any, tokens: Any) -> Any:
        embeds, mask = right(models, tokens)
        embeds = np.zeros_like(embeds)
        ids = tokens.input_ids
        for row, used in enumerate(mask.sum(axis=1).astype(int)):
            unpadded = models.session("text_encoder").run({"input_ids": ids[row : row + 1, :used]})
            embeds[row, :used] = unpadded["prompt_embeds"][0]
        return embeds, mask

    patch(text_module, "_encode", wrong)


@mutant("prompts of a batch swapped")
def _(patch: Patch) -> None:
    right = text_module._tokenize
    patch(text_module, "_tokenize", lambda models, prompts, length: right(models, prompts[::-1], length))


# Guidance


@mutant("guidance order swapped")
def _(patch: Patch) -> None:
    right = telecine.guidance.classifier_free
    patch(telecine.guidance, "classifier_free", lambda uncond, cond, scale, out: right(cond, uncond, scale))


@mutant("guidance 3.05 for 3")
def _(patch: Patch) -> None:
    right = telecine.guidance.classifier_free
    patch(telecine.guidance, "classifier_free", lambda uncond, cond, scale, out: right(uncond, cond, scale + 0.05))


@mutant("guidance rescale ignored", **RESCALED)
def _(patch: Patch) -> None:
    patch(telecine.guidance, "rescale", lambda guided, cond, phi, out: guided)


@mutant("guidance rescale over the whole batch", **RESCALED)
def _(patch: Patch) -> None:
    right = telecine.guidance.deviation
    patch(telecine.guidance, "deviation", lambda values: right(values.reshape(1, -1)).repeat(len(values)))


# Positions


@mutant("frame rate off by one")
def _(patch: Patch) -> None:
    right = text_to_video.video_positions
    patch(text_to_video, "video_positions", lambda latent, grid, rate: right(latent, grid, rate + 1))


@mutant("frame times causal")
def _(patch: Patch) -> None:
    # As LTXConditionPipeline has them: the first latent holds one frame, so the others begin 7 frames earlier.
    right = text_to_video.video_positions

    def wrong(latent: Any, grid: Any, rate: float) -> Any:
        t, y, x = right(latent, grid, rate)
        return np.maximum(t - np.float32(7 / rate / 20), 0), y, x

    patch(text_to_video, "video_positions", wrong)


@mutant("rope axes swapped")
def _(patch: Patch) -> None:
    right = text_to_video.make_tables
    patch(
        text_to_video,
        "make_tables",
        lambda positions, index, frequencies: right(
            tuple(positions[axis] for axis in (0, 2, 1)), np.ascontiguousarray(index[:, [0, 2, 1]]), frequencies
        ),
    )


@mutant("rope padding dropped")
def _(patch: Patch) -> None:
    # The graph pads two pairs of columns in front; without them each column would have the angle of the one two
    # pairs on. Columns cycle through the axes (t, y, x): two on is the axis before, mostly at the next frequency.
    right = text_to_video.make_tables

    def two_pairs_on(table: np.ndarray, identity: float) -> np.ndarray:
        def following(axis: int) -> np.ndarray:
            return np.pad(table[axis, :, 1:], ((0, 0), (0, 1)), constant_values=identity)

        return np.stack([table[2], following(0), following(1)])

    def wrong(*arguments: Any) -> Any:
        tables = right(*arguments)
        return dataclasses.replace(
            tables,
            cos=two_pairs_on(tables.cos, 1),
            sin=two_pairs_on(tables.sin, 0),
            index=np.ascontiguousarray(tables.index[:, [2, 0, 1]]),
        )

    patch(text_to_video, "make_tables", wrong)


@mutant("rope sign flipped")
def _(patch: Patch) -> None:
    right = text_to_video.make_tables

    def wrong(*arguments: Any) -> Any:
        tables = right(*arguments)
        return dataclasses.replace(tables, sin=-tables.sin)

    patch(text_to_video, "make_tables", wrong)


# Schedule


def _reschedule(patch: Patch, **settings: Any) -> None:
    right = generation.make_schedule
    patch(
        generation,
        "make_schedule",
        lambda config, **options: right(dataclasses.replace(config, **settings), **options),
    )


@mutant("sigma shift off")
def _(patch: Patch) -> None:
    _reschedule(patch, use_dynamic_shifting=False)


@mutant("stretch to the terminal skipped")
def _(patch: Patch) -> None:
    _reschedule(patch, shift_terminal=None)


@mutant("shift of twice the tokens")
def _(patch: Patch) -> None:
    right = generation.calculate_shift
    patch(generation, "calculate_shift", lambda tokens, config: right(2 * tokens, config))


@mutant("sigmas down to 1/1000")
def _(patch: Patch) -> None:
    patch(generation, "pipeline_sigmas", lambda steps: np.linspace(1.0, 1 / 1000, steps))


@mutant("last step dropped")
def _(patch: Patch) -> None:
    right = generation.make_schedule

    def wrong(*arguments: Any, **options: Any) -> Any:
        schedule = right(*arguments, **options)
        return dataclasses.replace(schedule, timesteps=schedule.timesteps[:-1], sigmas=schedule.sigmas[:-1])

    patch(generation, "make_schedule", wrong)


@mutant("network told the sigma, not the timestep")
def _(patch: Patch) -> None:
    right = bound.BoundTransformer.__call__
    patch(
        bound.BoundTransformer,
        "__call__",
        lambda self, latents, timestep, *rest: right(self, latents, timestep / 1000, *rest),
    )


@mutant("network told whole timesteps")
def _(patch: Patch) -> None:
    right = bound.BoundTransformer.__call__
    patch(
        bound.BoundTransformer,
        "__call__",
        lambda self, latents, timestep, *rest: right(self, latents, int(timestep), *rest),
    )


# Noise


@mutant("draws reordered")
def _(patch: Patch) -> None:
    # The decoder's noise first, the initial noise second.
    drawn: list[np.ndarray] = []

    def wrong(generators: list[Generator], shape: tuple[int, ...]) -> np.ndarray:
        if not drawn:
            drawn.append(randn(generators[0], shape))
            return randn(generators[0], shape)
        return drawn[0]

    patch_draws(patch, wrong)


@mutant("initial noise drawn packed")
def _(patch: Patch) -> None:
    def wrong(run: Any) -> np.ndarray:
        return randn(run.generators[0], (run.request.videos, run.latent.tokens, run.host.latent_channels))

    patch(text_to_video, "_noise", wrong)


@mutant("noise from NumPy's own generator")
def _(patch: Patch) -> None:
    patch_draws(
        patch,
        lambda generators, shape: np.random.default_rng(REQUEST["seed"]).standard_normal(shape, dtype=np.float32),
    )


@mutant("listed seeds in reverse", **SEEDS)
def _(patch: Patch) -> None:
    patch_draws(patch, lambda generators, shape: randn(generators[::-1], shape))


@mutant("first seed for every video", **SEEDS)
def _(patch: Patch) -> None:
    patch_draws(patch, lambda generators, shape: randn(generators[:1], shape))


# Decoding


@mutant("unpack transposed")
def _(patch: Patch) -> None:
    right = text_to_video.unpack

    def wrong(tokens: np.ndarray, latent: Any) -> np.ndarray:
        flipped = dataclasses.replace(latent, height=latent.width, width=latent.height)
        return np.ascontiguousarray(right(tokens, flipped).swapaxes(3, 4))

    patch(text_to_video, "unpack", wrong)


@mutant("denormalise skipped")
def _(patch: Patch) -> None:
    patch(Host, "denormalize", lambda self, latents: latents)


@mutant("decode noise omitted")
def _(patch: Patch) -> None:
    patch(decode, "mix_decode_noise", lambda latents, noise, scale: latents)


@mutant("decode noise added, not mixed")
def _(patch: Patch) -> None:
    patch(
        decode,
        "mix_decode_noise",
        lambda latents, noise, scale: latents + scale.reshape(-1, 1, 1, 1, 1) * noise,
    )


@mutant("decode noise before denormalising")
def _(patch: Patch) -> None:
    right, denormalize = decode.mix_decode_noise, Host.denormalize
    hosts: list[Host] = []

    def later(self: Host, latents: np.ndarray) -> np.ndarray:
        hosts.append(self)
        return latents

    patch(Host, "denormalize", later)
    patch(decode, "mix_decode_noise", lambda *arguments: denormalize(hosts[-1], right(*arguments)))


@mutant("decode timestep ignored")
def _(patch: Patch) -> None:
    right = DecodeSettings.of

    def wrong(*arguments: Any) -> Any:
        settings = right(*arguments)
        return dataclasses.replace(settings, timestep=np.zeros_like(settings.timestep))

    patch(DecodeSettings, "of", wrong)


@mutant("decode noise scale ignored")
def _(patch: Patch) -> None:
    right = DecodeSettings.of

    def wrong(*arguments: Any) -> Any:
        settings = right(*arguments)
        return dataclasses.replace(settings, noise_scale=settings.timestep)

    patch(DecodeSettings, "of", wrong)


@mutant("first video's decoder settings for both")
def _(patch: Patch) -> None:
    right = DecodeSettings.of

    def wrong(*arguments: Any) -> Any:
        settings = right(*arguments)
        timestep, scale = (np.full_like(each, each[0]) for each in (settings.timestep, settings.noise_scale))
        return dataclasses.replace(settings, timestep=timestep, noise_scale=scale)

    patch(DecodeSettings, "of", wrong)


@mutant("bytes cut off, not rounded", **BYTES)
def _(patch: Patch) -> None:
    patch(vae, "to_uint8", lambda frames: (frames * 255).astype(np.uint8))


@pytest.mark.parametrize("change", [{}, RESCALED, SEEDS, BYTES], ids=["as-is", "rescaled", "seeds", "bytes"])
def test_the_unchanged_runtime_passes(pair: Any, change: dict[str, Any]) -> None:
    pair.assert_same(**REQUEST | change)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_runtime_fails(pair: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    mutate, change = MUTANTS[name]
    mutate(monkeypatch.setattr)
    difference = pair.difference(**REQUEST | change)
    assert difference.excess() >= MARGIN, f"{difference} would pass for right"


def test_a_wrong_runtime_fails_the_parity_test_itself(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, change = MUTANTS["guidance 3.05 for 3"]  # the faintest of them
    mutate(monkeypatch.setattr)
    with pytest.raises(AssertionError, match="breaks the contract"):
        pair.assert_same(**REQUEST | change)
