"""The random walk against the published dense matrix power."""

import numpy as np
import pytest

from ktse_dist.inference.random_walk import affinities, random_walk, views
from ktse_dist.method.paths import paths


@pytest.mark.parametrize("case", ["rwA", "rwB", "rwC"])
def test_walk_gives_the_published_values(golden, case):
    arrays = golden("irn")
    cams, edge, steps = arrays[f"{case}_cam"], arrays[f"{case}_edge"][0], 2 ** int(arrays[f"{case}_exp_times"])
    ours = random_walk(cams, edge, int(arrays[f"{case}_beta"]), steps)
    np.testing.assert_allclose(ours, arrays[f"{case}_rw"][:, 0], rtol=1e-4, atol=5e-5)


def test_affinities_are_the_published_dense_matrix(golden):
    arrays = golden("irn")
    edge = arrays["rwB_edge"][0]
    places = np.arange(edge.size).reshape(edge.shape)
    dense = np.eye(edge.size, dtype=np.float32)
    for end, weights in affinities(edge, 1):
        near, far = views(places, end)
        dense[near, far] = dense[far, near] = weights
    np.testing.assert_allclose(dense, arrays["rwB_dense_aff"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("radius", [5, 10])
def test_paths_are_the_published_ones(golden, radius):
    arrays = golden("irn")
    published = [way for n in range(int(arrays[f"r{radius}_n_groups"])) for way in arrays[f"r{radius}_search_paths{n}"]]
    assert [list(map(list, way.pixels)) for way in paths(radius)] == [way.tolist() for way in published]
    assert [list(way.end) for way in paths(radius)] == arrays[f"r{radius}_search_dst"].tolist()


def test_a_closed_boundary_keeps_two_regions_apart():
    edge = np.zeros((20, 30), np.float32)
    edge[:, 15] = 1
    cam = np.zeros((1, 20, 30), np.float32)
    cam[0, 3:6, 3:6] = 1
    walked = random_walk(cam, edge)[0]
    assert walked[:, :15].min() > 0
    assert walked[:, 15:].max() == 0


def test_a_picture_smaller_than_the_radius_is_walked():
    walked = random_walk(np.array([[[1, 0, 0]]], np.float32), np.zeros((1, 3), np.float32))
    np.testing.assert_allclose(walked, 1 / 3, rtol=1e-5)
