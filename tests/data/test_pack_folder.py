"""Anybody's pictures: folders, tables, masks, what is held out, and 30 wrong inputs."""

import csv
import json
import os
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ktse_dist.cli import dispatch
from ktse_dist.data.index import Index
from ktse_dist.data.pack.listing import Picture, held_out
from ktse_dist.data.reader import Reader
from ktse_dist.errors import run_main


def picture(file: Path, seed: int = 0, size: tuple[int, int] = (24, 32)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    if file.suffix == ".jpg":
        file.write_bytes(simplejpeg.encode_jpeg(pixels, 90))
    else:
        Image.fromarray(pixels).save(file)
    return file


def table(file: Path, *rows: tuple[str, ...], head: tuple[str, ...] = ("path", "tags")) -> Path:
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
    return file


@pytest.fixture
def photos(tmp_path) -> Path:
    """Ten cats, four dogs (two in a folder below), one of them a PNG; notes that are no pictures."""
    root = tmp_path / "photos"
    for number in range(10):
        picture(root / "cat" / f"{number}.jpg", number)
    for number, name in enumerate(("a.png", "b.jpg", "deep/c.jpg", "deep/d.jpg")):
        picture(root / "dog" / name, 20 + number)
    (root / "dog" / "notes.txt").write_text("x")
    return root


def packed(*arguments: object) -> dict[str, Index]:
    dispatch(["pack", "folder", *map(str, arguments), "--workers", "1"])
    return {split: Index.open(Path(arguments[1]), split) for split in ("train", "val")}


def tags_of(indexes: dict[str, Index]) -> dict[str, list[str]]:
    return {
        index.key(row): [index.classes[i] for i in np.flatnonzero(index.labels([row])[0])]
        for index in indexes.values()
        for row in range(len(index))
    }


def keys_of(indexes: dict[str, Index]) -> int:
    """How many keys there are; in its split each stands for one picture."""
    return sum(len({index.key(row) for row in range(len(index))}) for index in indexes.values())


def test_a_folder_a_class_becomes_a_data_set(photos, tmp_path, capsys):
    indexes = packed(photos, tmp_path / "data")
    found = tags_of(indexes)
    assert len(found) == 14
    assert found["cat/3"] == ["cat"] and found["dog/deep/c"] == ["dog"]
    assert "14 pictures: cat 10, dog 4; 1 other files passed over" in capsys.readouterr().out


def test_every_class_is_held_out_in_part(photos, tmp_path):
    indexes = packed(photos, tmp_path / "data", "--val", "0.2")
    assert indexes["val"].labels(range(len(indexes["val"]))).sum(0).tolist() == [2, 1]


def test_folders_train_and_val_are_the_splits(photos, tmp_path):
    root = tmp_path / "split"
    root.mkdir()
    photos.rename(root / "train")
    picture(root / "val" / "cat" / "x.jpg")
    indexes = packed(root, tmp_path / "data")
    assert (len(indexes["train"]), indexes["val"].key(0)) == (14, "val/cat/x")


def test_a_table_gives_several_tags_and_none(photos, tmp_path):
    file = table(
        photos / "tags.csv", ("cat/0.jpg", "cat;dog"), ("cat/1.jpg", "cat"), ("dog/b.jpg", ""), ("dog/a.png", "dog")
    )
    found = tags_of(packed(file, tmp_path / "data", "--val", "0.3"))
    assert found == {"cat/0": ["cat", "dog"], "cat/1": ["cat"], "dog/b": [], "dog/a": ["dog"]}


def test_json_lines_with_a_split_say_the_same(photos, tmp_path):
    file = tmp_path / "tags.jsonl"
    rows = [("cat/0.jpg", ["cat", "dog"], "train"), ("dog/b.jpg", "dog", "val")]
    file.write_text("".join(json.dumps({"path": p, "tags": t, "split": s}) + "\n" for p, t, s in rows))
    indexes = packed(file, tmp_path / "data", "--root", photos)
    assert (indexes["train"].key(0), indexes["val"].key(0)) == ("cat/0", "dog/b")


def test_classes_stand_in_the_order_that_was_given(photos, tmp_path):
    assert packed(photos, tmp_path / "data", "--classes", "dog,bird,cat")["train"].classes == ["dog", "bird", "cat"]


def test_masks_go_along_where_there_are_some(photos, tmp_path):
    truth = np.random.default_rng(1).choice(np.array([0, 1, 2, 255], np.uint8), (24, 32))
    (tmp_path / "masks" / "cat").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "masks" / "cat" / "3.png"), truth)
    indexes = packed(photos, tmp_path / "data", "--masks", tmp_path / "masks")
    masks = {
        index.key(row): Reader(index).truth(row)
        for index in indexes.values()
        for row in range(len(index))
        if index.samples["mask"]["size"][row]
    }
    assert list(masks) == ["cat/3"] and np.array_equal(masks["cat/3"], truth)


