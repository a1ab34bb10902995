"""Which pictures the report shows, and what it draws over them. Colours are dealt out anew in every picture."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex, says_nothing
from ktse_dist.data.palette import IGNORE
from ktse_dist.data.reader import Reader
from ktse_dist.inference.generate import Seed, SeedSource
from ktse_dist.inference.refine import sized
from ktse_dist.reporting.drawing import COLOURS, heat, paint, seed_labels

LONG_SIDE, QUALITY = 320, 82  # of the pictures in the page, which should stay under 5 MB
GROUP = 3  # pictures in each of best, median, worst
TAG_HEADINGS = {"Best": "Surest of their tags", "Median": "Median", "Worst": "Least sure of their tags"}


@dataclass(frozen=True)
class Chip:
    """One class of one picture: colour in the overlays, IoU of the final mask in percent (None: no ground truth)."""

    name: str
    colour: str
    iou: float | None


@dataclass(frozen=True)
class Shown:
    """A picture to show, and why it stands where it does: the mIoU of its mask, or the score of its tags (0..1)."""

    row: int
    miou: float | None = None
    tag_score: float | None = None


@dataclass(frozen=True)
class Row:
    """One picture of the page. views: (caption, image as a data URI)."""

    key: str
    shown: Shown
    chips: list[Chip]
    views: list[tuple[str, str]]


def group_rows(masks: MaskIndex, index: Index, tag_scores: Mapping[int, float]) -> list[tuple[str, list[Shown]]]:
    """(heading, pictures) to show: by the mIoU of their masks, and without ground truth by the score of their tags."""
    made = [row for row in range(len(index)) if masks.has(row)]
    by_miou = best_median_worst(list(mask_scores(masks, index, made)))
    if by_miou:
        return [(heading, [Shown(row, miou=miou) for row, miou in rows]) for heading, rows in by_miou]
    by_tags = best_median_worst([(row, tag_scores[row]) for row in made if row in tag_scores])
    return [(TAG_HEADINGS[heading], [Shown(row, tag_score=s) for row, s in rows]) for heading, rows in by_tags]


def best_median_worst(scored: list[tuple[int, float]]) -> list[tuple[str, list[tuple[int, float]]]]:
    """GROUP of (row, score) under each heading, highest first, no row twice; groups that stay empty are left out."""
    ordered = sorted(scored, key=lambda pair: -pair[1])
    best, rest = ordered[:GROUP], ordered[GROUP:]
    worst, between = rest[-GROUP:], rest[:-GROUP]
    start = max(0, (len(between) - GROUP) // 2)
    groups = [("Best", best), ("Median", between[start : start + GROUP]), ("Worst", worst)]
    return [(heading, rows) for heading, rows in groups if rows]


def mask_scores(masks: MaskIndex, index: Index, rows: Sequence[int]) -> Iterator[tuple[int, float]]:
    """(row, mIoU) of the pictures that have ground truth and can be read."""
    reader = Reader(index)
    for row in rows:
        if index.samples["mask"]["size"][row]:
            mask = decode_mask(masks.read(row, "mask"))
            if says_nothing(mask):
                continue
            ious = picture_iou(mask, reader.truth(row))
            yield row, float(np.mean(list(ious.values()))) if ious else 0.0


def picture_iou(labels: np.ndarray, truth: np.ndarray) -> dict[int, float]:
    """Percent for each value that occurs in either, where the truth is known: labels, truth uint8 [H,W]."""
    known = truth != IGNORE
    labels, truth = labels[known], truth[known]
    ious = {}
    for value in np.union1d(labels, truth).tolist():
        found, true = labels == value, truth == value
        ious[value] = 100 * float((found & true).sum() / (found | true).sum())
    return ious


def picture_row(
    shown: Shown, source: SeedSource, baseline: SeedSource | None, masks: MaskIndex, threshold: float
) -> Row:
    """The views of one picture; its CAMs are computed anew. baseline: None when the run has none."""
    row, index = shown.row, source.index
    seed = source.seed(row)
    labels = sized(decode_mask(masks.read(row, "mask")), seed.rgb.shape[:2])
    colours = class_colours(seed)
    views = [("picture", seed.rgb)]
    if baseline:
        views.append(("baseline CAM", heat(seed.rgb, baseline.seed(row).cams, colours)))
    views += [
        ("KTSE CAM", heat(seed.rgb, seed.cams, colours)),
        (f"seed at {threshold:.2f}", paint(seed.rgb, seed_labels(seed.cams, threshold), colours)),
        ("refined mask" if source.config.refine != "none" else "final mask", paint(seed.rgb, labels, colours)),
    ]
    ious: dict[int, float] = {}
    if seed.truth is not None:
        views.append(("ground truth", paint(seed.rgb, seed.truth, colours)))
        ious = picture_iou(labels, seed.truth)
    chips = [Chip(index.classes[value - 1], colour, ious.get(value)) for value, colour in colours.items()]
    return Row(index.key(row), shown, chips, [(caption, data_uri(shrunk(pixels))) for caption, pixels in views])


def class_colours(seed: Seed) -> dict[int, str]:
    """A colour for each mask value of a picture: its tags, and classes that only the ground truth has."""
    values = set((seed.cams.keys + 1).tolist())
    if seed.truth is not None:
        values |= set(np.unique(seed.truth).tolist()) - {0, IGNORE}
    return {value: COLOURS[place % len(COLOURS)] for place, value in enumerate(sorted(values))}


def shrunk(pixels: np.ndarray) -> Image.Image:
    picture = Image.fromarray(pixels)
    picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
