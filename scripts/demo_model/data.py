"""Synthetic clips of one coloured shape that moves over a plain or graded background, and their captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 40),
    "orange": (250, 140, 20),
    "yellow": (248, 228, 50),
    "green": (40, 185, 70),
    "blue": (45, 85, 235),
    "purple": (155, 55, 205),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
MOTIONS = (*DIRECTIONS, "bounce", "grow")
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 16),
    "gray": (115, 118, 122),
    "dark blue": (25, 32, 85),
    "dark green": (20, 70, 42),
    "brown": (95, 62, 40),
    "beige": (214, 198, 164),
    "light blue": (160, 200, 228),
}
MIN_CONTRAST = 120.0  # least distance between an object's colour and its background, of 441

NOUNS = {
    "circle": ("circle", "circle", "ball", "disc"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
}
VERBS = {
    "circle": ("moves", "slides", "glides", "travels", "drifts", "rolls"),
    "square": ("moves", "slides", "glides", "travels", "drifts"),
    "triangle": ("moves", "slides", "glides", "travels", "drifts"),
}
WAYS = {
    "left": ("to the left", "left", "leftwards", "from right to left", "towards the left"),
    "right": ("to the right", "right", "rightwards", "from left to right", "towards the right"),
    "up": ("up", "upwards", "to the top", "from bottom to top"),
    "down": ("down", "downwards", "to the bottom", "from top to bottom"),
}
SPEEDS = {"slowly": (1.0, 1.6), "": (1.6, 2.5), "quickly": (2.5, 3.2)}  # pixels a frame


@dataclass(frozen=True, slots=True)
class Scene:
    """One clip before it is drawn: what the caption says, and what it leaves open."""

    colour: str
    shape: str
    motion: str
    backgrounds: tuple[str, str]  # the same twice, or a gradient from the first to the second
    vertical: bool  # which way the gradient runs
    speed: str
    radius: float
    velocity: float
    place: tuple[float, float]  # in [0, 1]: where in the room that the motion leaves


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether no clip of this combination is ever trained: one in five, spread evenly over each of the three."""
    key = list(COLOURS).index(colour) + 2 * SHAPES.index(shape) + 3 * MOTIONS.index(motion)
    return motion in DIRECTIONS and key % 5 == 0


def combinations(*, held_out: bool) -> list[tuple[str, str, str]]:
    """The (colour, shape, motion) that are trained, or those kept for the test."""
    return [c for c in product(COLOURS, SHAPES, MOTIONS) if is_held_out(*c) == held_out]


def background_choices(colour: str) -> list[str]:
    """The backgrounds that this colour is seen against."""
    own = np.array(COLOURS[colour], dtype=np.float64)
    return [name for name, value in BACKGROUNDS.items() if np.linalg.norm(own - value) >= MIN_CONTRAST]


