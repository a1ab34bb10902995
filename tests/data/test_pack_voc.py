"""VOC: lists in both forms, tags from XML, masks or a file, mask values passed through."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ktse_dist.data.index import Index
from ktse_dist.data.pack import __main__ as command
from ktse_dist.data.pack.drawings import classes
from ktse_dist.data.pack.voc import CLASSES
from ktse_dist.data.reader import Reader


@pytest.fixture
def kit(voc_tree) -> Path:
    return voc_tree()


def packed(kit: Path, *more: str, split: str = "train") -> Index:
    out = kit / "set"
    shutil.rmtree(out, ignore_errors=True)
    command.main(["voc", str(kit), str(out), "--workers=1", *more])
    return Index.open(out, split)


def tags(index: Index) -> list[list[int]]:
    return [row.nonzero()[0].tolist() for row in index.labels(range(len(index)))]


EXPECTED = [[n, n + 7] for n in range(6)]


def test_the_classes_are_vocs():
    assert list(CLASSES) == classes()


def test_a_list_of_pairs_and_a_list_of_names_are_read(kit):
    index = packed(kit)
    assert [index.key(row) for row in range(len(index))] == [f"2008_{n:06d}" for n in range(6)]
    assert len(Index.open(kit / "set", "val")) == 3


def test_difficult_objects_are_tags_and_parts_are_not(kit):
    assert tags(packed(kit)) == EXPECTED


def test_mask_values_are_passed_through(kit):
    index = packed(kit)
    for row in range(len(index)):
        with Image.open(kit / "VOC2012" / "SegmentationClassAug" / f"{index.key(row)}.png") as picture:
            values = np.asarray(picture)
        np.testing.assert_array_equal(Reader(index).truth(row), values)
        assert {0, 255} < set(np.unique(values).tolist())


def test_a_picture_without_xml_is_tagged_by_its_mask(kit):
    shutil.rmtree(kit / "VOC2012" / "Annotations")
    assert tags(packed(kit)) == EXPECTED


def test_a_file_of_tags_goes_before_all_else(kit, tmp_path):
    (tmp_path / "tags.txt").write_text("2008_000001 tvmonitor cat\n\n2008_000002\n")
    found = tags(packed(kit, f"--tags={tmp_path / 'tags.txt'}"))
    assert found == [EXPECTED[0], [7, 19], [], *EXPECTED[3:]]


def test_other_lists_years_and_masks_can_be_named(kit, tmp_path):
    root = kit / "VOC2012"
    (root / "SegmentationClassAug").rename(root / "SegmentationClass")
    root.rename(kit / "VOC2007")
    (tmp_path / "few.txt").write_text("2008_000004\n2008_000000\n")
    index = packed(kit, "--year=2007", "--masks=SegmentationClass", f"--train-list={tmp_path / 'few.txt'}")
    assert [index.key(row) for row in range(len(index))] == ["2008_000000", "2008_000004"]


def test_without_masks_there_are_none(kit):
    shutil.rmtree(kit / "VOC2012" / "SegmentationClassAug")
    index = packed(kit, "--masks=none")
    assert not index.samples["mask"]["size"].any()
    assert tags(index) == EXPECTED
