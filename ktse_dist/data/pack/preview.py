"""A contact sheet of a packed data set: pictures beside their masks."""

from pathlib import Path

import numpy as np
from PIL import Image

from ktse_dist.data.decode import decode_jpeg, decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.reader import Reader

CELL = 288  # pixels a side
EDGE = (224, 224, 192)  # VOC's colour of ignored pixels


def contact_sheet(dataset: Path, file: Path, rows: int = 6, columns: int = 4) -> None:
    """Write a PNG with the first rows * columns pictures, a third of them from val."""
    count = rows * columns
    cells = [*_cells(Index.open(dataset, "train"), count - count // 3), *_cells(Index.open(dataset, "val"), count // 3)]
    sheet = np.full((rows * CELL, columns * 2 * CELL, 3), 255, np.uint8)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet[row * CELL :, column * 2 * CELL :][: cell.shape[0], : cell.shape[1]] = cell
    Image.fromarray(sheet).save(file)


def _cells(index: Index, count: int) -> list[np.ndarray]:
    """Picture and coloured mask side by side, each in a square of CELL pixels."""
    reader = Reader(index)
    colours = np.array(index.palette + [EDGE] * (256 - len(index.palette)), np.uint8)
    cells = []
    for row in range(min(count, len(index))):
        picture = decode_jpeg(reader.read(row, "image"))
        mask = colours[decode_mask(reader.read(row, "mask"))]
        cells.append(np.concatenate([_square(picture), _square(mask)], axis=1))
    return cells


def _square(picture: np.ndarray) -> np.ndarray:
    picture = picture[:CELL, :CELL]
    return np.pad(picture, [(0, CELL - picture.shape[0]), (0, CELL - picture.shape[1]), (0, 0)], constant_values=255)