def test_a_mask_is_found_whatever_the_case_of_its_ending(photos, tmp_path, capsys):
    masks_of("3.PNG", "4.png")(photos)
    packed(photos, tmp_path / "data", "--masks", tmp_path / "m")
    assert "; 2 masks" in capsys.readouterr().out


def test_tags_lose_the_space_around_them_however_they_are_written(photos, tmp_path):
    lines = [("cat/0.jpg", [" cat", "dog ", ""]), ("cat/1.jpg", "cat ;"), ("dog/a.png", '[" dog "]')]
    file = photos / "tags.jsonl"
    file.write_text("".join(json.dumps({"path": path, "tags": tags}) + "\n" for path, tags in lines))
    found = tags_of(packed(file, tmp_path / "data", "--val", "0.4"))
    assert found == {"cat/0": ["cat", "dog"], "cat/1": ["cat"], "dog/a": ["dog"]}


def test_a_name_that_is_no_utf8_can_be_left_out_by_name(photos, tmp_path):
    (photos / "cat" / os.fsdecode(b"\xff.jpg")).write_bytes(b"\xff\xd8 no")
    packed(photos, tmp_path / "data", "--skip-bad")
    assert "cat/\\udcff.jpg: " in (tmp_path / "data" / "skipped.txt").read_text(encoding="utf-8")


def test_links_within_the_source_are_packed_and_linked_folders_are_counted(photos, tmp_path, capsys):
    (photos / "cat" / "link.jpg").symlink_to(photos / "dog" / "b.jpg")
    (photos / "cat" / "deep").symlink_to(photos / "dog" / "deep")
    assert tags_of(packed(photos, tmp_path / "data"))["cat/link"] == ["cat"]
    assert "2 other files passed over (1 .txt, 1 link to a folder)" in capsys.readouterr().out


def test_pictures_in_formats_that_nobody_reads_are_named_in_the_overview(photos, tmp_path, capsys):
    for name in ("a.heic", "b.HEIC"):
        (photos / "dog" / name).write_text("x")
    packed(photos, tmp_path / "data")
    assert "3 other files passed over (2 .heic, 1 .txt): convert .heic to JPEG" in capsys.readouterr().out


def test_jpegs_are_copied_byte_for_byte(photos, tmp_path):
    index = packed(photos, tmp_path / "data")["train"]
    row = next(row for row in range(len(index)) if index.key(row).startswith("cat"))
    assert Reader(index).read(row, "image") == (photos / f"{index.key(row)}.jpg").read_bytes()


@pytest.mark.parametrize("names", [("a b.jpg", "a_b.jpg"), ("x.jpg", "x.png"), ("дом.jpg", "дог.jpg")])
def test_names_that_would_make_one_key_get_two(photos, tmp_path, names):
    for number, name in enumerate(names):
        picture(photos / "cat" / name, 40 + number)
    assert keys_of(packed(photos, tmp_path / "data")) == 16


def test_a_name_that_is_no_utf8_is_packed(photos, tmp_path):
    for number, name in enumerate((b"\xff.jpg", b"\xfe.jpg")):
        picture(photos / "cat" / os.fsdecode(name), 40 + number)
    assert keys_of(packed(photos, tmp_path / "data")) == 16


tag_sets = st.lists(st.lists(st.sampled_from("abc"), max_size=2, unique=True), min_size=1, max_size=40)


