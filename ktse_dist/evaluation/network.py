"""What a segmentation network's masks are worth, for summary.json and for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from ktse_dist.evaluation.score import BACKGROUND
from ktse_dist.inference.answers import LOOKS, Scores


def network_scores(scores: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Percent, on val, where no tag is given to the network; null without ground truth."""
    known = scores.pictures > 0
    fields: dict[str, Any] = {
        f"network_miou_{look}": round(scores.looks[look].miou(), 2) if known else None for look in LOOKS
    }
    ious = scores.looks["final"].iou().round(2).tolist()
    fields["network_per_class"] = dict(zip([BACKGROUND, *classes], ious, strict=True)) if known else None
    return fields | {"network_pictures": scores.pictures}


def network_line(found: Mapping[str, Any]) -> str:
    if found["network_miou_final"] is None:
        return "no ground truth, so no mIoU of the network"
    single, multi, final = (found[f"network_miou_{look}"] for look in LOOKS)
    return f"network         mIoU {final:6.2f} on val, without tags; {single:.2f} at one scale, {multi:.2f} over scales"
