"""Oracle: diffusers' own size arithmetic, and round trips."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from telecine.errors import BundleError, RequestError
from telecine.shapes import Grid, LatentShape, VideoShape

LTX = Grid(spatial=32, temporal=8)
sizes = st.integers(1, 40)
grids = st.builds(Grid, spatial=st.integers(1, 64), temporal=st.integers(1, 16))
latents = st.builds(LatentShape, frames=sizes, height=sizes, width=sizes)


@given(latents, grids)
def test_latent_and_video_shapes_are_inverse(shape: LatentShape, grid: Grid) -> None:
    assert shape.video(grid).latent(grid) == shape


@given(st.integers(1, 500), sizes, sizes, grids)
def test_request_follows_diffusers_arithmetic(num_frames: int, rows: int, columns: int, grid: Grid) -> None:
    height, width = rows * grid.spatial, columns * grid.spatial
    video = VideoShape.from_request(num_frames=num_frames, height=height, width=width, grid=grid)
    latent = video.latent(grid)
    # LTXPipeline.__call__, step 5
    assert (latent.frames, latent.height, latent.width) == (
        (num_frames - 1) // grid.temporal + 1,
        height // grid.spatial,
        width // grid.spatial,
    )
    assert latent.video(grid) == video
    assert num_frames - grid.temporal < video.num_frames <= num_frames


@pytest.mark.parametrize(("asked", "given_frames"), [(1, 1), (8, 1), (9, 9), (16, 9), (17, 17), (121, 121), (160, 153)])
def test_frames_round_down(asked: int, given_frames: int) -> None:
    video = VideoShape.from_request(num_frames=asked, height=512, width=768, grid=LTX)
    assert video == VideoShape(num_frames=given_frames, height=512, width=768)


def test_known_ltx_size() -> None:
    shape = VideoShape(num_frames=161, height=512, width=704).latent(LTX)
    assert shape == LatentShape(frames=21, height=16, width=22)
    assert shape.tokens == 7392
    assert shape.array_shape(2, 128) == (2, 128, 21, 16, 22)


def test_numpy_integers_become_ints() -> None:
    video = VideoShape.from_request(num_frames=np.int64(9), height=np.int32(64), width=32, grid=LTX)
    assert video == VideoShape(num_frames=9, height=64, width=32)
    assert all(type(side) is int for side in (video.num_frames, video.height, video.width))


@pytest.mark.parametrize(
    ("side", "nearest"), [(500, (480, 512)), (33, (32, 64)), (31, (32, 64)), (0, (32, 64)), (-64, (32, 64))]
)
@pytest.mark.parametrize("name", ["height", "width"])
def test_sides_off_the_grid_name_the_nearest_legal_ones(name: str, side: int, nearest: tuple[int, int]) -> None:
    asked = {"num_frames": 9, "height": 64, "width": 64} | {name: side}
    with pytest.raises(RequestError) as caught:
        VideoShape.from_request(**asked, grid=LTX)
    assert caught.value.got == f"{name} is {side}"
    assert caught.value.fix == f"Use {nearest[0]} or {nearest[1]}."


@pytest.mark.parametrize("name", ["num_frames", "height", "width"])
@pytest.mark.parametrize("value", [64.0, "64", None, True])
def test_sizes_must_be_whole_numbers(name: str, value: object) -> None:
    asked = {"num_frames": 9, "height": 64, "width": 64} | {name: value}
    with pytest.raises(RequestError, match=f"{name} is .*expected a whole number"):
        VideoShape.from_request(**asked, grid=LTX)


@pytest.mark.parametrize("num_frames", [0, -7])
def test_no_frames(num_frames: int) -> None:
    with pytest.raises(RequestError, match=f"num_frames is {num_frames}; expected at least 1"):
        VideoShape.from_request(num_frames=num_frames, height=64, width=64, grid=LTX)


@pytest.mark.parametrize("shape", [(8, 64, 64), (9, 65, 64), (9, 64, 65)])
def test_latent_of_an_illegal_shape_is_a_bug(shape: tuple[int, int, int]) -> None:
    with pytest.raises(AssertionError):
        VideoShape(num_frames=shape[0], height=shape[1], width=shape[2]).latent(LTX)


@pytest.mark.parametrize("ratio", [0, -8, 8.0, True, "8"])
@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_grid_refuses_bad_ratios(name: str, ratio: object) -> None:
    with pytest.raises(BundleError, match=f"the {name} compression ratio is"):
        Grid(**({"spatial": 32, "temporal": 8} | {name: ratio}))


@given(st.integers(-5, 400), st.integers(-5, 2000), st.integers(-5, 2000))
def test_below_is_the_largest_shape_that_is_nowhere_above(num_frames: int, height: int, width: int) -> None:
    shape = VideoShape.below(num_frames=num_frames, height=height, width=width, grid=LTX)
    assert shape.latent(LTX).video(LTX) == shape
    for side, asked, step in (
        (shape.num_frames, num_frames, LTX.temporal),
        (shape.height, height, LTX.spatial),
        (shape.width, width, LTX.spatial),
    ):
        least = 1 if step == LTX.temporal else step
        assert side == least if asked < least else asked - step < side <= asked


COGVIDEOX = Grid(spatial=8, temporal=4, patch=2, patch_t=2, chunked=True)


@pytest.mark.parametrize(
    ("asked", "made", "latents"),
    [
        (1, 1, 1), (4, 1, 1), (5, 8, 2), (8, 8, 2), (9, 9, 3), (12, 9, 3), (13, 16, 4), (16, 16, 4), (17, 17, 5),
        (49, 49, 13),
    ],
)  # fmt: skip
def test_chunks_make_whole_groups_of_an_even_number_of_latents(asked: int, made: int, latents: int) -> None:
    shape = VideoShape.from_request(num_frames=asked, height=48, width=80, grid=COGVIDEOX)
    assert (shape.num_frames, shape.latent(COGVIDEOX).frames) == (made, latents)
    assert shape.latent(COGVIDEOX).video(COGVIDEOX) == shape


def test_sides_hold_whole_tokens() -> None:
    with pytest.raises(RequestError, match="height is 24; expected a positive multiple of 16. Use 16 or 32."):
        VideoShape.from_request(num_frames=9, height=24, width=80, grid=COGVIDEOX)


@given(st.integers(-5, 400), st.integers(-5, 2000))
def test_below_on_a_grid_of_chunks_and_tokens(num_frames: int, height: int) -> None:
    shape = VideoShape.below(num_frames=num_frames, height=height, width=80, grid=COGVIDEOX)
    lengths = [COGVIDEOX.num_frames(latents) for latents in range(1, 120)]
    assert shape.num_frames == max([length for length in lengths if length <= num_frames], default=1)
    assert shape.height == max(height // 16, 1) * 16


@pytest.mark.parametrize(("frames", "padded"), [(1, 2), (2, 2), (13, 14)])
def test_padded_latents_hold_whole_tokens(frames: int, padded: int) -> None:
    shape = LatentShape(frames=frames, height=6, width=10)
    assert shape.padded(COGVIDEOX) == LatentShape(frames=padded, height=6, width=10)
    assert shape.padded(LTX) == shape
