"""The README's clips: its own commands, run on the demo model, keep the frames that they are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from demo_model.gallery import BUNDLE, DEMO, INPUTS, PICTURES, ROOT, Picture, given, path, psnr

from telecine.cli import main
from telecine.media import load_image, load_video

Frames = npt.NDArray[np.uint8]
Make = Callable[..., Frames]

# Decibels. What the demo model's VAE makes of these drawn frames by itself is from 28 to 35; a ball that has moved by
# its own width is at 15.
KEPT = 25.0
CLIPS = {picture.name: picture for picture in PICTURES if isinstance(picture, Picture)}


@pytest.fixture
def make(demo_upscaler_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(picture, *more options)`: the (F, H, W, 3) frames that its command makes, as PNGs, which lose nothing."""
    monkeypatch.chdir(ROOT)
    places = iter(range(10))

    def run(picture: Picture, *more: str) -> Frames:
        folder = tmp_path / str(next(places))
        demo = DEMO[: DEMO.index("--file-frame-rate")]
        words = [*picture.command(demo)[1:-2], *more, "-o", str(folder / "%05d.png")]
        words[words.index(BUNDLE)] = str(demo_upscaler_bundle)
        done = CliRunner().invoke(main, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return np.stack([load_image(file) for file in sorted(folder.iterdir())])

    return run


def test_the_inputs_are_what_is_drawn() -> None:
    """But for a GIF's palette."""
    for name in INPUTS:
        file = ROOT / path(name)
        frames = np.stack([load_image(file)] if file.suffix == ".png" else load_video(file)[0])
        assert frames.shape == given(name).shape, name
        assert psnr(frames, given(name)) > 35, name


@pytest.mark.parametrize("name", [name for name, picture in CLIPS.items() if picture.kept])
def test_given_frames_are_kept(name: str, make: Make, record_property: Callable[[str, object], None]) -> None:
    picture = CLIPS[name]
    clip = make(picture)
    for index, file in picture.kept.items():
        expected = given(file)
        decibels = [psnr(*pair) for pair in zip(clip[index : index + len(expected)], expected, strict=True)]
        record_property("measured", f"{name}: {file} at frame {index}: {min(decibels):.1f} dB PSNR")
        assert min(decibels) >= KEPT
    assert psnr(clip[-1], clip[0]) < min(decibels) - 3, "nothing moves"


def test_the_last_keyframe_leads(make: Make) -> None:
    """Without it, the ball stays where it is: the prompt does not say that it moves."""
    picture = CLIPS["keyframes"]
    alone = make(Picture("alone", picture.prompt, picture.change, ("--image", path("right.png@0"))))
    assert psnr(alone[16], given("left.png")[0]) < KEPT - 7


def test_spatio_temporal_guidance_makes_more_of_the_object(make: Make) -> None:
    """Purple on light blue: what is no background is dark in green."""
    plain, guided = (int((make(CLIPS[name])[..., 1] < 130).sum()) for name in ("without-stg", "with-stg"))
    assert guided > 1.5 * plain


def test_tiles_leave_no_seam(make: Make) -> None:
    """Three sizes of seamless tiles against the same clip decoded whole."""
    short = ("--num-inference-steps", "8")
    tiled = CLIPS["tiled"]
    whole = make(tiled, *short, "--tiling", "auto", "--tile-size", "1024")
    for size in ("224", "256", "320"):
        assert psnr(make(tiled, *short, "--tile-size", size), whole) >= 40
