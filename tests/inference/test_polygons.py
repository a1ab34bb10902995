"""Regions to polygons without holes, and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ktse_dist.inference.polygons import LEAST, fill, polygons

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 24))


@given(hnp.arrays(bool, SHAPES))
def test_filled_polygons_are_the_region_to_the_pixel(region):
    outlines = list(polygons(region))
    assert np.array_equal(fill(outlines, *region.shape), region)
    assert all(len(outline) >= LEAST for outline in outlines)


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 59), st.integers(1, 25), st.booleans()), max_size=9))
def test_regions_with_holes_and_islands_in_them_come_back(boxes):
    region = np.zeros((60, 60), bool)
    for x, y, side, there in boxes:
        region[y : y + side, x : x + side] = there
    assert np.array_equal(fill(list(polygons(region)), 60, 60), region)


def test_a_ring_becomes_two_polygons_and_a_full_square_one():
    region = np.ones((9, 9), bool)
    assert len(list(polygons(region))) == 1
    region[3:6, 3:6] = False
    assert len(list(polygons(region))) == 2


def test_nothing_has_no_polygon():
    assert not list(polygons(np.zeros((5, 5), bool)))


@pytest.mark.parametrize("outlines", [[], [np.array([[1, 1], [1, 1], [1, 1]])]])
def test_a_point_fills_one_pixel(outlines):
    assert fill(outlines, 4, 4).sum() == len(outlines)
