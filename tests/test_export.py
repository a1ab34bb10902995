"""`ktse export`: masks in other tools' formats, read back by their own libraries or parsers to the same pixels."""

import contextlib
import io
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import simplejpeg
import yaml
from PIL import Image
from pycocotools.coco import COCO

from ktse_dist import export
from ktse_dist.config_file import load_config
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskFiles, write_mask_index, write_mask_shard
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.palette import IGNORE, voc_palette
from ktse_dist.errors import run_main
from ktse_dist.inference.formats import encode_confidence, encode_mask
from ktse_dist.inference.polygons import fill
from ktse_dist.run_folder import RunFolder

CLASSES = ["dog", 'b:o"t</a>\n', "bottle"]
HEIGHT, WIDTH = 37, 51


def mask_of(number: int) -> np.ndarray:
    """Blocks of all classes with holes, single pixels and pixels to ignore."""
    blocks = np.random.default_rng(number).integers(0, 4, (8, 11), np.uint8).repeat(5, 0).repeat(5, 1)
    mask = blocks[:HEIGHT, :WIDTH].copy()
    mask[number % 30, ::7], mask[:, 17] = 1, IGNORE
    return mask


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    root = tmp_path_factory.mktemp("run")
    picture = simplejpeg.encode_jpeg(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with new_dataset(root / "data") as building:
        splits = {}
        for split, pictures in (("train", 3), ("val", 2)):
            samples = [Sample(f"{split}/{n}", picture, [n], None, f"photos/{n}.png") for n in range(pictures)]
            splits[split] = write_split(building, split, samples, len(CLASSES), 10**6)
        write_about(building, CLASSES, splits)
    folder = RunFolder(root / "run")
    folder.write_config(load_config(None, [f"data.path={root / 'data'}", f"run.root={root}"]))
    palette = np.array(voc_palette(4), np.uint8)
    for split in ("train", "val"):
        index = Index.open(root / "data", split)
        files = [
            MaskFiles(index.key(n), encode_mask(mask_of(n), palette), encode_confidence(np.ones((HEIGHT, WIDTH))))
            for n in range(len(index))
        ]
        write_mask_shard(folder.masks / index.shards[0].name, files)
        write_mask_index(folder.masks, index)
    return folder


def exported(run: RunFolder, out: Path, name: str, *more: str) -> Path:
    export.main(["--run", str(run.path), "--format", name, "--out", str(out), *more])
    return out


def answered(mask: np.ndarray) -> np.ndarray:
    """What formats without pixels to ignore say of them: no class."""
    return np.where(mask == IGNORE, 0, mask)


def test_palette_pngs_keep_every_value_and_colour(run, tmp_path):
    out = exported(run, tmp_path / "out", "png")
    assert (out / "ImageSets/Segmentation/train.txt").read_text().split() == ["train/0", "train/1", "train/2"]
    for number, key in enumerate((out / "ImageSets/Segmentation/val.txt").read_text().split()):
        with Image.open(out / "SegmentationClass" / f"{key}.png") as file:
            assert file.getpalette()[:12] == np.ravel(voc_palette(4)).tolist()
            assert np.array_equal(np.asarray(file), mask_of(number))


def test_the_labelmap_has_a_line_a_class_whatever_its_name(run, tmp_path):
    lines = (exported(run, tmp_path / "out", "png") / "labelmap.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["background", "dog", 'b_o"t</a>_', "bottle"]
    assert lines[2].split(":")[1:] == ["128,0,0", "", ""]


@pytest.mark.parametrize(("split", "pictures"), [("train", 3), ("val", 2)])
def test_coco_run_lengths_are_read_by_pycocotools_to_the_same_pixels(run, tmp_path, split, pictures):
    out = exported(run, tmp_path / "out", "coco")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(out / f"{split}.json")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == CLASSES
    for number, picture in enumerate(coco.loadImgs(coco.getImgIds())):
        assert picture["file_name"] == f"{split}/{number}.jpg" and picture["source"] == f"photos/{number}.png"
        found = np.zeros((picture["height"], picture["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(picture["id"])):
            region = coco.annToMask(annotation)
            assert annotation["area"] == region.sum()
            found[region > 0] = annotation["category_id"]
        assert np.array_equal(found, answered(mask_of(number)))
    assert len(coco.imgs) == pictures


def test_yolo_polygons_fill_the_same_pixels(run, tmp_path):
    out = exported(run, tmp_path / "out", "yolo", "--pictures")
    about = yaml.safe_load((out / "data.yaml").read_text())
    assert about == {"train": "images/train", "val": "images/val", "names": CLASSES}
    for number in range(3):
        assert (out / about["train"] / "train" / f"{number}.jpg").exists()
        found = np.zeros((HEIGHT, WIDTH), np.uint8)
        for line in (out / f"labels/train/train/{number}.txt").read_text().splitlines():
            chosen, *numbers = line.split()
            points = np.array(numbers, float).reshape(-1, 2)
            assert len(points) >= 3 and points.min() >= 0 and points.max() < 1
            pixels = points.astype(np.float32) * np.float32([WIDTH, HEIGHT])
            assert np.array_equal(np.rint(pixels), np.trunc(pixels))  # some readers round, some cut
            found[fill([np.rint(pixels)], HEIGHT, WIDTH)] = int(chosen) + 1
        assert np.array_equal(found, answered(mask_of(number)))


def test_label_studio_tasks_hold_the_same_pixels_and_their_labels(run, tmp_path):
    out = exported(run, tmp_path / "out", "label-studio")
    config = ElementTree.parse(out / "config.xml")
    labels = [label.get("value") for label in config.iter("Label")]
    assert labels == ["dog", 'b:o"t</a>_', "bottle"]
    for number, task in enumerate(json.loads((out / "train.json").read_text())):
        found = np.zeros((HEIGHT, WIDTH), np.uint8)
        for shape in task["predictions"][0]["result"]:
            value = shape["value"]
            points = np.rint(np.array(value["points"]) / 100 * (WIDTH, HEIGHT))
            found[fill([points], HEIGHT, WIDTH)] = labels.index(value["polygonlabels"][0]) + 1
        assert np.array_equal(found, answered(mask_of(number)))


def test_one_split_and_the_pictures_byte_for_byte(run, tmp_path):
    out = exported(run, tmp_path / "out", "coco", "--split", "val", "--pictures")
    assert sorted(path.name for path in out.iterdir()) == ["images", "val.json"]
    picture = simplejpeg.encode_jpeg(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    assert (out / "images/val/val/1.jpg").read_bytes() == picture


def test_a_folder_that_is_there_is_not_touched(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(export.main, ["--run", str(run.path), "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"ktse: {tmp_path}: exists already; remove it or give another folder\n"


def test_a_run_without_masks_is_told_how_to_make_them(run, tmp_path, capsys):
    os.makedirs(tmp_path / "bare")
    (tmp_path / "bare" / "config.yaml").write_bytes((run.path / "config.yaml").read_bytes())
    with pytest.raises(SystemExit):
        run_main(export.main, ["--run", str(tmp_path / "bare"), "--out", str(tmp_path / "out")])
    assert "has no masks of split 'train'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_network_is_told_how_to_learn_it(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_main(export.main, ["--run", str(run.path), "--format", "onnx", "--out", str(tmp_path / "out.onnx")])
    assert "learn the network first: ktse segment --run" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_damage_ends_in_one_line_and_leaves_nothing(run, tmp_path, capsys):
    shard = run.masks / "val-00000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"IDAT", b"IDOT"))
    try:
        with pytest.raises(SystemExit):
            run_main(export.main, ["--run", str(run.path), "--out", str(tmp_path / "out"), "--split", "val"])
    finally:
        shard.write_bytes(content)
    assert "is damaged" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
