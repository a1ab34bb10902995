"""`ktse inspect`: the figures are those of what was packed, and damage does not stop it."""

import json
import tracemalloc
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from ktse_dist.data import inspect
from ktse_dist.data.examine import Findings, examine
from ktse_dist.data.index import HEADER, Index
from ktse_dist.data.pack.mask_png import mask_png
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.pool import WorkerDied
from ktse_dist.errors import run_main

CLASSES = ["boat", "cat", "cow"]
SIZES = [(20, 30), (24, 36), (40, 50), (26, 32), (22, 60)]  # height, width
LABELS = [[0], [1], [0, 1], [], [0, 1]]


def samples(masks: bool = True) -> list[Sample]:
    """Five pictures; the fourth has no tag, the fifth no mask, and cat stands in the masks of those tagged cat."""
    made = []
    for number, ((height, width), labels) in enumerate(zip(SIZES, LABELS, strict=True)):
        mask = np.zeros((height, width), np.uint8)
        mask[0, : len(labels)] = [label + 1 for label in labels]
        mask[1] = 255
        picture = np.full((height, width, 3), 40 * number, np.uint8)
        member = mask_png(mask) if masks and number < 4 else None
        made.append(Sample(f"set/{number}", simplejpeg.encode_jpeg(picture, 95), labels, member, f"file {number}"))
    return made


def pack(out: Path, items: list[Sample], val: list[Sample] | None = None, shard_bytes: int = 6000) -> Path:
    with new_dataset(out) as folder:
        parts = {"train": items, "val": val or items[:1]}
        splits = {name: write_split(folder, name, part, len(CLASSES), shard_bytes) for name, part in parts.items()}
        write_about(folder, CLASSES, splits)
    return out


@pytest.fixture
def dataset(tmp_path) -> Path:
    return pack(tmp_path / "set", samples())


def train(dataset: Path) -> dict:
    return inspect.inspect(dataset, verify=False)["splits"]["train"]


def test_classes_and_tags_are_counted(dataset):
    figures = train(dataset)
    assert figures["pictures"] == 5
    assert figures["classes"] == {"boat": 3, "cat": 3, "cow": 0}
    assert figures["tags_per_picture"] == {"0": 1, "1": 2, "2": 2}


def test_classes_that_share_pictures_are_counted(dataset):
    figures = train(dataset)
    assert figures["together"] == [("boat", "cat", 2)]
    assert figures["matrix"] == [[3, 2, 0], [2, 3, 0], [0, 0, 0]]


def test_sizes_are_the_smallest_the_median_and_the_largest(dataset):
    figures = train(dataset)
    assert figures["height"] == {"min": 20, "median": 24, "max": 40}
    assert figures["width"] == {"min": 30, "median": 36, "max": 60}


def test_masks_are_counted_by_what_they_show(dataset):
    masks = train(dataset)["masks"]
    assert (masks["pictures"], masks["classes"]) == (4, {"boat": 2, "cat": 2, "cow": 0})
    pixels = [height * width for height, width in SIZES[:4]]
    assert masks["ignored"] == pytest.approx(sum(width for _, width in SIZES[:4]) / sum(pixels), abs=1e-4)


def test_a_mask_that_shows_what_the_tags_lack_is_counted(tmp_path):
    items = samples()
    items[0] = items[0]._replace(labels=[2])
    assert train(pack(tmp_path / "set", items))["masks"]["contradictions"] == 1


def test_a_set_without_masks_says_so(tmp_path, capsys):
    dataset = pack(tmp_path / "set", samples(masks=False))
    inspect.main([str(dataset), "--workers=1"])
    assert train(dataset)["masks"] is None
    assert "masks      none" in capsys.readouterr().out


def test_pictures_of_val_that_are_in_train_are_counted(tmp_path):
    items = samples()
    other = Sample("new", simplejpeg.encode_jpeg(np.full((20, 20, 3), 7, np.uint8), 95), [0], None, "new")
    assert inspect.inspect(pack(tmp_path / "a", items, [items[1], other]), False)["val_pictures_in_train"] == 1


def test_a_size_behind_long_notes_is_found(tmp_path):
    notes = b"\xff\xe1\xff\xff" + bytes(65533)
    items = [item._replace(jpeg=item.jpeg[:2] + 2 * notes + item.jpeg[2:]) for item in samples()]
    assert train(pack(tmp_path / "set", items))["width"] == {"min": 30, "median": 36, "max": 60}