@given(tag_sets, st.floats(0.05, 0.6))
def test_what_is_held_out_leaves_every_class_in_train(tags, share):
    pictures = [Picture(f"{n}.jpg", tuple(names), "") for n, names in enumerate(tags)]
    trained = [each for each in pictures if each.name not in held_out(pictures, share)]
    assert {tag for each in trained for tag in each.tags} == {tag for names in tags for tag in names}


@given(tag_sets, st.floats(0.05, 0.6))
def test_a_class_of_two_is_held_out_unless_another_would_lose_its_last(tags, share):
    pictures = [Picture(f"{n}.jpg", tuple(names), "") for n, names in enumerate(tags)]
    chosen = held_out(pictures, share)
    left = Counter(tag for each in pictures if each.name not in chosen for tag in each.tags)
    for name in left:
        own = [each for each in pictures if name in each.tags]
        is_held_out = any(each.name in chosen for each in own)
        assert len(own) == 1 or is_held_out or all(min(left[tag] for tag in each.tags) == 1 for each in own)


@given(tag_sets, st.floats(0.05, 0.6))
def test_what_is_held_out_does_not_depend_on_the_order(tags, share):
    pictures = [Picture(f"{n}.jpg", tuple(names), "") for n, names in enumerate(tags)]
    assert held_out(pictures, share) == held_out(pictures[::-1], share)


def test_a_json_list_in_a_table_is_a_list_of_tags(photos, tmp_path):
    file = table(photos / "tags.csv", ("cat/0.jpg", '["cat", "dog"]'), ("cat/1.jpg", "cat"), ("dog/a.png", "dog"))
    assert tags_of(packed(file, tmp_path / "data", "--val", "0.3"))["cat/0"] == ["cat", "dog"]


def test_a_folder_beside_train_and_val_is_passed_over_and_counted(tmp_path, capsys):
    for split in ("train", "val", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / "split" / split / name / "x.jpg")
    indexes = packed(tmp_path / "split", tmp_path / "data")
    assert sum(map(len, indexes.values())) == 4
    assert "2 other files passed over" in capsys.readouterr().out


def test_a_table_may_leave_out_pictures_that_have_masks(photos, tmp_path):
    file = table(photos / "t.csv", ("cat/0.jpg", "cat"), ("cat/1.jpg", "cat"), ("dog/a.png", "dog"))
    for name in ("0", "5"):
        mask_at(tmp_path / "m" / "cat" / f"{name}.png", np.ones((24, 32), np.uint8))
    indexes = packed(file, tmp_path / "data", "--masks", tmp_path / "m", "--val", "0.4").values()
    masked = [index.key(row) for index in indexes for row in np.flatnonzero(index.samples["mask"]["size"])]
    assert (sum(map(len, indexes)), masked) == (3, ["cat/0"])


def mask_at(file: Path, mask: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(file)


def mask_without_picture(root: Path) -> None:
    for name in ("0", "99"):
        mask_at(root.parent / "m" / "cat" / f"{name}.png", np.ones((24, 32), np.uint8))


def mask_of_two(root: Path) -> None:
    picture(root / "cat" / "0.png")
    mask_at(root.parent / "m" / "cat" / "0.png", np.ones((24, 32), np.uint8))


def other_split_names(root: Path) -> None:
    (root / "cat").rename(root / "train")
    (root / "dog").rename(root / "valid")


def class_of_val_only(root: Path) -> None:
    for where in ("train/cat", "train/dog", "val/cat", "val/cow"):
        picture(root.parent / "split" / where / "x.jpg")


def empty_class(root: Path) -> None:
    (root / "bird").mkdir()


def stray(root: Path) -> None:
    picture(root / "x.jpg")


def mask_of_other_size(root: Path) -> None:
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root.parent / "0.png")
    (root.parent / "m" / "cat").mkdir(parents=True)
    (root.parent / "0.png").rename(root.parent / "m" / "cat" / "0.png")


def mask_of_other_class(root: Path) -> None:
    mask_of_other_size(root)
    Image.fromarray(np.full((24, 32), 9, np.uint8)).save(root.parent / "m" / "cat" / "0.png")


