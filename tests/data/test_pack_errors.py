"""Wrong inputs of `ktse pack`: one line that names the file or annotation and the mend, exit status 2, no data set."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ktse_dist.data.pack import __main__ as command
from ktse_dist.data.pack.mask_png import mask_png
from ktse_dist.errors import run_main


@pytest.fixture(scope="module")
def trees(voc_tree, coco_tree) -> dict[str, Path]:
    return {"voc": voc_tree(3, 2), "coco": coco_tree(3, 2)}


def refused(kind: str, root: Path, out: Path, capsys, more: tuple[str, ...] = ()) -> str:
    with pytest.raises(SystemExit) as stop:
        run_main(command.main, [kind, str(root), str(out), "--workers=1", *more])
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ktse: ")]
    assert stop.value.code == 2 and len(lines) == 1
    assert not out.exists()
    return lines[0]


def write(file: str, content: bytes) -> Callable[[Path], Any]:
    return lambda root: (root / "VOC2012" / file).write_bytes(content)


def remove(file: str) -> Callable[[Path], Any]:
    return lambda root: (root / "VOC2012" / file).unlink()


LISTS = "ImageSets/Segmentation"
FIRST = "2008_000000"
VOC: dict[str, tuple[Callable[[Path], Any], tuple[str, ...], tuple[str, ...]]] = {
    "no VOCdevkit": (lambda root: shutil.rmtree(root / "VOC2012"), (), ("JPEGImages", "VOCdevkit", "--year")),
    "a year that is not there": (lambda root: None, ("--year=2007",), ("VOC2007", "--year")),
    "no augmented list": (remove(f"{LISTS}/train_aug.txt"), (), ("train_aug.txt", "--train-list")),
    "a list that is not there": (lambda root: None, ("--val-list=none.txt",), ("none.txt", "No such file")),
    "a list of other lines": (write(f"{LISTS}/val.txt", b"2008_000001 1 -1\n"), (), ("val.txt", "2008_000001 1 -1")),
    "a list that leaves the folder": (write(f"{LISTS}/val.txt", b"/../../a.jpg /b.png\n"), (), ("val.txt", "..")),
    "a name twice": (write(f"{LISTS}/val.txt", b"a\na\n"), (), ("'a'", "twice")),
    "a list that is no text": (write(f"{LISTS}/val.txt", b"\xff\xfe\x80"), (), ("val.txt", "UTF-8")),
    "an empty list": (write(f"{LISTS}/val.txt", b"\n"), (), ("val: no pictures", "at least one")),
    "no folder of masks": (lambda root: None, ("--masks=Masks",), ("Masks", "--masks")),
    "a mask missing": (remove(f"SegmentationClassAug/{FIRST}.png"), (), (f"{FIRST}.png", "--masks")),
    "a picture missing": (remove(f"JPEGImages/{FIRST}.jpg"), (), (f"{FIRST}.jpg", "No such file", "--skip-bad")),
    "a mask of another size": (
        write(f"SegmentationClassAug/{FIRST}.png", mask_png(np.zeros((9, 8), np.uint8))),
        (),
        (f"{FIRST}.png", "8x9", "60x48"),
    ),
    "a mask with class 21": (
        write(f"SegmentationClassAug/{FIRST}.png", mask_png(np.full((48, 60), 21, np.uint8))),
        (),
        (f"{FIRST}.jpg", "21", "0 to 20 and 255"),
    ),
    "XML that is none": (write(f"Annotations/{FIRST}.xml", b"<annotation>"), (), (f"{FIRST}.xml", "--tags")),
    "XML with an unknown class": (
        write(f"Annotations/{FIRST}.xml", b"<a><object><name>zebra</name></object></a>"),
        (),
        (f"{FIRST}.xml", "'zebra'", "aeroplane"),
    ),
    "neither XML nor mask": (remove(f"Annotations/{FIRST}.xml"), ("--masks=none",), (f"{FIRST}.xml", "--tags FILE")),
    "no worker": (lambda root: None, ("--workers=0",), ("workers", "0", "1 or more")),
}


@pytest.mark.parametrize("name", VOC)
def test_a_wrong_vocdevkit_is_one_line(name, trees, tmp_path, capsys):
    spoil, more, expected = VOC[name]
    root = shutil.copytree(trees["voc"], tmp_path / "VOCdevkit")
    spoil(root)
    line = refused("voc", root, tmp_path / "set", capsys, more)
    for part in expected:
        assert part in line


def with_first(key: str, **changes) -> Callable[[dict], Any]:
    return lambda about: about[key][0].update(changes)


def polygon(*numbers) -> Callable[[dict], Any]:
    return with_first("annotations", segmentation=[list(numbers)])


def run_lengths(counts: Any, size: Any = (48, 60)) -> Callable[[dict], Any]:
    return with_first("annotations", segmentation={"size": size, "counts": counts})


ANNOTATION = "annotation 1000"  # the first of them
COCO: dict[str, tuple[Callable[[dict], Any], tuple[str, ...]]] = {
    "no images": (lambda about: about.pop("images"), ("images", "nothing", "instances")),
    "images that are no list": (lambda about: about.update(images=5), ("images", "5", "a list")),
    "an image that is no object": (lambda about: about["images"].append(7), ("images", "7", "objects")),
    "an image without id": (lambda about: about["images"][0].pop("id"), ("images", "whole number")),
    "an image twice": (lambda about: about["images"].append(about["images"][0]), ("image 73", "once")),
    "a path that leaves the folder": (with_first("images", file_name="../a.jpg"), ("image 73", "../a.jpg", "relative")),
    "an absolute path": (with_first("images", file_name="/etc/passwd"), ("image 73", "/etc/passwd", "relative")),
    "a height of text": (with_first("images", height="48"), ("image 73", "'48'", "pixels")),
    "a gigantic picture": (with_first("images", height=10**12), ("image 73", "1000000000000", "at most")),
    "a picture that is not there": (with_first("images", id=70, file_name="a.jpg"), ("image 70", "once")),
    "annotations of another picture": (with_first("annotations", image_id=5), ("1000", "image_id 5")),
    "a category that is not listed": (
        with_first("annotations", category_id=2),
        ("1000", "category_id 2", "[1, 3, 44, 90]"),
    ),
    "a category without a name": (with_first("categories", name=""), ("category 90", "name")),
    "a category twice": (with_first("categories", id=1), ("category 1", "once")),
    "no category": (lambda about: about.update(categories=[], annotations=[]), ("categories", "nothing")),
    "a split with other categories": (with_first("categories", name="brush"), ("other categories",)),
    "no segmentation": (with_first("annotations", segmentation=[]), (ANNOTATION, "polygons", "--masks", "--skip-bad")),
    "a polygon of two corners": (polygon(1, 2, 3, 4), (ANNOTATION, "3 corners")),
    "a polygon of an odd length": (polygon(1, 2, 3, 4, 5, 6, 7), (ANNOTATION, "x, y, x, y")),
    "a polygon of text": (polygon("1", 2, 3, 4, 5, 6), (ANNOTATION, "numbers")),
    "a polygon far outside": (polygon(1, 2, 3, 4, 5, 1e9), (ANNOTATION, "1000000000.0")),
    "a polygon of NaN": (polygon(1, 2, float("nan"), 4, 5, 6), (ANNOTATION, "nan")),
    "a polygon without end": (polygon(*[0, 0, 60, 60] * 50_000), (ANNOTATION, "100,000 corners", "too many")),
    "run lengths of another size": (run_lengths([2880], [60, 48]), (ANNOTATION, "[60, 48]", "[48, 60]")),
    "run lengths that are too few": (run_lengths([5, 5]), (ANNOTATION, "10 pixels", "2,880")),
    "run lengths below 0": (run_lengths([2885, -5]), (ANNOTATION, "counts of pixels")),
    "run lengths that are no text of COCO": (run_lengths("\x01\x02"), (ANNOTATION, "text form")),
    "run lengths without end": (run_lengths("oooooooooooooooo"), (ANNOTATION, "text form")),
    "run lengths of too many pixels": (run_lengths("PPPo1"), (ANNOTATION, "run lengths")),
}


@pytest.mark.parametrize("name", COCO)
def test_a_wrong_instances_file_is_one_line(name, trees, tmp_path, capsys):
    spoil, expected = COCO[name]
    root = shutil.copytree(trees["coco"], tmp_path / "COCO")
    file = root / "annotations" / "instances_train2014.json"
    about = json.loads(file.read_text())
    spoil(about)
    file.write_text(json.dumps(about))
    line = refused("coco", root, tmp_path / "set", capsys)
    for part in expected:
        assert part in line


def test_an_area_that_is_no_number_matters_where_it_decides(trees, tmp_path, capsys):
    root = shutil.copytree(trees["coco"], tmp_path / "COCO")
    file = root / "annotations" / "instances_train2014.json"
    file.write_text(file.read_text().replace("1800.5", '"large"'))
    assert "area is 'large'" in refused("coco", root, tmp_path / "set", capsys, ("--masks=smaller",))
    command.main(["coco", str(root), str(tmp_path / "set"), "--workers=1"])


FILES = {
    "no annotations": (lambda file: file.unlink(), "No such file"),
    "annotations that end early": (lambda file: file.write_bytes(file.read_bytes()[:-900]), "to its end"),
    "annotations that are no JSON": (lambda file: file.write_text("id,class\n1,2\n"), "not the JSON"),
    "annotations that are no text": (lambda file: file.write_bytes(b'{"\xff": 1}'), "UTF-8"),
    "pictures of another size": (lambda file: file.write_text(file.read_text().replace("60", "61")), "61x48"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_is_one_line(name, trees, tmp_path, capsys):
    spoil, expected = FILES[name]
    root = shutil.copytree(trees["coco"], tmp_path / "COCO")
    spoil(root / "annotations" / "instances_train2014.json")
    assert expected in refused("coco", root, tmp_path / "set", capsys)


def test_a_root_without_pictures_is_one_line(tmp_path, capsys):
    line = refused("coco", tmp_path, tmp_path / "set", capsys, ("--year=2017",))
    assert "train2017" in line and "--year" in line


def test_a_folder_that_cannot_be_made_is_one_line(trees, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "cannot be made" in refused("voc", trees["voc"], tmp_path / "file" / "set", capsys)
