"""A contact sheet of a packed data set: pictures beside their masks, where they have any, with their tags."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ktse_dist.data import keyed
from ktse_dist.data.index import Index
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError

CELL, CAPTION = 288, 14  # pixels: a side of a square, the line of tags over it
EDGE = (224, 224, 192)  # VOC's colour of ignored pixels
MOST_LETTERS = 44  # of a caption


def contact_sheet(dataset: Path, file: Path, rows: int = 6, columns: int = 4) -> None:
    """Write a PNG with up to rows * columns pictures, drawn from all over their splits, a third of them from val.

    Pictures and whole splits that cannot be read are left out.
    """
    count = rows * columns
    shares = {"train": count - count // 3, "val": count // 3}
    cells = [cell for split, share in shares.items() for cell in _split_cells(dataset, split, share)]
    height, width = CELL + CAPTION, max((cell.shape[1] for cell in cells), default=CELL)
    rows = -(-len(cells) // columns) or 1
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet[row * height :, column * width :][: cell.shape[0], : cell.shape[1]] = cell
    Image.fromarray(sheet).save(file)


def _split_cells(dataset: Path, split: str, wanted: int) -> Iterator[np.ndarray]:
    try:
        index = Index.open(dataset, split)
    except UserError:
        return
    yield from _cells(index, wanted)


def _cells(index: Index, wanted: int) -> Iterator[np.ndarray]:
    """Tags over picture and coloured mask, each in a square of CELL pixels; no mask where the split has none."""
    reader = Reader(index)
    colours = np.array(index.palette + [EDGE] * (256 - len(index.palette)), np.uint8)
    masked = bool((index.samples["mask"]["size"] > 0).any())
    rows = np.flatnonzero(index.samples["shard"] < len(index.shards))  # all, if the index is whole
    drawn = rows[np.argsort(keyed.key(rows))[:wanted]]  # sources go class by class
    for row in np.sort(drawn).tolist():
        try:
            picture, mask = reader.picture(row), reader.truth(row)
        except UserError:
            continue
        squares = [_square(picture, Image.Resampling.BILINEAR)]
        if masked:
            squares.append(np.full_like(squares[0], 255) if mask is None else _square(colours[mask]))
        tags = [index.classes[label] for label in index.labels([row])[0].nonzero()[0]]
        yield np.concatenate([_caption(tags, len(squares) * CELL), np.concatenate(squares, axis=1)])


def _square(picture: np.ndarray, resampling: Image.Resampling = Image.Resampling.NEAREST) -> np.ndarray:
    """uint8 [CELL,CELL,3]; larger pictures are shrunk to fit."""
    scaled = Image.fromarray(picture)
    share = min(1, CELL / max(scaled.size))
    scaled = np.asarray(scaled.resize([max(1, round(side * share)) for side in scaled.size], resampling))
    return np.pad(scaled, [(0, CELL - scaled.shape[0]), (0, CELL - scaled.shape[1]), (0, 0)], constant_values=255)


def _caption(tags: list[str], width: int) -> np.ndarray:
    line = Image.new("RGB", (width, CAPTION), "white")
    text = ", ".join(tags)[:MOST_LETTERS] or "no tags"
    # Pillow's own font has Latin letters only
    ImageDraw.Draw(line).text((2, 0), text.encode("latin-1", "replace").decode("latin-1"), fill="black")
    return np.asarray(line)
