"""Who is in a data set: tags, pairs of tags, sizes and what masks show, counted. Pure."""

from typing import Any

import numpy as np

from ktse_dist.data.examine import Findings
from ktse_dist.data.index import Index
from ktse_dist.data.palette import IGNORE

ROWS = 4096  # tags unpacked at a time
MOST_CLASSES = 1000  # up to here every pair of classes is counted
PAIRS, MATRIX = 12, 12  # pairs of classes told by name; classes whose whole matrix is told


def census(index: Index, findings: Findings) -> dict[str, Any]:
    """All figures of one split, as JSON can hold them. Pictures that could not be read have tags but no size."""
    counts, tags_per_picture, together = count_tags(index)
    return {
        "pictures": len(index),
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "classes": dict(zip(index.classes, counts.tolist(), strict=True)),
        "tags_per_picture": {str(tags): n for tags, n in enumerate(tags_per_picture.tolist()) if n},
        "together": pairs(together, index.classes),
        "matrix": together.tolist() if len(index.classes) <= MATRIX else None,
        "width": spread(findings.widths),
        "height": spread(findings.heights),
        "masks": mask_census(index, findings) if findings.masks else None,
    }


def count_tags(index: Index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int64: pictures of each class [C]; pictures with 0, 1, ... tags [C+1]; pictures with both classes [C,C].

    The pairs are [0,0] above MOST_CLASSES classes.
    """
    classes = len(index.classes)
    paired = classes if classes <= MOST_CLASSES else 0
    counts, numbers = np.zeros(classes, np.int64), np.zeros(classes + 1, np.int64)
    together = np.zeros((paired, paired), np.int64)
    for start in range(0, len(index), ROWS):
        tags = index.labels(range(start, min(start + ROWS, len(index))))
        counts += tags.sum(0, dtype=np.int64)
        numbers += np.bincount(tags.sum(1).astype(np.int64), minlength=classes + 1)
        together += (tags[:, :paired].T @ tags[:, :paired]).astype(np.int64)
    return counts, numbers, together


def pairs(together: np.ndarray, classes: list[str]) -> list[tuple[str, str, int]]:
    """The PAIRS pairs of classes that most pictures share, most first."""
    first, second = np.triu_indices(len(together), 1)
    counts = together[first, second]
    order = np.argsort(-counts, kind="stable")[:PAIRS]
    return [(classes[first[n]], classes[second[n]], int(counts[n])) for n in order if counts[n]]


def spread(histogram: np.ndarray) -> dict[str, int] | None:
    """Smallest, median and largest value; histogram [n]: how often each value was seen. None for an empty one."""
    total = int(histogram.sum())
    if not total:
        return None
    below = np.cumsum(histogram)
    at = np.searchsorted(below, [1, (total + 1) // 2, total])
    return {name: int(value) for name, value in zip(("min", "median", "max"), at, strict=True)}


def mask_census(index: Index, findings: Findings) -> dict[str, Any]:
    """Pictures in whose mask each class is seen, and shares of all mask pixels."""
    total = int(findings.pixels.sum())
    seen = findings.values[1 : len(index.classes) + 1]
    return {
        "pictures": findings.masks,
        "classes": dict(zip(index.classes, seen.tolist(), strict=True)),
        "background": round(int(findings.pixels[0]) / total, 4),
        "ignored": round(int(findings.pixels[IGNORE]) / total, 4),
        "contradictions": findings.contradictions,
    }


def same_pictures(one: Index, other: Index) -> int:
    """Pictures of `other` whose bytes are in `one`, too (same size and crc32)."""
    known, asked = (index.samples["image"]["size"].astype(np.uint64) << np.uint64(32) for index in (one, other))
    known, asked = known | one.samples["image"]["crc32"], asked | other.samples["image"]["crc32"]
    return int(np.isin(asked, known).sum())