def sample_scene(rng: np.random.Generator, choices: list[tuple[str, str, str]]) -> Scene:
    colour, shape, motion = choices[rng.integers(len(choices))]
    grounds = background_choices(colour)
    first = grounds[rng.integers(len(grounds))]
    second = grounds[rng.integers(len(grounds))] if rng.random() < 0.3 else first
    speed = ("", "", "slowly", "quickly")[rng.integers(4)]
    return Scene(
        colour=colour,
        shape=shape,
        motion=motion,
        backgrounds=(first, second),
        vertical=bool(rng.random() < 0.5),
        speed=speed,
        radius=float(rng.uniform(12.0, 18.0)),
        velocity=float(rng.uniform(*SPEEDS[speed])),
        place=(float(rng.random()), float(rng.random())),
    )


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of many sentences that describe the scene."""

    def pick(options: tuple[str, ...]) -> str:
        return options[rng.integers(len(options))]

    subject = f"{pick(('a', 'a', 'the', 'one'))} {scene.colour} {pick(NOUNS[scene.shape])}"
    if subject.startswith("a orange"):
        subject = "an" + subject[1:]
    subject = pick(("", "", "", "a video of ", "a clip of ")) + subject
    if scene.motion == "bounce":
        words = [pick(("bounces", "bounces up and down", "is bouncing", "jumps up and down"))]
    elif scene.motion == "grow":
        words = [pick(("grows", "gets bigger", "is growing", "grows larger"))]
    else:
        verb = pick(VERBS[scene.shape])
        if rng.random() < 0.25:
            verb = "is " + (verb[:-1].removesuffix("e") + "ing")
        words = [verb, pick(WAYS[scene.motion])]
    if scene.speed:
        words.insert(1 if rng.random() < 0.5 else len(words), scene.speed)
    sentence = " ".join([subject, *words])
    if rng.random() < 0.85:
        sentence += _setting(scene, pick)
    if rng.random() < 0.3:
        sentence = sentence[0].upper() + sentence[1:]
    return sentence + ("." if rng.random() < 0.3 else "")


def _setting(scene: Scene, pick: Callable[[tuple[str, ...]], str]) -> str:
    first, second = scene.backgrounds
    if first != second:
        fades = f" over a background that fades from {first} to {second}"
        return pick((fades, f" over a gradient of {first} and {second}"))
    return pick(
        (
            f" over a {first} background",
            f" on a {first} background",
            f" against a {first} wall",
            f" over a {first} floor",
            f" in front of a {first} background",
            f" on {first}",
        )
    )


def paths(scene: Scene, frames: int, height: int, width: int) -> tuple[Array, Array, Array]:
    """The object's centre x, y (frames,) in pixels and its radius (frames,)."""
    time = np.arange(frames, dtype=np.float32)
    radius: Array = np.full(frames, scene.radius, dtype=np.float32)
    if scene.motion == "grow":
        growth = 10.0 * scene.velocity / 2.0
        radius = (scene.radius - growth / 2 + growth * time / max(frames - 1, 1)).astype(np.float32)
    reach = float(radius.max()) * 1.1 + 1.0
    centre = []
    for axis, size in enumerate((width, height)):
        low, high = min(reach, size / 2), max(size - reach, size / 2)
        step = DIRECTIONS.get(scene.motion, (0, 0))[axis] * scene.velocity
        room = high - low
        travel = float(np.clip(step * (frames - 1), -room, room))
        start = low + max(-travel, 0.0) + scene.place[axis] * (room - abs(travel))
        centre.append(start + travel * time / max(frames - 1, 1))
    if scene.motion == "bounce":
        low, high = min(reach, height / 2), max(height - reach, height / 2)
        hop = min(24.0, high - low)
        ground = low + hop + scene.place[1] * (high - low - hop)
        centre[1] = ground - hop * np.abs(np.sin(np.pi * time / (14.0 / scene.velocity * 2.0)))
    return centre[0].astype(np.float32), centre[1].astype(np.float32), radius.astype(np.float32)


def distance(shape: str, x: Array, y: Array, radius: Array) -> Array:
    """Signed distance in pixels, negative inside, of offsets (...) from the centre; y points down.

    The radii give the three shapes about the same area.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    inner = 0.75 * radius  # inradius of the equilateral triangle, apex up, that spans 1.5 to -0.75 radii
    y = y - 0.15 * radius
    return np.maximum(0.8660254 * np.abs(x) - 0.5 * y, y) - inner


def render(scene: Scene, *, frames: int, height: int, width: int, scale: int = 1) -> tuple[Array, Array]:
    """Draw (frames, height, width, 3) in [-1, 1], and the object's mask (frames, height, width, 1) in [0, 1].

    `scale` enlarges the scene of height/scale by width/scale pixels: the same picture in more pixels.
    """
    x, y, radius = (scale * value[:, None, None] for value in paths(scene, frames, height // scale, width // scale))
    rows = (np.arange(height, dtype=np.float32) + 0.5)[None, :, None]
    columns = (np.arange(width, dtype=np.float32) + 0.5)[None, None, :]
    mask = np.clip(0.5 - distance(scene.shape, columns - x, rows - y, radius) / 1.5, 0.0, 1.0)[..., None]
    first, second = (np.array(BACKGROUNDS[name], dtype=np.float32) for name in scene.backgrounds)
    ramp = rows / height if scene.vertical else columns / width
    ground = first + (second - first) * ramp[..., None]
    picture = ground + (np.array(COLOURS[scene.colour], dtype=np.float32) - ground) * mask
    return (picture / 127.5 - 1.0).astype(np.float32), mask.astype(np.float32)
