"""The report: one self-contained page. All names come from data, so the template escapes everything."""

from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.evaluation.mask_score import read_table
from ktse_dist.evaluation.score import BACKGROUND, read_seeds
from ktse_dist.inference.calibration import DEFAULT_STRENGTHS
from ktse_dist.inference.generate import SeedSource
from ktse_dist.reporting.pictures import Row, group_rows, picture_row
from ktse_dist.reporting.plots import confusion_plot, loss_plots, read_metrics, sweep_plot
from ktse_dist.run_folder import RunFolder

LOSSES = {  # what the curves' captions say
    "total": "total: the weighted sum",
    "cls": "cls: tags",
    "local": "local: local alignment (MGA)",
    "global": "global: global alignment (MGA)",
    "transfer": "transfer: inter-image erasing (SIE)",
    "seg_bg": "seg_bg: background pixels (SSR)",
    "seg_fg": "seg_fg: foreground pixels (SSR)",
    "seg_inter": "seg_inter: rival classes (SSR)",
    "mixed_bg": "mixed_bg: background of mixed pictures (SSR)",
    "mixed_fg": "mixed_fg: foreground of mixed pictures (SSR)",
}
SCORES = (("baseline seeds", "baseline_seed_miou"), ("KTSE seeds", "seed_miou"), ("KTSE masks", "mask_miou"))
STAGES = ("train", "baseline", "masks", "evaluate")  # what has run before the page is made


class Material(NamedTuple):
    """What the page tells of. run, baseline: the two networks over the val pictures (baseline None: there is none)."""

    folder: RunFolder
    summary: dict[str, Any]
    train: Index
    run: SeedSource
    baseline: SeedSource | None


def render(about: Material) -> str:
    """The page's HTML. UserError when masks or seed counts are missing."""
    summary = about.summary
    return template().render(
        name=about.folder.path.name,
        summary=summary,
        scores=[(label, summary[key], summary[f"{key}_train"]) for label, key in SCORES if summary[key] is not None],
        gain=gain(summary),
        classes=class_rows(summary),
        background=background(summary),
        scales=", ".join(f"{scale:g}" for scale in about.run.config.scales),
        losses=[(LOSSES.get(loss, loss), image) for loss, image in loss_images(about.folder)],
        sweep=sweep_image(about),
        confusions=confusion_images(about.folder, summary),
        groups=picture_groups(about),
        threshold=threshold(summary),
        stages=[(stage, summary["seconds"][stage]) for stage in STAGES if stage in summary["seconds"]],
        config=about.folder.config_file.read_text(),
        attribution=about.run.index.attribution(),
    )


def template(name: str = "page.html") -> Template:
    """A page, escaping all that it is given; a name that it is not given is an error."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = number
    return environment.get_template(name)


def number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def gain(summary: dict[str, Any]) -> float | None:
    """Points of val mIoU that KTSE's seeds have over the baseline's."""
    ours, theirs = summary["seed_miou"], summary["baseline_seed_miou"]
    return None if ours is None or theirs is None else ours - theirs


def class_rows(summary: dict[str, Any]) -> list[tuple[str, dict[str, float | None]]]:
    """(class, {seed, baseline, mask}), the background first, then from the best mask to the worst."""
    complete = [(name, {"baseline": None} | ious) for name, ious in (summary["per_class"] or {}).items()]
    return sorted(complete, key=lambda row: (row[0] != BACKGROUND, -row[1]["mask"]))


def background(summary: dict[str, Any]) -> str:
    """How masks came from CAMs, as a sentence."""
    used, train = summary["background"], summary["pictures"]["train"]
    kinds = {
        "crf": f"dense CRF over the CAMs with background (1 − CAM)^{used['strength']:g}",
        "irn": f"the CAMs after IRN's random walk, above {used['strength']:g}",
        "none": f"the CAMs above {used['strength']:g}, without CRF",
    }
    kind = kinds[used["refine"]]
    if used["chosen_by"] == "config":
        return f"{kind}; strength as given (masks.strength)"
    if used["chosen_by"] == "default":
        return (
            f"{kind}; the default strength, since there is no ground truth to choose by (masks.strength sets another)"
        )
    return f"{kind}; strength chosen on {used['pictures']} of the {train} training pictures"


def threshold(summary: dict[str, Any]) -> float:
    """The seeds' threshold: the best on train, else the default."""
    best = summary["best_threshold"]
    return DEFAULT_STRENGTHS["none"] if best is None else best


def loss_images(folder: RunFolder) -> list[tuple[str, str]]:
    return loss_plots(read_metrics(folder.metrics_file), read_metrics(folder.baseline.metrics_file))


def sweep_image(about: Material) -> str | None:
    """Seed mIoU over thresholds for both networks and splits; None without ground truth."""
    summary, indexes = about.summary, (about.run.index, about.train)
    if summary["best_threshold"] is None:
        return None
    folders, chosen = {"KTSE": about.folder.masks}, {"KTSE": summary["best_threshold"]}
    if summary["baseline_best_threshold"] is not None:
        folders["baseline"], chosen["baseline"] = about.folder.baseline.masks, summary["baseline_best_threshold"]
    sweeps = {f"{who}, {i.split}": read_seeds(masks, i).sweep for who, masks in folders.items() for i in indexes}
    return sweep_plot(sweeps, chosen)


def confusion_images(folder: RunFolder, summary: dict[str, Any]) -> list[tuple[str, str]]:
    """(whose, image) of the answers that were scored on val."""
    tables = [("the masks", folder.confusion)]
    if "network_miou_final" in summary:
        tables.append(("the segmentation network", folder.segment.confusion))
    return [(whose, confusion_plot(*read_table(path))) for whose, path in tables if path.is_file()]


def picture_groups(about: Material) -> list[tuple[str, list[Row]]]:
    masks, at = MaskIndex(about.folder.masks, about.run.index), threshold(about.summary)
    scores = read_seeds(about.folder.masks, about.run.index).tags.of_tags()
    return [
        (heading, [picture_row(shown, about.run, about.baseline, masks, at) for shown in group])
        for heading, group in group_rows(masks, about.run.index, scores)
    ]
