"""Packing: the same bytes for any number of processes and after any kill, and what cannot be used is named."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from tqdm import tqdm

from ktse_dist.data.index import Index
from ktse_dist.data.pack.coco import CocoSource
from ktse_dist.data.pack.engine import pack
from ktse_dist.data.pack.voc import VocSource
from ktse_dist.data.reader import Reader
from ktse_dist.errors import UserError

SHARD = 20_000  # bytes: a dozen pictures
TRAIN, VAL = 60, 20


@pytest.fixture(scope="module")
def tree(coco_tree) -> Path:
    return coco_tree(TRAIN, VAL)


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "set"
    pack(coco(tree), out, workers=1, shard_bytes=SHARD)
    return out


@pytest.fixture
def voc(voc_tree) -> Path:
    """A folder that the test may spoil."""
    return voc_tree() / "VOC2012"


def coco(root: Path) -> CocoSource:
    files = {split: root / "annotations" / f"instances_{split}2014.json" for split in ("train", "val")}
    return CocoSource(files, {split: root / f"{split}2014" for split in files}, "later", keep_all=False)


def voc_source(root: Path) -> VocSource:
    lists = root / "ImageSets" / "Segmentation"
    files = {"train": lists / "train_aug.txt", "val": lists / "val.txt"}
    return VocSource(root, files, root / "SegmentationClassAug")


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_three_processes_give_the_same_bytes_as_one(tree, whole, tmp_path):
    pack(coco(tree), tmp_path / "three", workers=3, shard_bytes=SHARD)
    assert content(tmp_path / "three") == content(whole)


def test_a_jpeg_is_copied_byte_for_byte(tree, whole):
    index = Index.open(whole, "train")
    assert len(index) == TRAIN
    for row in range(len(index)):
        assert Reader(index).read(row, "image") == (tree / "train2014" / f"{index.key(row)}.jpg").read_bytes()


def test_any_webdataset_reader_reads_the_set(whole):
    index = Index.open(whole, "val")
    found = list(wds.WebDataset([str(whole / shard.name) for shard in index.shards], shardshuffle=False))
    assert [item["__key__"] for item in found] == [index.key(row) for row in range(len(index))]


def test_the_set_is_split_into_shards_that_its_index_describes(whole):
    index = Index.open(whole, "train")
    index.check_files()
    assert len(index.shards) > 3
    assert set(index.samples["shard"].tolist()) == set(range(len(index.shards)))


def pack_apart(source: CocoSource, out: Path) -> None:
    """In a forked process that will be killed: the lock of its progress bars must not be the one of the tests."""
    tqdm.set_lock(threading.RLock())
    pack(source, out, 1, SHARD)


def test_killed_at_random_moments_and_restarted_it_ends_in_the_same_bytes(tree, whole, tmp_path):
    rng, out = random.Random(0), tmp_path / "set"
    for _ in range(6):
        process = multiprocessing.get_context("fork").Process(target=pack_apart, args=(coco(tree), out))
        process.start()
        process.join(rng.uniform(0, 0.15))
        process.kill()
        process.join()
    if not out.exists():
        pack(coco(tree), out, workers=1, shard_bytes=SHARD)
    assert content(out) == content(whole)


@pytest.mark.slow
def test_the_command_killed_ten_times_ends_in_the_same_bytes(coco_tree, tmp_path):
    root, rng, out = coco_tree(3000, 200), random.Random(1), tmp_path / "set"
    command = [sys.executable, "-m", "ktse_dist.data.pack", "coco", str(root)]
    subprocess.run([*command, str(tmp_path / "whole"), "--workers=1"], check=True, capture_output=True)
    kills = 0
    while kills < 10:
        process = subprocess.Popen([*command, str(out), "--workers=2"], stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(2, 6))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0
        if out.exists():  # it had ended, or was killed after its last rename
            assert content(out) == content(tmp_path / "whole")
            shutil.rmtree(out)
    if not out.exists():
        subprocess.run([*command, str(out), "--workers=2"], check=True, capture_output=True)
    assert content(out) == content(tmp_path / "whole")


def interrupted(root: Path, out: Path) -> Path:
    """A pack that ended at the last picture; returns the picture, and its bytes lie beside it."""
    last = sorted((root / "val2014").iterdir())[-2]  # the very last one is not annotated
    good = last.read_bytes()
    last.write_bytes(good[:200])
    with pytest.raises(UserError, match=last.name):
        pack(coco(root), out, workers=1, shard_bytes=SHARD)
    last.write_bytes(good)
    return out.with_name(f".{out.name}.unfinished") / "set"


def test_a_restart_packs_only_what_has_changed(coco_tree, tmp_path):
    root, out = coco_tree(TRAIN, VAL), tmp_path / "set"
    unfinished = interrupted(root, out)
    before = {file.name: file.stat().st_ino for file in unfinished.glob("train-*.tar")}
    changed = root / "train2014" / "COCO_train2014_000000000030.jpg"
    shutil.copy(root / "train2014" / "COCO_train2014_000000000031.jpg", changed)
    pack(coco(root), out, workers=1, shard_bytes=SHARD)
    pack(coco(root), tmp_path / "afresh", workers=1, shard_bytes=SHARD)
    assert content(out) == content(tmp_path / "afresh")
    again = [name for name, number in before.items() if (out / name).stat().st_ino != number]
    assert len(before) > 3 and 1 <= len(again) <= 2


def test_what_an_earlier_plan_left_is_not_in_the_set(coco_tree, voc, tmp_path):
    interrupted(coco_tree(TRAIN, VAL), tmp_path / "set")
    pack(voc_source(voc), tmp_path / "set", workers=1, shard_bytes=SHARD)
    pack(voc_source(voc), tmp_path / "afresh", workers=1, shard_bytes=SHARD)
    assert content(tmp_path / "set") == content(tmp_path / "afresh")


def test_a_kill_right_after_the_end_is_taken_for_the_end(tree, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "set")
    (tmp_path / ".set.unfinished" / "parts").mkdir(parents=True)
    assert pack(coco(tree), tmp_path / "set", workers=1) is None
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_second_packer_is_refused(tree, tmp_path):
    out = tmp_path / "set"
    os.mkfifo(tmp_path / "pipe")  # the first packer waits at it with the lock in its hands
    source = coco(tree)
    first = multiprocessing.get_context("fork").Process(target=hold, args=(source, out, tmp_path / "pipe"))
    first.start()
    (tmp_path / "pipe").open("w").close()
    with pytest.raises(UserError, match="another process is packing"):
        pack(source, out, workers=1)
    first.kill()
    first.join()
    assert pack(source, out, workers=1).samples == {"train": TRAIN, "val": VAL}


def hold(source: CocoSource, out: Path, pipe: Path) -> None:
    def items(split: str):
        pipe.open().close()
        time.sleep(600)

    source.items = items
    pack_apart(source, out)


def test_a_bad_picture_is_named_and_may_be_left_out(voc, tmp_path):
    (voc / "JPEGImages" / "2008_000002.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"2008_000002\.jpg: not a picture.*--skip-bad"):
        pack(voc_source(voc), tmp_path / "set", workers=1)
    packed = pack(voc_source(voc), tmp_path / "set", workers=1, skip_bad=True)
    assert packed.samples == {"train": 5, "val": 3} and packed.skipped == 1
    assert (tmp_path / "set" / "skipped.txt").read_text().startswith("train 2008_000002.jpg: ")


def test_a_shard_that_lacks_a_picture_is_made_anew_without_skip_bad(voc, tmp_path):
    (voc / "JPEGImages" / "2008_000002.jpg").write_bytes(b"no picture")
    bad = voc / "JPEGImages" / "2008_000008.jpg"
    (good, _), bad_list = (bad.read_bytes(), bad.unlink()), voc / "ImageSets" / "Segmentation" / "val.txt"
    bad_list.write_text("2008_000008\n")
    with pytest.raises(UserError, match="val: no pictures"):
        pack(voc_source(voc), tmp_path / "set", workers=1, skip_bad=True)
    bad.write_bytes(good)
    with pytest.raises(UserError, match=r"2008_000002\.jpg"):
        pack(voc_source(voc), tmp_path / "set", workers=1)


def test_names_that_give_one_key_all_bear_a_hash(voc, tmp_path):
    for name in ("a.b", "a_b", "a-b"):
        shutil.copy(voc / "JPEGImages" / "2008_000000.jpg", voc / "JPEGImages" / f"{name}.jpg")
        shutil.copy(voc / "Annotations" / "2008_000000.xml", voc / "Annotations" / f"{name}.xml")
        shutil.copy(voc / "SegmentationClassAug" / "2008_000000.png", voc / "SegmentationClassAug" / f"{name}.png")
    (voc / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("a_b\na.b\na-b\n")
    pack(voc_source(voc), tmp_path / "set", workers=1)
    index = Index.open(tmp_path / "set", "train")
    keys = [index.key(row) for row in range(3)]
    assert keys[0] == "a-b" and all(key.startswith("a_b-") for key in keys[1:]) and len(set(keys)) == 3


def test_other_formats_are_encoded_anew_and_counted(voc, tmp_path):
    picture = voc / "JPEGImages" / "2008_000000.jpg"
    with Image.open(picture) as opened:
        pixels = np.asarray(opened)
        opened.save(picture, "PNG")
    packed = pack(voc_source(voc), tmp_path / "set", workers=1)
    assert packed.encoded == 1
    error = Reader(Index.open(tmp_path / "set", "train")).picture(0).astype(int) - pixels
    assert np.abs(error).mean() < 2


def test_dataset_json_names_kind_and_classes(whole):
    about = json.loads((whole / "dataset.json").read_text())
    assert about["source"] == "coco"
    assert about["classes"] == ["person", "car", "bottle", "toothbrush"]


def test_a_full_disk_is_one_line_and_the_work_stays(tree, whole, tmp_path, monkeypatch):
    def full(number: int) -> None:
        if (tmp_path / ".set.unfinished" / "set" / "train-00001.tar").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("ktse_dist.data.pack.writer.os.fsync", full)
        with pytest.raises(UserError, match=r"No space left on device.*command again"):
            pack(coco(tree), tmp_path / "set", workers=1, shard_bytes=SHARD)
    pack(coco(tree), tmp_path / "set", workers=1, shard_bytes=SHARD)
    assert content(tmp_path / "set") == content(whole)


def test_a_folder_that_exists_is_left_alone(tree, tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="exists already"):
        pack(coco(tree), tmp_path / "set", workers=1)
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_a_file_that_changes_while_it_is_packed_is_noticed(voc, tmp_path):
    source = voc_source(voc)
    plain, calls = source.items, []

    def items(split: str):
        if split == "train" and calls.count("train"):
            (voc / "JPEGImages" / "2008_000003.jpg").write_bytes(b"another")
        calls.append(split)
        return plain(split)

    source.items = items
    with pytest.raises(UserError, match="changed while they were packed"):
        pack(source, tmp_path / "set", workers=1)
