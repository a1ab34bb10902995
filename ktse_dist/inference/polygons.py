"""A region of a mask as polygons without holes, all that YOLO and Label Studio know; and back. Free of torch."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

LEAST = 3  # points of a polygon; shorter outlines repeat their last one

Polygon = np.ndarray  # int32 [n,2]: x, y of pixels on the outline, which belong to the region


def polygons(region: np.ndarray) -> Iterator[Polygon]:
    """Outlines of a region bool [H,W]. Filled together they are its pixels, no more and no fewer.

    A part with a hole is cut in two at the row where its first hole begins, until no part has any.
    """
    waiting = [(np.ascontiguousarray(region, dtype=np.uint8), 0, 0)]
    while waiting:
        part, left, top = waiting.pop()
        outlines, nesting = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for number, outline in enumerate(outlines):
            _, _, hole, parent = nesting[0][number]
            if parent >= 0:
                continue
            if hole < 0:
                points = outline[:, 0] + np.array([left, top], np.int32)
                yield np.concatenate([points, *[points[-1:]] * (LEAST - len(points))])
            else:
                waiting += _halves(part, outlines, number, outlines[hole], left, top)


def _halves(
    part: np.ndarray, outlines: Sequence[np.ndarray], number: int, hole: np.ndarray, left: int, top: int
) -> list[tuple[np.ndarray, int, int]]:
    """One piece of `part`, cut below the first row of its hole's outline; with the place of each half."""
    x, y, wide, high = cv2.boundingRect(outlines[number])
    alone = np.zeros((high, wide), np.uint8)
    cv2.drawContours(alone, outlines, number, 1, cv2.FILLED, offset=(-x, -y))
    alone &= part[y : y + high, x : x + wide]
    cut = int(hole[:, 0, 1].min()) - y + 1
    return [(alone[:cut], left + x, top + y), (alone[cut:], left + x, top + y + cut)]


def fill(outlines: Sequence[Polygon], height: int, width: int) -> np.ndarray:
    """The pixels of polygons, bool [height,width]: the inverse of `polygons`."""
    region = np.zeros((height, width), np.uint8)
    for outline in outlines:
        cv2.fillPoly(region, [outline.astype(np.int32)], 1)
    return region.astype(bool)
