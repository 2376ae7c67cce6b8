"""Which columns of a text the transformer is given."""

from __future__ import annotations

import numpy as np
import pytest

from telecine.families.ltx_video.text import TEXT_STEP, without_padding


def texts(*used: int, length: int = 128) -> tuple[np.ndarray, np.ndarray]:
    embeds = np.random.default_rng(0).standard_normal((len(used), length, 3), dtype=np.float32)
    return embeds, (np.arange(length) < np.array(used)[:, np.newaxis]).astype(np.float32)


@pytest.mark.parametrize(
    ("used", "kept"), [((1,), 16), ((16,), 16), ((17, 3), 32), ((3, 17), 32), ((128, 1), 128), ((0, 0), 128)]
)
def test_columns_that_are_padding_everywhere_are_left_out(used: tuple[int, ...], kept: int) -> None:
    embeds, mask = texts(*used)
    short, short_mask = without_padding(embeds, mask)
    assert kept % TEXT_STEP == 0
    np.testing.assert_array_equal(short, embeds[:, :kept])
    np.testing.assert_array_equal(short_mask, mask[:, :kept])
    assert short.flags.c_contiguous
    assert short_mask.flags.c_contiguous


def test_a_length_off_the_step_is_not_exceeded() -> None:
    short, mask = without_padding(*texts(18, length=20))
    assert (short.shape[1], mask.shape[1]) == (20, 20)


def test_a_row_that_masks_everything_keeps_all_columns() -> None:
    embeds, mask = texts(5, 0)
    assert without_padding(embeds, mask)[0].shape[1] == 128


def test_a_gap_inside_stays() -> None:
    embeds, mask = texts(40)
    mask[:, 3:30] = 0
    assert without_padding(embeds, mask)[0].shape[1] == 48
