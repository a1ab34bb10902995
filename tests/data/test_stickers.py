"""The embedded data set: the same for any number of processes, honest masks, no drawing on both sides."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from ktse_dist.data.decode import decode_jpeg, decode_mask
from ktse_dist.data.index import SPLITS, Index
from ktse_dist.data.pack import __main__ as command
from ktse_dist.data.pack.compose import PRIOR, USUAL_SCENES, compose, draw_labels, draw_scene
from ktse_dist.data.pack.drawings import FOLDER, classes, drawings
from ktse_dist.data.pack.scenes import SCENES
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.data.palette import IGNORE
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError

TRAIN, VAL = 60, 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("stickers") / "set"
    pack_stickers(out, TRAIN, VAL, seed=3, workers=1)
    return out


def pictures(folder: Path, split: str):
    """(labels, picture, mask, drawings' files) of every sample."""
    index = Index.open(folder, split)
    reader = Reader(index)
    for row, tags in enumerate(index.labels(range(len(index)))):
        about = json.loads(reader.read(row, "json"))
        assert about["labels"] == np.flatnonzero(tags).tolist()
        files = about["source"].removeprefix("stickers: ").split()
        yield about["labels"], decode_jpeg(reader.read(row, "image")), decode_mask(reader.read(row, "mask")), files


def test_any_number_of_processes_gives_the_same_bytes(folder, tmp_path):
    pack_stickers(tmp_path / "two", TRAIN, VAL, seed=3, workers=2)
    assert {file.name for file in folder.iterdir()} == {file.name for file in (tmp_path / "two").iterdir()}
    for file in folder.iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_another_seed_gives_other_pictures():
    assert compose(0, "train", 5).jpeg != compose(1, "train", 5).jpeg


def test_masks_show_the_labels_and_nothing_else(folder):
    for split in SPLITS:
        for labels, picture, mask, _ in pictures(folder, split):
            assert picture.shape[:2] == mask.shape
            assert set(np.unique(mask)) - {0, IGNORE} == {label + 1 for label in labels}


def test_every_edge_in_a_mask_is_ignored(folder):
    for _, _, mask, _ in pictures(folder, "val"):
        for a, b in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert ((a == b) | (a == IGNORE) | (b == IGNORE)).all()


def test_the_ignored_edge_is_thin(folder):
    """Nothing of it survives an erosion by 2 pixels, but where edges meet."""
    disc = np.ones((5, 5), np.uint8)
    for _, _, mask, _ in pictures(folder, "val"):
        assert cv2.erode((mask == IGNORE).astype(np.uint8), disc).mean() < 0.01


def test_long_sides_are_230_to_280_pixels(folder):
    sides = {max(picture.shape) for split in SPLITS for _, picture, _, _ in pictures(folder, split)}
    assert min(sides) >= 230
    assert max(sides) <= 280


def test_pictures_are_of_the_drawings_of_their_split(folder):
    entries = {entry["file"]: entry for entry in json.loads((FOLDER / "index.json").read_text())}
    for split in SPLITS:
        for labels, _, _, files in pictures(folder, split):
            assert {entries[file]["split"] for file in files} == {split}
            assert {entries[file]["class"] for file in files} == {classes()[label] for label in labels}


def test_no_drawing_is_in_both_splits():
    pixels = [
        {drawing.rgba.tobytes() for choices in drawings(split).values() for drawing in choices} for split in SPLITS
    ]
    assert all(all(drawings(split).values()) for split in SPLITS)
    assert not pixels[0] & pixels[1]


def test_pictures_show_one_two_or_three_classes_as_planned():
    counts = Counter(len(draw_labels(np.random.default_rng([9, n]), n)) for n in range(4000))
    assert [counts[n] / 4000 for n in (1, 2, 3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.03)


def test_every_class_is_the_main_one_equally_often():
    mains = Counter(draw_labels(np.random.default_rng(n), n)[0] for n in range(400))
    assert set(mains.values()) == {20}


def test_a_class_stands_in_its_usual_scene_as_often_as_planned():
    rng, cow = np.random.default_rng(0), classes().index("cow")
    usual = np.mean([draw_scene(rng, cow) in USUAL_SCENES["cow"] for _ in range(4000)])
    assert usual == pytest.approx(PRIOR + (1 - PRIOR) / len(SCENES), abs=0.03)


def test_a_smaller_set_is_the_beginning_of_a_larger_one(folder, tmp_path):
    pack_stickers(tmp_path / "few", 5, 2, seed=3, workers=1)
    few, all_of_them = (Reader(Index.open(path, "train")) for path in (tmp_path / "few", folder))
    assert all(few.read(row, "image") == all_of_them.read(row, "image") for row in range(5))


def test_a_set_that_is_there_is_left_alone(folder):
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    pack_stickers(folder, TRAIN, VAL, seed=3)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_other_stickers_are_not_overwritten(folder):
    with pytest.raises(UserError, match="holds other stickers"):
        pack_stickers(folder, TRAIN, VAL, seed=4)


def test_a_set_that_lost_a_shard_is_not_taken_for_whole(tmp_path):
    pack_stickers(tmp_path / "set", 3, 2, workers=1)
    (tmp_path / "set" / "val-00000.tar").unlink()
    with pytest.raises(UserError, match=r"val-00000\.tar: missing"):
        pack_stickers(tmp_path / "set", 3, 2, workers=1)


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds something else.*another folder"):
        pack_stickers(tmp_path, 3, 2, workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": -1}, {"seed": -1}, {"workers": 0}])
def test_numbers_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        pack_stickers(tmp_path / "set", **wrong)


def test_every_drawing_is_attributed_in_the_data_set(folder):
    text = (folder / "ATTRIBUTION.md").read_text()
    for entry in json.loads((FOLDER / "index.json").read_text()):
        assert f"`{entry['file']}`: {entry['title']}, by {entry['author']}, {entry['licence']}" in text


def test_the_command_packs_and_draws_a_contact_sheet(tmp_path):
    sheet = tmp_path / "sheet.png"
    command.main(["stickers", str(tmp_path / "set"), "--train=4", "--val=2", "--workers=1", f"--preview={sheet}"])
    assert len(Index.open(tmp_path / "set", "train")) == 4
    assert cv2.imread(str(sheet)).std() > 10


def test_pictures_are_jpegs_of_three_channels():
    assert simplejpeg.decode_jpeg_header(compose(0, "val", 0).jpeg)[2:] == ("YCbCr", "420")
