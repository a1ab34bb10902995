"""What a segmentation network's masks are worth, for summary.json and for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ktse_dist.evaluation.counts import read_counts, write_counts
from ktse_dist.evaluation.mask_score import MaskScore
from ktse_dist.evaluation.miou import Confusion
from ktse_dist.evaluation.score import BACKGROUND, by_class, rounded

LOOKS = ("single", "multi", "final")  # at one scale; over scales; with the CRF, as the files show it


class Scores:
    """Pixel counts of the three looks at some pictures; of the final one edges, too."""

    def __init__(self, classes: int):
        self.single, self.multi, self.final = Confusion(classes), Confusion(classes), MaskScore(classes)

    def looks(self) -> dict[str, Confusion]:
        return dict(zip(LOOKS, (self.single, self.multi, self.final.confusion), strict=True))

    def save(self, path: Path) -> None:
        write_counts(path, single=self.single.counts, multi=self.multi.counts, **self.final.state())

    def add(self, path: Path) -> None:
        mend = "delete it and give the ktse segment command again"
        saved = read_counts(path, mend, ("single", "multi", "confusion", "boundary", "pictures"))
        self.single.counts += saved["single"]
        self.multi.counts += saved["multi"]
        self.final.add(saved)


def network_scores(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Percent, on val, where no tag is given to the network; null without ground truth."""
    known = scores.final.pictures > 0
    fields: dict[str, Any] = {
        f"network_miou_{look}": confusion.miou() if known else None for look, confusion in scores.looks().items()
    }
    final, names = scores.final, [BACKGROUND, *classes]
    fields["network_fwiou"] = final.confusion.frequency_weighted() if known else None
    fields["network_boundary_miou"] = final.boundary.miou() if known else None
    ious = {"network": final.confusion.iou(), "network_boundary": final.boundary.iou()}
    fields["network_per_class"] = by_class(names, ious) if known else None
    return rounded(fields | {"network_pictures": scores.final.pictures})


def network_line(found: Mapping[str, Any]) -> str:
    if found["network_miou_final"] is None:
        return "no ground truth, so no mIoU of the network"
    single, multi, final = (found[f"network_miou_{look}"] for look in LOOKS)
    edges = f"frequency-weighted {found['network_fwiou']:.2f}, of edges {found['network_boundary_miou']:.2f}"
    return (
        f"network         mIoU {final:6.2f} on val, without tags; {single:.2f} at one scale, {multi:.2f} over scales; "
        f"{edges}; {found['network_pictures']} pictures"
    )
