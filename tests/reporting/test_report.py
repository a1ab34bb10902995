"""The report of a tiny run: an untrained network, a data set with hostile names, masks and score made for real."""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ktse_dist import evaluate, masks, models, report
from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError
from ktse_dist.evaluation.mask_score import read_table
from ktse_dist.models.weights import save_model
from ktse_dist.reporting.plots import confusion_plot
from ktse_dist.run_folder import RunFolder

CLASSES = ["aeroplane", "<script>alert(1)</script>", 'cat" onload="x']
NETWORK = Network(weights="none")


def samples(split: str, with_masks: bool) -> Iterator[Sample]:
    """4 pictures of 72x96: a bright square of class n in the first three, neither object nor tag in the last."""
    noise = np.random.default_rng(len(split))
    for n in range(4):
        rgb, mask = noise.integers(0, 90, (72, 96, 3), np.uint8), np.zeros((72, 96), np.uint8)
        if n < 3:
            rgb[20:50, 10 + 8 * n : 50 + 8 * n, n] = 230
            mask[20:50, 10 + 8 * n : 50 + 8 * n] = n + 1
            mask[19, 10:50] = 255
        truth = encoded(mask, "PNG") if with_masks else None
        yield Sample(f"{split}/{n}", encoded(rgb, "JPEG"), [n][: n < 3], truth, "drawn by the test")


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def save_untrained(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    backbone, head = models.build(NETWORK, len(CLASSES))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(path, nn.ModuleDict({"backbone": backbone, "head": head}).state_dict(), NETWORK, CLASSES)


def make_run(root: Path, with_masks: bool, with_baseline: bool) -> RunFolder:
    """A run as `ktse train` leaves it."""
    with new_dataset(root / "data") as building:
        splits = {s: write_split(building, s, samples(s, with_masks), len(CLASSES), 10**6) for s in ("train", "val")}
        write_about(building, CLASSES, splits)
        (building / "ATTRIBUTION.md").write_text("drawings by <b>somebody</b>")
    folder = RunFolder(root / "run")
    keys = ("model.weights=none", "masks.scales=[1.0]", f"masks.refine={'crf' if with_masks else 'none'}")
    folder.write_config(load_config(None, [f"data.path={root / 'data'}", f"run.root={root}", *keys]))
    lines = [{"step": n, "epoch": 0, "phase": 1 + n // 3, "cls": 1 / n, "total": 2 / n, "lr": 0.1} for n in range(1, 5)]
    folder.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    folder.update_summary(images_per_second=12.34, seconds={"train": 1.0})
    save_untrained(folder.model, 0)
    if with_baseline:
        save_untrained(folder.baseline.model, 1)
        shutil.copy(folder.metrics_file, folder.baseline.metrics_file)
    return folder


def finish(folder: RunFolder) -> str:
    masks.main(["--run", str(folder.path), "masks.pictures.train=4", "masks.processes=1"])
    evaluate.main(["--run", str(folder.path)])
    report.main(["--run", str(folder.path)])
    return folder.report.read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("report"), with_masks=True, with_baseline=True)
    finish(folder)
    return folder


@pytest.fixture(scope="module")
def page(run) -> str:
    return run.report.read_text()


class Tags(HTMLParser):
    """Every opening tag with its attributes, and the text between."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.found if tag == "img"]


def test_the_page_shows_the_numbers_of_the_summary(run, page):
    summary, text = run.read_summary(), Tags(page).text
    for key in ("mask_fwiou", "mask_boundary_miou"):
        assert f"{summary[key]:.2f}" in text
    for key in ("seed_miou", "baseline_seed_miou", "mask_miou"):
        assert f"{summary[key]:.2f}" in text
        assert f"{summary[f'{key}_train']:.2f}" in text
    for value in (summary["tag_map"], summary["best_threshold"], 12.34):
        assert f"{value:.2f}" in text
    for ious in summary["per_class"].values():
        assert all(f"{iou:.1f}" in text for iou in ious.values())


def test_the_page_shows_which_class_was_taken_for_which(run, page):
    names, counts = read_table(run.confusion)
    assert names == ["background", *CLASSES] and counts.sum() > 0
    assert "Which class was taken for which" in page
    assert confusion_plot(names, counts) in Tags(page).images()


def test_a_class_named_like_a_formula_is_no_formula():
    assert confusion_plot(["$\\frac$", "$", "a_b"], np.eye(3, 4, dtype=np.int64)).startswith("data:image/png")


def test_the_score_says_what_it_is_of(run):
    text, digest = evaluate.lines(run.read_summary(), run), run.read_summary()["index_sha256"]["val"]
    assert text.startswith("scored          4 of 4 train pictures have ground truth")
    assert f"val pictures have ground truth (list {digest[:12]})" in text


def test_the_page_needs_nothing_from_outside(page):
    tags = Tags(page)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in tags.found}
    assert tags.images()
    assert all(image.startswith("data:image/") for image in tags.images())
    assert not any("href" in attributes or "srcset" in attributes for _, attributes in tags.found)
    assert "url(" not in page and "@import" not in page


def test_names_and_texts_from_data_are_escaped(page):
    tags = Tags(page)
    for name in CLASSES:
        assert name in tags.text
    assert "<b>somebody</b>" in tags.text
    assert not any("onload" in attributes for _, attributes in tags.found)


def test_each_picture_is_shown_in_all_its_views(page):
    captions = [a["alt"].removesuffix(" of val/0") for _, a in Tags(page).found if a.get("alt", "").endswith("val/0")]
    assert [c.split(" at ")[0] for c in captions] == [
        "picture",
        "baseline CAM",
        "KTSE CAM",
        "seed",
        "refined mask",
        "ground truth",
    ]


def test_every_image_of_the_page_can_be_opened(page):
    for image in Tags(page).images():
        with Image.open(io.BytesIO(base64.b64decode(image.partition("base64,")[2]))) as picture:
            assert min(picture.size) > 50


def test_the_summary_keeps_the_seconds_of_every_stage(run):
    seconds = run.read_summary()["seconds"]
    assert seconds.keys() == {"train", "masks", "evaluate", "report", "total"}
    assert seconds["total"] == pytest.approx(sum(s for stage, s in seconds.items() if stage != "total"), abs=0.06)


def test_a_run_without_ground_truth_and_without_baseline_has_a_page_too(tmp_path):
    folder = make_run(tmp_path, with_masks=False, with_baseline=False)
    tags = Tags(finish(folder))
    summary = folder.read_summary()
    assert summary["seed_miou"] is None and summary["per_class"] is None
    assert f"{summary['tag_map']:.2f}" in tags.text
    assert "There is no mIoU" in tags.text
    for row in range(3):  # the fourth picture has no tag whose score could place it
        assert sum(f"val/{row}" in attributes.get("alt", "") for _, attributes in tags.found) == 4
    assert tags.text.count("tag score 0.") == 3
    assert all(f"{found['ap']:.1f}" in tags.text for found in summary["tags"].values())


def test_a_report_computes_the_score_that_is_not_there_yet(run, page, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.summary_file.unlink()
    folder.update_summary(images_per_second=12.34, seconds={"train": 1.0})
    report.main(["--run", str(folder.path)])
    again, before = (f.read_summary() for f in (folder, run))
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in before.items() if k != "seconds"}


def test_the_next_command_is_named_where_a_stage_is_missing(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for missing, command in (
        (folder.masks / "settings.json", "ktse masks"),
        (folder.model, "ktse train"),
    ):
        missing.unlink()
        with pytest.raises(UserError, match=command):
            report.main(["--run", str(folder.path)])


def test_masks_made_with_other_settings_are_not_mixed(run):
    with pytest.raises(UserError, match=r"masks\.pictures: .*2.*, but the masks in .* were made with .*4"):
        masks.main(["--run", str(run.path), "masks.pictures.train=2"])


def test_the_score_counts_the_masks_that_were_written(run):
    index = Index.open(run.path.parent / "data", "val")
    made, reader = MaskIndex(run.masks, index), Reader(index)
    pairs = [(decode_mask(made.read(r, "mask")), decode_mask(reader.read(r, "mask"))) for r in range(4)]
    found, truth = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    found, truth = found[truth != 255], truth[truth != 255]
    ious = [((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum() for c in range(4)]
    assert run.read_summary()["mask_miou"] == pytest.approx(100 * np.mean(ious), abs=0.006)