def test_processes_change_nothing(dataset):
    shard = dataset / "train-00000.tar"
    shard.chmod(0o644)
    shard.write_bytes(shard.read_bytes()[:-3000])
    assert inspect.inspect(dataset, True, workers=2) == inspect.inspect(dataset, True, workers=1)


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    peaks = []
    for count in (20, 200):
        items = [item._replace(key=f"{item.key}_{n}") for n in range(count // 5) for item in samples()]
        dataset = pack(tmp_path / str(count), items)
        tracemalloc.start()
        inspect.inspect(dataset, True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_findings_of_shards_add_up_to_those_of_one(tmp_path):
    one, many = (Index.open(pack(tmp_path / str(size), samples(), None, size), "train") for size in (10**9, 1))
    added = Findings()
    for findings in map(partial(examine, many, True, {}), range(len(many.shards))):
        added.add(findings)
    whole = examine(one, True, {}, 0)
    for mine, its in zip(added._arrays(), whole._arrays(), strict=True):
        assert np.array_equal(mine, its)


def test_the_command_prints_every_class_and_exits_with_0(dataset, capsys):
    inspect.main([str(dataset), "--verify", "--workers=1"])
    text = capsys.readouterr().out
    assert all(name in text for name in CLASSES)
    assert "whole: every hash" in text


def test_progress_counts_pictures(dataset, capsys):
    inspect.main([str(dataset), "--verify", "--workers=1"])
    assert "6/6" in capsys.readouterr().err


def test_a_worker_that_was_killed_is_one_line(dataset, capsys, monkeypatch):
    def died(*_):
        raise WorkerDied("a worker process died at or after item 0")

    monkeypatch.setattr(inspect, "ordered_map", died)
    with pytest.raises(SystemExit) as stop:
        run_main(inspect.main, [str(dataset)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "ktse: --workers: a worker process died at or after item 0"


def test_an_address_is_refused_with_what_to_do_instead(capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(inspect.main, ["s3://bucket/set"])
    assert ended.value.code == 2
    assert "s3://bucket/set: an address, and whole folders are inspected" in capsys.readouterr().err


def test_json_is_one_object_for_machines(dataset, capsys):
    inspect.main([str(dataset), "--json", "--workers=1"])
    assert json.loads(capsys.readouterr().out)["splits"]["val"]["pictures"] == 1


def test_many_classes_are_told_by_their_most_frequent_pairs(tmp_path, capsys):
    items = samples()
    classes = [f"class {n}" for n in range(80)]
    with new_dataset(tmp_path / "set") as folder:
        many = [item._replace(labels=list(range(n, n + 40)), mask=None) for n, item in enumerate(items)]
        write_about(folder, classes, {"train": write_split(folder, "train", many, 80, 10**6)})
    inspect.main([str(tmp_path / "set"), "--workers=1"])
    assert len(capsys.readouterr().out.splitlines()) < 80 + 25


def test_a_name_cannot_give_orders_to_the_terminal(tmp_path, capsys):
    with new_dataset(tmp_path / "set") as folder:
        write_about(folder, ["a\x1b[2J", "b"], {"train": write_split(folder, "train", samples(False)[:3], 2, 10**6)})
    inspect.main([str(tmp_path / "set"), "--workers=1"])
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("masks", [True, False])
def test_the_contact_sheet_shows_pictures_with_and_without_masks(tmp_path, masks):
    dataset = pack(tmp_path / "set", samples(masks))
    inspect.main([str(dataset), "--workers=1", f"--sheet={tmp_path / 'sheet.png'}"])
    assert cv2.imread(str(tmp_path / "sheet.png")).std() > 10


def test_a_damaged_picture_is_left_out_of_the_contact_sheet_and_named(tmp_path, capsys):
    items = samples()
    items[1] = items[1]._replace(jpeg=b"no picture")
    dataset = pack(tmp_path / "set", items)
    with pytest.raises(SystemExit) as stop:
        inspect.main([str(dataset), "--workers=1", f"--sheet={tmp_path / 'sheet.png'}"])
    assert stop.value.code == 1
    assert "set/1: its image is not a JPEG" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize("damage", ["no index", "no shard", "a shard number that is none"])
def test_what_is_damaged_is_left_out_of_the_contact_sheet_and_the_rest_is_drawn(dataset, tmp_path, damage):
    index = dataset / "train.index"
    content = bytearray(index.read_bytes())
    if damage == "no shard":
        (dataset / "train-00000.tar").unlink()
    else:
        content[HEADER + 3] = 1
        index.write_bytes(b"" if damage == "no index" else content)
    with pytest.raises(SystemExit) as stop:
        inspect.main([str(dataset), "--workers=1", f"--sheet={tmp_path / 'sheet.png'}"])
    assert stop.value.code == 1
    assert (tmp_path / "sheet.png").exists()


WRONG = {
    "no data set": ("{tmp}", "no dataset.json"),
    "nothing there": ("{tmp}/none", "no dataset.json"),
    "no workers": ("{set} --workers=0", "--workers: 0"),
    "a sheet that is no PNG": ("{set} --sheet={tmp}/sheet.jpg", ".png"),
    "a sheet that is a folder": ("{set} --sheet={tmp}/folder.png", "folder.png"),
    "a set whose split lies elsewhere": ("{tmp}/elsewhere", "dataset.json"),
    "a set whose colours are none": ("{tmp}/colours", "dataset.json"),
    "a sheet in no folder": ("{set} --sheet={tmp}/none/sheet.png", "none/sheet.png"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_one_line_and_exit_2(dataset, tmp_path, capsys, name):
    line, expected = WRONG[name]
    (tmp_path / "folder.png").mkdir()
    about = json.loads((dataset / "dataset.json").read_text())
    outside = {"../set/train": about["splits"]["train"]}
    for folder, change in {"elsewhere": {"splits": outside}, "colours": {"palette": [[0, 0], [1]]}}.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dataset.json").write_text(json.dumps(about | change))
    with pytest.raises(SystemExit) as stop:
        run_main(inspect.main, line.format(set=dataset, tmp=tmp_path).split(" "))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1 and expected in error
