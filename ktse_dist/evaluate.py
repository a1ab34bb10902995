"""`python -m ktse_dist.evaluate --run RUN`: the score of seeds and masks, into summary.json."""

import hashlib
import time
from pathlib import Path
from typing import Any

from ktse_dist.errors import Parser, run_main
from ktse_dist.evaluation.network import network_line
from ktse_dist.evaluation.score import score
from ktse_dist.mask_work import other_masks, splits
from ktse_dist.provenance import git_revision, versions
from ktse_dist.reporting.model_card import write_card
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.mirror import send

NETWORK = "network_"  # how the fields of ktse segment in summary.json begin


def main(arguments: list[str]) -> None:
    parser = Parser(prog="ktse evaluate", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the folder that ktse train printed")
    folder = RunFolder(parser.parse_args(arguments).run.absolute())
    print(
        lines(evaluate(folder), folder),
        f"summary: {folder.summary_file}\nnext: ktse report --run {folder.path}",
        sep="\n",
    )


def evaluate(folder: RunFolder) -> dict[str, Any]:
    """Score the run anew and return its summary. UserError names the stage that is still to run."""
    start = time.perf_counter()
    config = folder.read_config()
    train, val = splits(config)
    fields = score(folder, train, val) | {"masks_sha256": mask_digest(folder)}
    seconds = {"evaluate": round(time.perf_counter() - start, 1)}
    summary = folder.update_summary(**fields, versions=versions(), git=git_revision(), seconds=seconds)
    if not network_is_of_these_masks(folder):
        summary = folder.forget(NETWORK)
    write_card(folder, config, train)  # now with its score
    send(folder, config, folder.summary_file, folder.card)
    return summary


def evaluated(folder: RunFolder) -> dict[str, Any]:
    """The run's summary with its score, which is computed only where the masks have none yet."""
    summary = folder.read_summary()
    known = "mask_boundary_miou" in summary and summary.get("masks_sha256") == mask_digest(folder)
    stale = "network_miou_final" in summary and not network_is_of_these_masks(folder)
    return summary if known and not stale else evaluate(folder)


def network_is_of_these_masks(folder: RunFolder) -> bool:
    """Whether the segmentation network is there, and learnt from the masks as they are."""
    return folder.segment.model.is_file() and other_masks(folder) is None


def mask_digest(folder: RunFolder) -> str:
    """Of all masks, by the hashes in their indexes."""
    files = sorted(folder.masks.glob("*.masks.json"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def lines(summary: dict[str, Any], folder: RunFolder) -> str:
    """The score for people, and why that of the segmentation network is missing."""
    rows = [score_lines(summary)]
    if folder.segment.model.is_file() and (others := other_masks(folder)):
        rows.append(f"network         not scored: {others}")
    return "\n".join(rows)


def score_lines(summary: dict[str, Any]) -> str:
    pictures = summary["pictures"]
    if summary["seed_miou"] is None:
        used = summary["background"]
        choices = {"train": f"chosen on {used['pictures']} training pictures", "config": "as given"}
        chosen = choices.get(used["chosen_by"], "the default")
        return (
            f"{scored(summary)}\n"
            f"no ground truth, so no mIoU; tag mAP on {pictures['val']} held-out pictures: {summary['tag_map']}; "
            f"best tag threshold {summary['tag_threshold']:.2f} (F1 {summary['tag_f1']}); "
            f"background strength of the masks ({used['refine']}): {used['strength']}, {chosen}"
        )
    compared = [("baseline seeds", "baseline_seed_miou"), ("KTSE seeds", "seed_miou"), ("KTSE masks", "mask_miou")]
    rows = [
        f"{name:15} mIoU {summary[key]:6.2f} on val, {summary[f'{key}_train']:6.2f} on train"
        for name, key in compared
        if summary[key] is not None
    ]
    rows[-1] += f"; on val frequency-weighted {summary['mask_fwiou']:.2f}, of edges {summary['mask_boundary_miou']:.2f}"
    if "network_miou_final" in summary:  # ktse segment has run
        rows.append(network_line(summary))
    tags = f"tag mAP {summary['tag_map']} on val, {summary['phase1_tag_map']} at the end of phase 1"
    speed = summary.get("images_per_second", "?")  # lost with a summary.json that had to be deleted
    return "\n".join([scored(summary), *rows, f"training        {speed} images/s; {tags}"])


def scored(summary: dict[str, Any]) -> str:
    """Which pictures the figures are of: lists, and how many of each have ground truth."""
    truths = summary["scored"] or dict.fromkeys(summary["pictures"], 0)
    lists = (
        f"{truths[split]} of {count} {split} pictures have ground truth (list {summary['index_sha256'][split][:12]})"
        for split, count in summary["pictures"].items()
    )
    return f"scored          {', '.join(lists)}"


if __name__ == "__main__":
    run_main(main)