def damaged(root: Path) -> None:
    (root / "cat" / "0.jpg").write_bytes(b"\xff\xd8 no")


def linked_picture(root: Path) -> None:
    (root / "cat" / "link.jpg").symlink_to(picture(root.parent / "secret.jpg"))


def linked_class(root: Path) -> None:
    picture(root.parent / "elsewhere" / "a.jpg")
    (root / "bird").symlink_to(root.parent / "elsewhere")


def linked_row(root: Path) -> None:
    picture(root.parent / "elsewhere" / "a.jpg")
    (root / "more").symlink_to(root.parent / "elsewhere")
    table(root / "t.csv", ("more/a.jpg", "cat"))


def pipe(root: Path) -> None:
    os.mkfifo(root / "cat" / "pipe.jpg")


def telephone_pictures(root: Path) -> None:
    (root / "bird").mkdir()
    for name in ("a.HEIC", "b.heic", "c.txt"):
        (root / "bird" / name).write_text("x")


def masks_of(*names: str):
    def change(root: Path) -> None:
        for name in names:
            mask_at(root.parent / "m" / "cat" / name, np.ones((24, 32), np.uint8))

    return change


def linked_mask(root: Path) -> None:
    mask_at(root.parent / "0.png", np.ones((24, 32), np.uint8))
    (root.parent / "m" / "cat").mkdir(parents=True)
    (root.parent / "m" / "cat" / "0.png").symlink_to(root.parent / "0.png")


def class_of_a_space(root: Path) -> None:
    picture(root / " " / "a.jpg")


def nothing(root: Path) -> None:
    pass


def rows(*lines: tuple[str, ...], head: tuple[str, ...] = ("path", "tags")):
    return lambda root: table(root / "t.csv", *lines, head=head)


