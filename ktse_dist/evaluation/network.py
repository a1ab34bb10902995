"""What a segmentation network's masks are worth, for summary.json and for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from ktse_dist.evaluation.score import BACKGROUND, by_class, rounded
from ktse_dist.inference.answers import LOOKS, Scores


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
