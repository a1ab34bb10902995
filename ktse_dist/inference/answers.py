"""A segmentation network's masks of a split, a shard at a time, and what they are worth against ground truth."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ktse_dist.config.stages import Segment
from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskFiles, write_mask_shard
from ktse_dist.data.pool import ordered_map
from ktse_dist.data.reader import Reader
from ktse_dist.evaluation.network import Scores
from ktse_dist.inference.finish import Answer, finish
from ktse_dist.inference.generate import Part, Tick, shrunk, side_within
from ktse_dist.inference.refine import Blank, sized
from ktse_dist.inference.segmentation import SegmentationNetwork, segmented

log = logging.getLogger("ktse")


@dataclass(frozen=True)
class Answers:
    """The masks of one split in `folder`: a finished shard stays, so the same command goes on where it stopped."""

    network: SegmentationNetwork
    index: Index
    config: Segment
    processes: int
    folder: Path

    def make(self, part: Part, tick: Tick) -> bool:
        """One mask shard and its scores, unless they are there; whether there was anything to do."""
        if self.scores_file(part).exists() and (self.folder / f"{part.name}.tar").exists():
            for _ in part.rows:
                tick()
            return False
        scores, truths = Scores(len(self.index.classes)), {}
        results = ordered_map(finish, self._looked(part, scores, truths), self.processes)

        def files() -> Iterator[MaskFiles]:
            for row, (made, labels) in zip(part.rows, results, strict=True):
                if row in truths:
                    scores.final.update(labels, truths.pop(row))
                yield MaskFiles(self.index.key(row), made.mask, made.confidence)
                tick()

        write_mask_shard(self.folder / f"{part.name}.tar", files())
        scores.save(self.scores_file(part))
        return True

    def _side(self, size: tuple[int, int]) -> int:
        """The longest side that a picture of (height, width) is looked at with."""
        within = side_within(size, self.config.max_pixels)
        return min(within, self.config.long_side or within)

    def scores_file(self, part: Part) -> Path:
        return self.folder / f"{part.name}.scores.npz"

    def _looked(self, part: Part, scores: Scores, truths: dict[int, np.ndarray]) -> Iterator[Answer | Blank]:
        """What the network says of each picture, scored so far as no file is needed for it."""
        reader, palette = Reader(self.index), np.asarray(self.index.palette, np.uint8)
        for row in part.rows:
            try:
                packed, truth = reader.picture(row), reader.truth(row)
            except BadSample as bad:
                log.warning("an empty mask, 255 everywhere: %s", bad)
                yield Blank(palette, reader.size(row))
                continue
            size = packed.shape[:2]
            rgb, _ = shrunk(packed, None, self._side(size))
            seen = segmented(self.network, rgb, self.config.scales)
            if truth is not None:
                truths[row] = truth
                scores.single.update(sized(seen.first, size), truth)
                scores.multi.update(sized(seen.probabilities.argmax(0).astype(np.uint8), size), truth)
            yield Answer(rgb, seen.probabilities, self.config.crf, palette, size)