WRONG = {
    "no such source": (nothing, "{root}/none {out}", ("none", "neither a folder nor a table")),
    "a picture as source": (nothing, "{root}/cat/0.jpg {out}", ("0.jpg", "neither a folder nor a table")),
    "a folder without folders": (nothing, "{root}/cat/../../empty {out}", ("empty", "no folders in it")),
    "pictures outside of classes": (stray, "{root} {out}", ("x.jpg", "no class's folder")),
    "an empty class": (empty_class, "{root} {out}", ("bird", "no pictures")),
    "a class that is not given": (nothing, "{root} {out} --classes cat,dogs", ("'dog'", "did you mean 'dogs'")),
    "a class given twice": (nothing, "{root} {out} --classes cat,dog,cat", ("'cat'", "twice")),
    "a share of one": (nothing, "{root} {out} --val 1", ("--val", "between 0 and 1")),
    "no masks folder": (nothing, "{root} {out} --masks {root}/m", ("--masks", "no such folder")),
    "masks of other pictures": (nothing, "{root} {out} --masks {root}/../empty", ("--masks", "no mask of any picture")),
    "a mask of another size": (mask_of_other_size, "{root} {out} --masks {m}", ("cat/0.png", "5x5", "32x24")),
    "a mask of another class": (mask_of_other_class, "{root} {out} --masks {m}", ("cat/0.jpg", "value 9", "0 to 2")),
    "a root for a folder": (nothing, "{root} {out} --root {root}", ("--root", "tables only")),
    "a damaged picture": (damaged, "{root} {out}", ("cat/0.jpg", "decoded", "--skip-bad")),
    "columns without tags": (rows(("a", "b"), head=("file", "tags")), "{root}/t.csv {out}", ("t.csv", "path,tags")),
    "a row too short": (rows(("a",)), "{root}/t.csv {out}", ("t.csv, line 2", "columns")),
    "a picture that is missing": (
        rows(("cat/99.jpg", "cat")),
        "{root}/t.csv {out}",
        ("line 2", "cat/99.jpg", "no file"),
    ),
    "a path that leaves": (rows(("../../x.jpg", "cat")), "{root}/t.csv {out}", ("line 2", "leaves")),
    "two opinions": (rows(("cat/0.jpg", "cat"), ("cat/0.jpg", "dog")), "{root}/t.csv {out}", ("line 3", "other tags")),
    "a split that is none": (
        rows(("cat/0.jpg", "cat", "test"), head=("path", "tags", "split")),
        "{root}/t.csv {out}",
        ("line 2", "'test'", "train, val"),
    ),
    "a split for some": (
        rows(("cat/0.jpg", "cat", "val"), ("cat/1.jpg", "cat", ""), head=("path", "tags", "split")),
        "{root}/t.csv {out}",
        ("cat/1.jpg", "no split"),
    ),
    "a table of no pictures": (rows(), "{root}/t.csv {out}", ("t.csv", "no line")),
    "no tags at all": (
        rows(("cat/0.jpg", ""), ("cat/1.jpg", "")),
        "{root}/t.csv {out}",
        ("0 classes", "check the tags"),
    ),
    "one class": (rows(("cat/0.jpg", "cat"), ("cat/1.jpg", "")), "{root}/t.csv {out}", ("one class ('cat')", "2 to")),
    "classes that differ in case": (
        rows(("cat/0.jpg", "cat"), ("cat/1.jpg", "Cat"), ("cat/2.jpg", "dog")),
        "{root}/t.csv {out}",
        ("'Cat'", "'cat'", "case"),
    ),
    "a mask without a picture": (
        mask_without_picture,
        "{root} {out} --masks {m}",
        ("cat/99.png", "without a picture"),
    ),
    "a mask of two pictures": (mask_of_two, "{root} {out} --masks {m}", ("cat/0.png", "cat/0.jpg", "rename")),
    "splits by other names": (other_split_names, "{root} {out}", ("train, valid", "call them train and val")),
    "a class in val only": (class_of_val_only, "{root}/../split {out}", ("'cow'", "val only")),
    "a class called background": (
        rows(("cat/0.jpg", "background"), ("cat/1.jpg", "cat")),
        "{root}/t.csv {out}",
        ("'background'", "rename"),
    ),
    "a class without a name": (class_of_a_space, "{root} {out}", ("called ' '", "rename")),
    "a tag with a comma": (rows(("cat/0.jpg", "cat,dog")), "{root}/t.csv {out}", ("line 2", "'cat,dog'", "by ;")),
    "a path too long for any file": (
        rows(("cat/" + 5000 * "x", "cat")),
        "{root}/t.csv {out}",
        ("line 2", "is no file there"),
    ),
    "a path that leaves through a link": (linked_row, "{root}/t.csv {out}", ("line 2", "more/a.jpg", "link")),
    "a picture that is a link out": (linked_picture, "{root} {out}", ("cat/link.jpg", "leads out", "remove")),
    "a class that is a link out": (linked_class, "{root} {out}", ("photos/bird", "leads out", "remove")),
    "a pipe among the pictures": (pipe, "{root} {out}", ("pipe.jpg", "pipe or a device")),
    "a class of formats that nobody reads": (
        telephone_pictures,
        "{root} {out}",
        ("bird", "no pictures", "2 .heic, 1 .txt", "convert .heic to JPEG"),
    ),
    "a mask that is no PNG": (masks_of("0.png", "1.bmp"), "{root} {out} --masks {m}", ("cat/1.bmp", "no PNG")),
    "a mask that is a link out": (linked_mask, "{root} {out} --masks {m}", ("cat/0.png", "leads out", "remove")),
    "two masks of one name": (masks_of("0.png", "0.PNG"), "{root} {out} --masks {m}", ("cat/0.", "remove one")),
    "classes of one picture each": (
        rows(("cat/0.jpg", "cat"), ("dog/a.png", "dog")),
        "{root}/t.csv {out}",
        ("no picture in val", "two or more"),
    ),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_a_wrong_input_is_one_line_and_leaves_no_data_set(case, photos, tmp_path, capsys):
    change, line, words = case
    (tmp_path / "empty").mkdir()
    change(photos)
    arguments = line.format(root=photos, out=tmp_path / "data", m=tmp_path / "m").split()
    with pytest.raises(SystemExit) as stopped:
        run_main(dispatch, ["pack", "folder", *arguments, "--workers", "1"])
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("ktse: ")]
    assert stopped.value.code == 2 and len(said) == 1
    assert [word for word in words if word not in said[0]] == []
    assert not (tmp_path / "data").exists()
