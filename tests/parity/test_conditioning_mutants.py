"""Faults of conditioning must break the contract: as test_mutants.py, for the two other pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from telecine import Condition, conditioning, media
from telecine.conditioning import Canvas, FirstFrame, TokenStrengths
from telecine.families.ltx_video import conditions, encode, image_to_video
from telecine.families.ltx_video.generation import Generation
from telecine.latents import pack
from telecine.noise import randn
from telecine.tiling import TilingOptions

RANDOM = np.random.default_rng(0)
IMAGE, OTHER = RANDOM.integers(0, 256, (2, 48, 80, 3), dtype=np.uint8)
VIDEO = RANDOM.integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)
SHARED: dict[str, Any] = {
    "prompt": "a red ball rolls to the left",
    "height": 64,
    "width": 96,
    "num_frames": 25,
    "num_inference_steps": 4,
    "seed": 0,
    "decode_timestep": 0.05,
    "decode_noise_scale": 0.025,
}
# A condition of each kind: in place, as extra tokens, both; firmly and softly held.
REQUEST: dict[str, Any] = SHARED | {
    "conditions": [
        Condition(image=IMAGE),
        Condition(image=OTHER, frame_index=20, strength=0.7),
        Condition(video=VIDEO, frame_index=8, strength=0.6),
    ]
}
IMAGE_REQUEST: dict[str, Any] = SHARED | {"image": IMAGE, "num_frames": 17}
MARGIN = 5  # as in test_mutants.py: caught by a margin, not by luck

Patch = Callable[[Any, str, Any], None]
Mutant = Callable[[Patch], None]
CONDITION_MUTANTS: dict[str, Mutant] = {}
IMAGE_MUTANTS: dict[str, Mutant] = {}


def mutant(name: str, table: dict[str, Mutant] = CONDITION_MUTANTS) -> Callable[[Mutant], Mutant]:
    def register(function: Mutant) -> Mutant:
        table[name] = function
        return function

    return register


def patch_add(patch: Patch, **change: Callable[[Any], Any]) -> None:
    """Change what conditions are put on the canvas with."""
    right = Canvas.add

    def wrong(self: Canvas, condition: np.ndarray, **options: Any) -> None:
        right(self, condition, **options | {name: make(options[name]) for name, make in change.items()})

    patch(Canvas, "add", wrong)


def patch_order(patch: Patch, *names: str) -> None:
    """Put the clip's frames before the extra ones in these properties of the canvas."""
    for name in names:
        right = getattr(Canvas, name).fget
        axis = 2 if name == "latents" else 0

        def wrong(self: Canvas, right: Any = right, axis: int = axis) -> np.ndarray:
            return np.roll(right(self), -self.extra_frames, axis=axis)

        patch(Canvas, name, property(wrong))


@mutant("frame offset of keyframes one off")
def _(patch: Patch) -> None:
    right = Canvas.first_frames.fget  # type: ignore[attr-defined]

    def wrong(self: Canvas) -> np.ndarray:
        return right(self) + (np.arange(len(right(self))) < self.extra_frames)

    patch(Canvas, "first_frames", property(wrong))


@mutant("frame times not causal")
def _(patch: Patch) -> None:
    patch(conditioning, "first_frames", lambda frames, ratio: np.arange(frames) * ratio)


@mutant("frames behind the prefix one latent early")
def _(patch: Patch) -> None:
    right = Canvas._mix
    patch(Canvas, "_mix", lambda self, start, *rest: right(self, max(start - 1, 0), *rest))


@mutant("mask inverted")
def _(patch: Patch) -> None:
    right = Canvas.strengths.fget  # type: ignore[attr-defined]
    patch(Canvas, "strengths", property(lambda self: 1 - right(self)))


@mutant("strength ignored")
def _(patch: Patch) -> None:
    patch_add(patch, strength=lambda strength: 1.0)


@mutant("strength ignored in the mask")
def _(patch: Patch) -> None:
    right = Canvas.strengths.fget  # type: ignore[attr-defined]
    patch(Canvas, "strengths", property(lambda self: np.ceil(right(self))))


@mutant("noise and condition swapped in the mix")
def _(patch: Patch) -> None:
    right = conditioning.lerp
    patch(conditioning, "lerp", lambda start, end, weight: right(start, end, 1 - weight))


@mutant("posterior's mode, not a sample")
def _(patch: Patch) -> None:
    patch(encode, "sample_posterior", lambda moments, noise: moments[:, :-1])


@mutant("encoded latents not normalised")
def _(patch: Patch) -> None:
    patch(encode, "normalize", lambda latents, *statistics: latents)


