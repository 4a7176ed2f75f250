"""Boxes: around every region above a threshold, in the pixels of the image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harmoniad_jax.inference.result import find_boxes

SIZES = st.integers(1, 3000)
MAPS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 50), st.integers(1, 20)),
    elements=st.sampled_from([0.0, 1.0]),
)


@settings(deadline=None, max_examples=50)
@given(MAPS, SIZES, SIZES)
def test_boxes_lie_in_the_image_and_cover_all_that_is_above(values, width, height):
    boxes = find_boxes(values, 0.5, (width, height))
    for box in boxes:
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height
        assert all(type(edge) is int for edge in box)
    rows, columns = values.shape
    for row, column in np.argwhere(values > 0.5).tolist():
        # The part of the image that this pixel of the map stands for, in whole pixels.
        left, right = column * width // columns, -(-(column + 1) * width // columns)
        top, bottom = row * height // rows, -(-(row + 1) * height // rows)
        assert any(
            box.left <= left
            and right <= box.right
            and box.top <= top
            and bottom <= box.bottom
            for box in boxes
        ), (row, column)


@pytest.mark.parametrize("side", [37, 49, 256, 392, 448, 518])
def test_boxes_stay_inside_whatever_the_sides(side):
    """A region at the end of the map, and images of every size."""
    values = np.zeros((1, side), np.float32)
    values[0, -1] = 1.0
    for turned in (False, True):
        for size in range(1, 3001):
            shape = (1, size) if turned else (size, 1)
            ((left, top, right, bottom),) = find_boxes(
                values.T if turned else values, 0.5, shape
            )
            assert (right, bottom) == shape
            assert (top if turned else left) == size * (side - 1) // side


def test_each_region_has_its_box_largest_first():
    values = np.zeros((10, 20), np.float32)
    values[1:3, 2:4] = 1.0
    values[5:9, 10:19] = 0.7
    values[0, 19] = 0.9
    assert find_boxes(values, 0.5, (200, 100)) == (
        (100, 50, 190, 90),
        (20, 10, 40, 30),
        (190, 0, 200, 10),
    )


def test_pixels_that_touch_at_a_corner_are_one_region():
    assert find_boxes(np.eye(4, dtype=np.float32), 0.5, (4, 4)) == ((0, 0, 4, 4),)


@pytest.mark.parametrize("threshold", [None, 1.0, 2.0])
def test_nothing_above_the_threshold_is_no_box(threshold):
    assert find_boxes(np.ones((4, 4), np.float32), threshold, (9, 9)) == ()
