"""A picture's COCO annotations as one class map, by either convention of the field. Free of torch.

The annotations of one picture overlap, and crowds are regions, so a map is a convention. Scores of different papers
compare only where the convention is the same:
* `later`: annotations in the file's order, each over those before it; crowds are not drawn. So do the label makers
  that came with ReCAM and SIPE (annToMask.py: `getAnnIds(iscrowd=False)`, then assignment in a loop).
* `smaller`: sorted by the annotation's `area`, the smaller over the larger, the file's order among equals; crowds are
  drawn as their class. So does coco2voc, of which many others made theirs.
Both draw with pycocotools (frPyObjects, merge, decode); neither has pixels to ignore.
"""

import json
import math
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from pycocotools import mask as rle

from ktse_dist.data.decode import BadSample

CONVENTIONS = ("later", "smaller")
MAX_OUTLINE = 10_000_000  # corners times size of a polygon, in pixels: pycocotools needs memory for its outline
NUMBERS = {int, float}


@dataclass(frozen=True)
class CocoMask:
    """A mask to be made. annotations: their JSON texts in the file's order; classes: 0-based ids, one each."""

    annotations: tuple[str, ...]
    classes: tuple[int, ...]
    height: int
    width: int
    convention: str

    def __call__(self, height: int, width: int) -> np.ndarray:
        """uint8 [height,width]: class + 1, 0 where nothing is drawn. BadSample names the annotation's id."""
        if (height, width) != (self.height, self.width):
            found = f"the picture has {width}x{height} pixels, its annotations are for {self.width}x{self.height}"
            raise BadSample(f"{found}; put the right file there")
        turned = np.zeros((width, height), np.uint8)  # pycocotools works by columns
        for value, same in groupby(self._back_to_front(), key=itemgetter(0)):
            shape = rle.merge([outline for _, annotation in same for outline in self._outlines(annotation)])
            left, _, columns, _ = (int(side) for side in rle.toBbox(shape))
            box = slice(left, left + columns)
            np.copyto(turned[box], value, where=rle.decode(shape).T[box].view(bool))
        return np.ascontiguousarray(turned.T)

    def _back_to_front(self) -> list[tuple[int, dict]]:
        """(class + 1, annotation) of what is drawn, each over those before it."""
        both = [(label + 1, json.loads(text)) for text, label in zip(self.annotations, self.classes, strict=True)]
        if self.convention == "later":
            return [(value, annotation) for value, annotation in both if not annotation.get("iscrowd")]
        return sorted(both, key=lambda pair: area_of(pair[1]))[::-1]

    def _outlines(self, annotation: dict) -> list[dict]:
        """Checked, and as compressed run lengths. pycocotools itself trusts what it is given."""
        found = annotation.get("segmentation")
        try:
            if isinstance(found, dict):
                counts = run_lengths(found, self.height, self.width)
                return [rle.frPyObjects({"size": [self.height, self.width], "counts": counts}, self.height, self.width)]
            return rle.frPyObjects(polygons(found, max(self.height, self.width)), self.height, self.width)
        except BadSample as error:
            raise BadSample(f"annotation {annotation.get('id')}: {error} (--masks none needs none)") from None


def area_of(annotation: dict) -> float:
    area = annotation.get("area")
    if type(area) not in NUMBERS or not math.isfinite(area):
        raise BadSample(f"annotation {annotation.get('id')}: its area is {area!r:.40}; the order by size needs numbers")
    return area


def polygons(found: Any, side: int) -> list[list[float]]:
    """The segmentation, if it is polygons: lists x, y, x, y, ... of 3 corners or more, at most one side outside."""
    if not isinstance(found, list) or not found:
        raise BadSample(f"its segmentation is {found!r:.40}; wanted are polygons or run lengths")
    for corners in found:
        if not isinstance(corners, list) or len(corners) < 6 or len(corners) % 2 or set(map(type, corners)) - NUMBERS:
            raise BadSample(f"{corners!r:.40} is no polygon; wanted are numbers x, y, x, y, ... of 3 corners or more")
        least, most = min(corners), max(corners)
        if not math.isfinite(sum(corners)):
            raise BadSample(f"its polygon has a corner at {next(n for n in corners if not math.isfinite(n))}")
        if not -side <= least <= most <= 2 * side:
            raise BadSample(f"its polygon goes from {least} to {most}, its picture from 0 to {side}")
        if (most - least) * len(corners) > MAX_OUTLINE:
            raise BadSample(f"its polygon has {len(corners) // 2:,} corners over {most - least:,.0f} pixels, too many")
    return found


def run_lengths(found: dict, height: int, width: int) -> list[int]:
    """The counts of run lengths as numbers, which together are the picture."""
    if found.get("size") != [height, width]:
        raise BadSample(f"its run lengths are of size {found.get('size')!r:.40}, its picture is {[height, width]}")
    counts = found.get("counts")
    numbers = uncompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(numbers, list) or set(map(type, numbers)) - {int} or min(numbers, default=-1) < 0:
        raise BadSample(f"its run lengths are {counts!r:.40}; wanted are counts of pixels")
    if sum(numbers) != height * width:
        raise BadSample(f"its run lengths add up to {sum(numbers):,} pixels, its picture has {height * width:,}")
    return numbers


def uncompressed(counts: str) -> list[int]:
    """COCO's text form: groups of 5 bits from the low end, the sixth says that more follow; from the fourth number on
    it is the difference to the last but one."""
    numbers: list[int] = []
    number, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise BadSample(f"its run lengths are {counts!r:.40}, which is not COCO's text form of them")
        number |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            number -= (bits & 16 and 1) << shift
            numbers.append(number + (numbers[-2] if len(numbers) > 2 else 0))
            number, shift = 0, 0
    return numbers