@mutant("draws reordered")
def _(patch: Patch) -> None:
    # Each condition's own noise before its posterior.
    right = Canvas.add
    drawn: list[np.ndarray] = []
    encode_right = conditions.encode

    def early(models: Any, host: Any, pixels: np.ndarray, generators: Any, tiling: Any) -> np.ndarray:
        shape = (1, 16, min((pixels.shape[2] - 1) // 8 + 1, 2), 2, 3)
        drawn.append(randn(generators, shape))
        return encode_right(models, host, pixels, generators, tiling)

    def wrong(self: Canvas, condition: np.ndarray, **options: Any) -> None:
        right(self, condition, **options | {"draw_noise": lambda shape: drawn[-1]})

    patch(conditions, "encode", early)
    patch(Canvas, "add", wrong)


@mutant("conditions in reverse")
def _(patch: Patch) -> None:
    right = conditions._items
    patch(conditions, "_items", lambda generation: right(generation)[::-1])


@mutant("keyframe tokens appended, not prepended")
def _(patch: Patch) -> None:
    patch_order(patch, "latents", "strengths", "first_frames")


@mutant("mask of keyframes behind the clip's")
def _(patch: Patch) -> None:
    patch_order(patch, "strengths")


@mutant("image noise by the sigma, not its square")
def _(patch: Patch) -> None:
    right = TokenStrengths.prepare
    patch(
        TokenStrengths,
        "prepare",
        lambda self, latents, timestep: right(self, latents, np.float32(np.sqrt(timestep * np.float32(1000)))),
    )


@mutant("image noise on the noised latents, not the first ones")
def _(patch: Patch) -> None:
    right = TokenStrengths.prepare

    def wrong(self: TokenStrengths, latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        self._initial = latents
        return right(self, latents, timestep)

    patch(TokenStrengths, "prepare", wrong)


@mutant("no image noise")
def _(patch: Patch) -> None:
    patch(TokenStrengths, "prepare", lambda self, latents, timestep: latents)


@mutant("one timestep for all tokens")
def _(patch: Patch) -> None:
    patch(
        TokenStrengths,
        "token_timesteps",
        lambda self, timestep: np.full(self.timestep_tokens, timestep, np.float32),
    )


@mutant("held tokens join at once")
def _(patch: Patch) -> None:
    patch(
        TokenStrengths,
        "step",
        lambda self, config, schedule, index, velocity, latents, noise: conditioning.step_tokens(
            config,
            schedule,
            np.full(self.timestep_tokens, schedule.timesteps[index]),
            velocity,
            latents,
            noise=noise,
        ),
    )


@mutant("schedule of the other pipelines")
def _(patch: Patch) -> None:
    patch(
        conditions,
        "linear_quadratic_sigmas",
        lambda steps: np.linspace(1, 1 / steps, steps, dtype=np.float32),
    )


@mutant("pads shown to T5")
def _(patch: Patch) -> None:
    right = Generation.embed_prompts
    patch(Generation, "embed_prompts", lambda self, stage, attend_pads: right(self, stage))


@mutant("resized bilinearly")
@mutant("resized bilinearly", IMAGE_MUTANTS)
def _(patch: Patch) -> None:
    from PIL import Image

    patch(
        media,
        "resize",
        lambda frames, height, width, kernel: np.stack(
            [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR)) for frame in frames]
        ),
    )


@mutant("first frame told as noisy", IMAGE_MUTANTS)
def _(patch: Patch) -> None:
    patch(FirstFrame, "token_timesteps", lambda self, timestep: np.full(self.timestep_tokens, timestep, np.float32))


@mutant("first frame stepped", IMAGE_MUTANTS)
def _(patch: Patch) -> None:
    patch(FirstFrame, "step", conditioning.Conditioning.step)


@mutant("last frame held, not the first", IMAGE_MUTANTS)
def _(patch: Patch) -> None:
    right = image_to_video._image_latents

    def wrong(generation: Any, images: np.ndarray) -> np.ndarray:
        latents = right(generation, images)
        return np.roll(latents, -latents.shape[1] // generation.latent.frames, axis=1)

    patch(image_to_video, "_image_latents", wrong)


@mutant("posterior's mode, not a sample", IMAGE_MUTANTS)
def _(patch: Patch) -> None:
    patch(encode, "sample_posterior", lambda moments, noise: moments[:, :-1])


@mutant("draws reordered", IMAGE_MUTANTS)
def _(patch: Patch) -> None:
    def wrong(generation: Any, images: np.ndarray) -> np.ndarray:
        noise = randn(generation.generators, generation.latent.array_shape(1, generation.host.latent_channels))
        noise[:, :, :1] = encode.encode(
            generation.models, generation.host, images, generation.generators, TilingOptions()
        )
        return pack(noise)

    patch(image_to_video, "_image_latents", wrong)


def test_the_unchanged_runtime_passes(condition_pair: Any, image_pair: Any) -> None:
    condition_pair.assert_same(**REQUEST)
    image_pair.assert_same(**IMAGE_REQUEST)


@pytest.fixture(scope="module")
def expected(condition_pair: Any, image_pair: Any) -> dict[str, np.ndarray]:
    """diffusers' frames: no mutant changes them."""
    return {"condition": condition_pair.run_theirs(**REQUEST), "image": image_pair.run_theirs(**IMAGE_REQUEST)}


@pytest.mark.parametrize("name", CONDITION_MUTANTS)
def test_a_wrong_condition_fails(
    condition_pair: Any, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    CONDITION_MUTANTS[name](monkeypatch.setattr)
    difference = condition_pair.compare(condition_pair.run_ours(**REQUEST), expected["condition"])
    assert difference.excess() >= MARGIN, f"{difference} would pass for right"


@pytest.mark.parametrize("name", IMAGE_MUTANTS)
def test_a_wrong_first_frame_fails(
    image_pair: Any, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    IMAGE_MUTANTS[name](monkeypatch.setattr)
    difference = image_pair.compare(image_pair.run_ours(**IMAGE_REQUEST), expected["image"])
    assert difference.excess() >= MARGIN, f"{difference} would pass for right"
