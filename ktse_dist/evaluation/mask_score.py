"""Label maps against ground truth, a picture at a time: regions and their edges."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ktse_dist.errors import UserError
from ktse_dist.evaluation.boundary import BoundaryCounts
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.files import write_text


class MaskScore:
    """pictures: how many had ground truth, and so count."""

    def __init__(self, classes: int):
        self.confusion, self.boundary, self.pictures = Confusion(classes), BoundaryCounts(classes), 0

    def update(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one picture: prediction and truth, uint8 [H,W]. A truth that is no class: UserError."""
        self.confusion.update(prediction, truth)
        self.boundary.update(prediction, truth)
        self.pictures += 1

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for a file; `add` takes them."""
        return {"confusion": self.confusion.counts, "boundary": self.boundary.counts, "pictures": self.pictures}

    def add(self, state: dict[str, np.ndarray]) -> None:
        self.confusion.counts += state["confusion"]
        self.boundary.counts += state["boundary"]
        self.pictures += int(state["pictures"])

    def write_table(self, path: Path, names: Sequence[str]) -> None:
        """The confusion matrix as CSV: a row each true class, a column each answer, pixels."""
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["truth", *names, "no answer"])
        rows.writerows([name, *counts] for name, counts in zip(names, self.confusion.counts.tolist(), strict=True))
        write_text(path, text.getvalue())


def read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """The names, background first, and counts int64 [classes+1, classes+2] of a table of MaskScore."""
    try:
        head, *rows = csv.reader(path.read_text().splitlines())
        counts = np.array([row[1:] for row in rows], np.int64)
    except (ValueError, csv.Error):
        counts = np.empty(0)
    if counts.ndim != 2 or counts.shape != (len(head) - 2, len(head) - 1):
        raise UserError(f"{path}: damaged; delete it, ktse evaluate or ktse segment writes it anew")
    return head[1:-1], counts
