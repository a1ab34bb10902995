"""IRN's random walk: CAMs spread to where no class boundary stands between (docs/method.md 3). Free of torch.

The published code raises a dense matrix of (pixels x pixels) to the 2^8-th power. Walking 256 steps over the 69
neighbours that a pixel has gives the same in memory that grows with the pixels, not with their square.
"""

from collections.abc import Iterator

import numpy as np

from ktse_dist.method.paths import Offset, Path, paths

RADIUS = 5


def random_walk(cams: np.ndarray, edge: np.ndarray, beta: float = 10, steps: int = 256) -> np.ndarray:
    """CAMs after `steps` steps: cams [n,h,w], edge [h,w] (probability of a boundary) -> float32 [n,h,w].

    In each step a pixel becomes the mean over itself and its neighbours nearer than RADIUS, weighted by
    (1 - highest edge on the way) ** beta.
    """
    edge = edge.astype(np.float64)  # in float32 a step's rounding errors add up to more than 1e-4
    pairs = list(affinities(edge, beta))
    inverse = 1 / step(np.ones_like(edge), pairs)  # how much a pixel gets in all
    walked = np.empty(cams.shape, np.float32)
    for number, cam in enumerate(cams):
        now = cam * (1 - edge)
        for _ in range(steps):
            now = step(now, pairs)
            now *= inverse
        walked[number] = now
    return walked


def step(cam: np.ndarray, pairs: list[tuple[Offset, np.ndarray]]) -> np.ndarray:
    """What each pixel gets from itself and its neighbours: [h,w] -> [h,w]."""
    got, room = cam.copy(), np.empty(cam.size)
    for end, weights in pairs:
        near, far = views(cam, end)
        to_near, to_far = views(got, end)
        part = room[: weights.size].reshape(weights.shape)  # new memory each time would cost as much as the sums
        to_near += np.multiply(weights, far, out=part)
        to_far += np.multiply(weights, near, out=part)
    return got


def affinities(edge: np.ndarray, beta: float) -> Iterator[tuple[Offset, np.ndarray]]:
    """For each offset that fits into the picture, the weight of each pair of pixels that far apart."""
    height, width = edge.shape
    for way in paths(RADIUS):
        if way.end[0] < height and abs(way.end[1]) < width:
            yield way.end, (1 - highest(edge, way)) ** beta


def highest(edge: np.ndarray, way: Path) -> np.ndarray:
    """The highest edge on the way between the pixels of each pair."""
    found = np.zeros_like(views(edge, way.end)[0])
    top, left = corner(way.end)
    for y, x in way.pixels:
        np.maximum(found, edge[top + y :, left + x :][: found.shape[0], : found.shape[1]], out=found)
    return found


def views(plane: np.ndarray, end: Offset) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that have a neighbour at `end` inside the picture, and those neighbours."""
    height, width = plane.shape[0] - end[0], plane.shape[1] - abs(end[1])
    top, left = corner(end)
    near = plane[top : top + height, left : left + width]
    return near, plane[top + end[0] :, left + end[1] :][:height, :width]


def corner(end: Offset) -> Offset:
    """The first pixel that has a neighbour at `end`."""
    return 0, max(0, -end[1])
