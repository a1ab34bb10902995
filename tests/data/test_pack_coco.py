"""COCO: masks are what pycocotools' own code decodes, by both conventions; tags and counts are the field's."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ktse_dist.data.index import Index
from ktse_dist.data.pack import __main__ as command
from ktse_dist.data.pack.coco_masks import CocoMask, uncompressed
from ktse_dist.data.reader import Reader

CLASS_OF = {1: 0, 3: 1, 44: 2, 90: 3}


@pytest.fixture(scope="module")
def tree(coco_tree) -> Path:
    return coco_tree(9, 4)


@pytest.fixture(scope="module")
def reference(tree) -> COCO:
    return COCO(tree / "annotations" / "instances_train2014.json")


def packed(tree: Path, out: Path, *more: str) -> Index:
    command.main(["coco", str(tree), str(out), "--workers=1", *more])
    return Index.open(out, "train")


def later(coco: COCO, image: int) -> np.ndarray:
    """As the label makers of ReCAM and SIPE do it: a loop in the file's order, without crowds."""
    about = coco.imgs[image]
    mask = np.zeros((about["height"], about["width"]), np.uint8)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image, iscrowd=False)):
        mask[coco.annToMask(annotation) == 1] = CLASS_OF[annotation["category_id"]] + 1
    return mask


def smaller(coco: COCO, image: int) -> np.ndarray:
    """As coco2voc does it: by area, and what is drawn stays."""
    about = coco.imgs[image]
    mask = np.zeros((about["height"], about["width"]), np.uint8)
    for annotation in sorted(coco.loadAnns(coco.getAnnIds(imgIds=image)), key=lambda each: each["area"]):
        drawn = coco.annToMask(annotation) * np.uint8(CLASS_OF[annotation["category_id"]] + 1)
        mask = np.where(mask > 0, mask, drawn)
    return mask


@pytest.mark.parametrize("convention", [later, smaller], ids=["later", "smaller"])
def test_masks_are_what_pycocotools_decodes(tree, reference, tmp_path, convention):
    index = packed(tree, tmp_path / "set", f"--masks={convention.__name__}")
    images = {Path(about["file_name"]).stem: number for number, about in reference.imgs.items()}
    for row in range(len(index)):
        np.testing.assert_array_equal(Reader(index).truth(row), convention(reference, images[index.key(row)]))


def test_the_conventions_differ(tree, tmp_path):
    masks = []
    for convention in ("later", "smaller"):
        index = packed(tree, tmp_path / convention, f"--masks={convention}")
        masks.append([Reader(index).truth(row) for row in range(len(index))])
    assert any((a != b).any() for a, b in zip(*masks, strict=True))


def test_tags_are_the_categories_of_all_annotations_by_their_order(tree, reference, tmp_path):
    index = packed(tree, tmp_path / "set")
    assert index.classes == ["person", "car", "bottle", "toothbrush"]
    for row in range(len(index)):
        image = 70 + int(index.key(row)[-12:])
        found = {CLASS_OF[annotation["category_id"]] for annotation in reference.imgToAnns[image]}
        assert set(index.labels([row])[0].nonzero()[0].tolist()) == found


@pytest.mark.parametrize("choice, counts", [("drop", (9, 4)), ("keep", (10, 5))])
def test_pictures_without_annotations_are_dropped_or_kept(tree, tmp_path, choice, counts):
    index = packed(tree, tmp_path / "set", f"--unannotated={choice}")
    assert (len(index), len(Index.open(tmp_path / "set", "val"))) == counts
    if choice == "keep":
        assert not index.labels([9]).any() and not Reader(index).truth(9).any()


def test_without_masks_there_are_none(tree, tmp_path):
    index = packed(tree, tmp_path / "set", "--masks=none")
    assert not index.samples["mask"]["size"].any()


def test_names_are_sorted_whatever_the_order_of_the_file(tree, tmp_path):
    index = packed(tree, tmp_path / "set")
    assert [index.key(row) for row in range(9)] == [f"COCO_train2014_{number:012d}" for number in range(9)]


def test_pictures_may_lie_in_a_folder_images(coco_tree, tmp_path):
    tree = coco_tree(3, 2)
    (tree / "images").mkdir()
    for split in ("train2014", "val2014"):
        (tree / split).rename(tree / "images" / split)
    assert len(packed(tree, tmp_path / "set")) == 3


def test_2017_is_found_by_its_year(coco_tree, tmp_path):
    tree = coco_tree(3, 2)
    for split in ("train", "val"):
        (tree / f"{split}2014").rename(tree / f"{split}2017")
        file = tree / "annotations" / f"instances_{split}2014.json"
        file.rename(file.with_name(f"instances_{split}2017.json"))
    assert len(packed(tree, tmp_path / "set", "--year=2017")) == 3


def test_compressed_run_lengths_are_read_as_pycocotools_wrote_them():
    rng = np.random.default_rng(0)
    for share in (0.001, 0.1, 0.5, 1.0):
        mask = np.asfortranarray((rng.random((61, 47)) < share).astype(np.uint8))
        made = CocoMask((json.dumps({"segmentation": text_of(mask)}),), (4,), 61, 47, "later")(61, 47)
        np.testing.assert_array_equal(made, mask * 5)
        assert sum(uncompressed(text_of(mask)["counts"])) == mask.size


def text_of(mask: np.ndarray) -> dict:
    made = rle.encode(mask)
    return {"size": list(mask.shape), "counts": made["counts"].decode()}
