"""The README's clips as data: what `telecine` is asked for, what it is given, and which frames it should keep."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from demo_model.data import Scene, render
from demo_model.settings import FILE_FRAME_RATE, SETTINGS, options

ROOT = Path(__file__).parents[2]
FOLDER = "scripts/gallery"
BUNDLE = "bundles/demo"
DECODING = {name: SETTINGS[name] for name in ("decode_timestep", "decode_noise_scale")}

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A drawn clip of `frames` frames; `scale` enlarges the scene, as in `render`."""

    scene: Scene
    height: int = 96
    width: int = 96
    frames: int = 17
    scale: int = 1

    def pixels(self) -> Pixels:
        """(frames, height, width, 3) bytes."""
        drawn, _ = render(self.scene, frames=self.frames, height=self.height, width=self.width, scale=self.scale)
        return np.rint((drawn + 1) * 127.5).astype(np.uint8)


def _ball(colour: str, motion: str, background: str, velocity: float = 2.0) -> Scene:
    """A ball of middling size, in the middle of the room that its motion leaves."""
    return Scene(
        colour=colour,
        shape="circle",
        motion=motion,
        backgrounds=(background, background),
        vertical=True,
        speed="",
        radius=15.0,
        velocity=velocity,
        place=(0.5, 0.5),
    )


TO_THE_RIGHT = Drawing(_ball("red", "right", "dark green", velocity=2.4))
TO_THE_LEFT = Drawing(_ball("orange", "left", "dark blue", velocity=1.9), frames=25)
LARGE = Drawing(_ball("red", "left", "dark green"), height=192, width=192, scale=2)
WIDE = Drawing(_ball("red", "right", "dark green"), width=352)
# What the commands are given: a frame, or the first frames, of a drawing.
INPUTS: dict[str, tuple[Drawing, slice]] = {
    "left.png": (TO_THE_RIGHT, slice(0, 1)),
    "right.png": (TO_THE_RIGHT, slice(16, 17)),
    "start.gif": (TO_THE_LEFT, slice(0, 9)),
    "large.png": (LARGE, slice(0, 1)),
    "wide.png": (WIDE, slice(0, 1)),
}


def given(name: str) -> Pixels:
    """(frames, height, width, 3) bytes of an input."""
    drawing, frames = INPUTS[name]
    return drawing.pixels()[frames]


def path(name: str) -> str:
    """A file of the gallery as its commands spell it."""
    return f"{FOLDER}/{name}"


@dataclass(frozen=True, slots=True)
class Picture:
    """One clip: its file's name, its prompt, what differs from the demo model's settings, and more words.

    `kept`: inputs by the frame at which they stand in the clip.
    """

    name: str
    prompt: str
    change: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    kept: dict[int, str] = field(default_factory=dict)

    @property
    def file(self) -> str:
        return path(f"{self.name}.gif")

    def command(self, demo: list[str]) -> list[str]:
        """The command; `demo` stands for the demo model's settings, which `change` replaces by saying it later."""
        words = ["telecine", "generate", BUNDLE, *demo, "--prompt", self.prompt, *self.words]
        return [*words, *options({"seed": 0} | self.change), "-o", self.file]


@dataclass(frozen=True, slots=True)
class Upscaled:
    """One clip made twice as large by `telecine upscale`."""

    name: str
    source: str
    words: tuple[str, ...] = ("--adain-factor", "1")

    @property
    def file(self) -> str:
        return path(f"{self.name}.gif")

    def command(self, _: list[str]) -> list[str]:
        words = ["telecine", "upscale", BUNDLE, path(self.source), *self.words]
        return [*words, *options({"seed": 0} | DECODING), "-o", self.file]


DEMO = [*options(SETTINGS), "--file-frame-rate", str(FILE_FRAME_RATE)]
# The trained size is 96x96: at 192x192 more than a fifth of the steps makes two balls of one.
_SECOND_STAGE = tuple(
    word
    for setting in ("downscale_factor=0.5", "adain_factor=1", "denoise_strength=0.2", "num_inference_steps=25")
    for word in ("--second-stage", setting)
)
_SQUARE = "a purple square moves to the left over a light blue background"
_ON_BLACK = "a ball moves to the right over a black background"

PICTURES: tuple[Picture | Upscaled, ...] = (
    Picture("ball-left", "a red ball rolls to the left over a dark green floor"),
    Picture("square-up", "a yellow square drifts upwards, against a dark blue wall", {"seed": 3}),
    Picture("triangle-right", "an orange triangle slides to the right over a gray background"),
    Picture("ball-grows", "a white circle gets bigger over a background that fades from brown to black", {"seed": 1}),
    Picture("without-negative", _ON_BLACK, {"seed": 1}),
    Picture("with-negative", _ON_BLACK, {"seed": 1, "negative_prompt": "white"}),
    Picture("wide", "an orange triangle moves to the right over a dark blue background", {"width": 128}),
    Picture("long", "a purple triangle moves slowly down over a light blue background", {"num_frames": 25}),
    Picture(
        "first-frame",
        "a red ball rolls to the right over a dark green floor",
        words=("--image", path("left.png")),
        kept={0: "left.png"},
    ),
    Picture(
        "keyframes",
        "a red ball over a dark green floor",
        words=("--image", path("right.png@0"), "--image", path("left.png@16")),
        kept={0: "right.png", 16: "left.png"},
    ),
    Picture(
        "extended",
        "an orange ball rolls to the left over a dark blue floor",
        {"num_frames": 25, "image_cond_noise_scale": 0},
        ("--video", path("start.gif")),
        {0: "start.gif"},
    ),
    Picture(
        "two-stage",
        "a red ball moves to the left over a dark green background",
        {"height": 192, "width": 192},
        ("--image", path("large.png"), "--preset", "two-stage", *_SECOND_STAGE),
        {0: "large.png"},
    ),
    Upscaled("upscaled", "ball-left.gif"),
    Picture("without-stg", _SQUARE, {"seed": 2, "guidance_scale": 1}),
    Picture(
        "with-stg",
        _SQUARE,
        {"seed": 2, "guidance_scale": 1, "stg_scale": 1, "stg_mode": "attention_skip", "stg_blocks": 2},
    ),
    Picture(
        "tiled",
        "a red circle moves to the right over a dark green background",
        {"width": 352, "num_frames": 9, "tiling": "seamless", "tile_size": 224},
        ("--image", path("wide.png")),
        {0: "wide.png"},
    ),
)


def psnr(frames: Pixels, expected: Pixels) -> float:
    """Decibels between frames in bytes."""
    squared = float(np.square(frames.astype(np.float64) - expected).mean())
    return 10 * math.log10(255**2 / max(squared, 1e-9))
