"""`ktse predict` on a tiny run with random weights: real files in, real files out."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ktse_dist import masks, models, predict
from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.foreign import Upright
from ktse_dist.data.index import Index
from ktse_dist.data.mask_shards import MaskIndex
from ktse_dist.data.pack.writer import Sample, new_dataset, write_about, write_split
from ktse_dist.data.palette import voc_palette
from ktse_dist.data.search import find_pictures
from ktse_dist.errors import run_main
from ktse_dist.models.weights import save_model
from ktse_dist.reporting.prediction_log import PredictionLog
from ktse_dist.reporting.predictions import Loaded, Wanted
from ktse_dist.run_folder import RunFolder

CLASSES = ["dog", "<script>../x", "bottle"]
NETWORK = Network(weights="none")
KTSE = Path(sys.executable).with_name("ktse")


def pixels(number: int, height: int = 72, width: int = 96) -> np.ndarray:
    rgb = np.random.default_rng(number).integers(0, 90, (height, width, 3), np.uint8)
    rgb[height // 4 : height // 2, width // 4 : width // 2, number % 3] = 230
    return rgb


def encoded(rgb: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


def samples(split: str):
    for n in range(4):
        yield Sample(f"{split}/{n}", encoded(pixels(n)), [n][: n < 3], None, "drawn by the test")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A run whose masks are made, and not scored yet."""
    root = tmp_path_factory.mktemp("run")
    with new_dataset(root / "data") as building:
        splits = {s: write_split(building, s, samples(s), len(CLASSES), 10**6) for s in ("train", "val")}
        write_about(building, CLASSES, splits)
    folder = RunFolder(root / "run")
    keys = ["masks.scales=[1.0]", "masks.refine=none", "engine.name=torch", "masks.processes=1"]
    folder.write_config(load_config(None, [f"data.path={root / 'data'}", f"run.root={root}", *keys]))
    torch.manual_seed(0)
    model = nn.ModuleDict(dict(zip(("backbone", "head"), models.build(NETWORK, len(CLASSES)), strict=True)))
    save_model(folder.model, model.state_dict(), NETWORK, CLASSES)
    masks.main(["--run", str(folder.path)])
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six pictures: two sizes, two of one name, one upside down by its EXIF, one that is none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(encoded(pixels(n)))
    (folder / "0.png").write_bytes(encoded(pixels(5, 40, 50), "PNG"))
    (folder / "sub" / "1.jpg").write_bytes(encoded(pixels(7)))
    turned = Image.Exif()
    turned[0x0112] = 6
    (folder / "turned.jpg").write_bytes(encoded(pixels(3), exif=turned))
    return folder


def ask(run: RunFolder, out: Path, *arguments: object) -> dict:
    predict.main([*map(str, arguments), "--run", str(run.path), "--out", str(out), "--processes", "0"])
    return json.loads((out / "scores.json").read_text())


def test_every_picture_gets_a_palette_mask_of_its_upright_size_an_overlay_and_scores(run, photos, tmp_path):
    scores = ask(run, tmp_path / "out", photos, "--recursive", "--threshold", "0")
    assert len(scores["pictures"]) == 6 and not scores["failed"]
    for record in scores["pictures"].values():
        with Image.open(record["path"]) as picture:
            width, height = picture.size if "turned" not in record["path"] else picture.size[::-1]
        with Image.open(tmp_path / "out" / record["mask"]) as mask:
            assert mask.mode == "P" and mask.size == (width, height)
            assert mask.getpalette()[: 3 * 4] == np.ravel(voc_palette(4)).tolist()
            counts = np.bincount(np.asarray(mask).ravel(), minlength=4) / (width * height)
        assert [record["share"].get(name, 0) for name in ("background", *CLASSES)] == pytest.approx(counts, abs=1e-6)
        assert set(record["probabilities"]) == set(CLASSES)
        assert Image.open(tmp_path / "out" / record["overlay"]).size[0] >= 220


def test_the_crf_refines_in_the_networks_own_process_too(run, photos, tmp_path):
    pytest.importorskip("pydensecrf")
    predictor = replace(predict.predictor_of(run, 0.0, None, processes=0), refine="crf")
    found = find_pictures([str(photos)], recursive=False)
    log = PredictionLog(tmp_path / "out", {})
    assert predict.predict(predictor, predict.wanted(found, {}, log), log) == {}
    log.close()
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == len(found)


def test_given_tags_make_the_masks_that_ktse_masks_makes(run, tmp_path):
    index = Index.open(run.path.parent / "data", "val")
    lines = []
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(encoded(pixels(n)))
        lines.append(json.dumps({"path": f"{n}.jpg", "tags": CLASSES[n : n + 1]}))
    (tmp_path / "tags.jsonl").write_text("\n".join(lines))
    scores = ask(run, tmp_path / "out", tmp_path, "--tags", tmp_path / "tags.jsonl")
    made = MaskIndex(run.masks, index)
    for n in range(4):
        record = scores["pictures"][str(n)]
        ours = decode_mask((tmp_path / "out" / record["mask"]).read_bytes())
        assert record["tags_from"] == "given" and record["tags"] == CLASSES[n : n + 1]
        assert (ours == decode_mask(made.read(n, "mask"))).mean() > 0.99


def test_pictures_that_the_tags_file_leaves_out_are_left_to_the_classifier(run, photos, tmp_path):
    (photos / "tags.csv").write_text("path,tags\n0.jpg,dog;bottle\n1.jpg,\n")
    scores = ask(run, tmp_path / "out", photos, "--tags", photos / "tags.csv", "--threshold", "0")
    found = {Path(r["path"]).name: (r["tags"], r["tags_from"]) for r in scores["pictures"].values()}
    assert found["0.jpg"] == (["dog", "bottle"], "given")
    assert found["1.jpg"] == ([], "given")
    assert found["2.jpg"] == (CLASSES, "predicted")


def test_a_picture_without_a_class_above_the_threshold_is_background_and_says_so(run, photos, tmp_path):
    scores = ask(run, tmp_path / "out", photos / "2.jpg", "--threshold", "1")
    (record,) = scores["pictures"].values()
    assert record["tags"] == [] and record["share"] == {"background": 1} and "no class reaches" in record["note"]
    assert not decode_mask((tmp_path / "out" / record["mask"]).read_bytes()).any()


def test_the_threshold_is_the_one_that_held_out_tags_chose(run, photos, tmp_path):
    used = ask(run, tmp_path / "out", photos / "2.jpg")["settings"]["threshold"]
    assert used == run.read_summary()["tag_threshold"]


def test_pictures_of_one_name_and_names_of_every_kind_do_not_collide(run, tmp_path):
    names = ["a.b.jpg", "a-b.jpg", "a_b.jpg", "a b.jpg", "A_B.jpg", "ä.jpg", "ö.jpg", "<b>&'.jpg", "new\nline.jpg"]
    for n, folder in enumerate(("x", "y")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(encoded(pixels(n, 32, 32)))
    scores = ask(run, tmp_path / "out", tmp_path / "x", tmp_path / "y")
    assert len(scores["pictures"]) == 2 * len(names)
    written = [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out" / "masks").rglob("*.png")]
    assert sorted(written) == sorted(record["mask"] for record in scores["pictures"].values())
    assert all(
        set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/.") for name in written
    )


def test_another_folders_picture_of_the_same_name_gets_another_file_in_a_later_command(run, photos, tmp_path):
    ask(run, tmp_path / "out", photos / "1.jpg")
    scores = ask(run, tmp_path / "out", photos / "sub" / "1.jpg")
    assert len({record["mask"] for record in scores["pictures"].values()}) == 2


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_interrupted_command_goes_on_and_ends_in_the_same_files(run, photos, tmp_path, monkeypatch):
    ask(run, tmp_path / "whole", photos, "--recursive")
    add, done = PredictionLog.add, []

    def interrupted(log: PredictionLog, name: str, record: dict) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(name)
        add(log, name, record)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PredictionLog, "add", interrupted)
        ask(run, tmp_path / "out", photos, "--recursive")
    times = {name: (tmp_path / "out" / "masks" / f"{name}.png").stat().st_mtime_ns for name in done}
    with (tmp_path / "out" / ".progress.jsonl").open("a") as log:
        log.write('{"name": "cut of')  # as a kill leaves it
    ask(run, tmp_path / "out", photos, "--recursive")
    for name, then in times.items():
        assert (tmp_path / "out" / "masks" / f"{name}.png").stat().st_mtime_ns == then
    whole, again = (files_below(tmp_path / folder) for folder in ("whole", "out"))
    assert {n: b for n, b in whole.items() if n != ".progress.jsonl"} == {
        n: b for n, b in again.items() if n != ".progress.jsonl"
    }


@pytest.mark.slow
def test_a_killed_command_leaves_no_part_of_a_file_and_goes_on(run, tmp_path):
    (tmp_path / "photos").mkdir()
    for n in range(40):
        (tmp_path / "photos" / f"{n}.jpg").write_bytes(encoded(pixels(n, 200, 200)))
    line = [KTSE, "predict", tmp_path / "photos", "--run", run.path, "--out"]
    subprocess.run([*line, tmp_path / "whole"], check=True, timeout=200)
    log, deadline = tmp_path / "out" / ".progress.jsonl", time.monotonic() + 100
    first = subprocess.Popen([*line, tmp_path / "out"], start_new_session=True)
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") > 5):
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "out" / "scores.json").exists()
    for mask in (tmp_path / "out" / "masks").rglob("*.png"):
        decode_mask(mask.read_bytes())
    subprocess.run([*line, tmp_path / "out"], check=True, timeout=200)
    whole, again = (files_below(tmp_path / folder) for folder in ("whole", "out"))
    assert whole["scores.json"] == again["scores.json"] and whole.keys() == again.keys()


def test_a_picture_that_changed_is_done_again_and_the_others_are_not(run, photos, tmp_path):
    before = ask(run, tmp_path / "out", photos)
    (photos / "2.jpg").write_bytes(encoded(pixels(9, 64, 64)))
    masks_then = {
        name: p.stat().st_mtime_ns for name in before["pictures"] for p in [tmp_path / f"out/masks/{name}.png"]
    }
    after = ask(run, tmp_path / "out", photos)
    changed = [n for n, then in masks_then.items() if (tmp_path / f"out/masks/{n}.png").stat().st_mtime_ns != then]
    assert changed == ["2"] and after["pictures"]["2"]["size"] == [64, 64]


def test_files_that_are_no_pictures_are_named_at_the_end_with_status_1(run, photos, tmp_path):
    (photos / "torn.jpg").write_bytes(encoded(pixels(1))[:900])
    (photos / "text.png").write_text("no picture")
    with pytest.raises(SystemExit, match=r"^ktse: 2 could not be read .*text\.png.*torn\.jpg"):
        ask(run, tmp_path / "out", photos)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert len(scores["pictures"]) == 5
    assert sorted(Path(path).name for path in scores["failed"]) == ["text.png", "torn.jpg"]


def test_a_large_picture_is_worked_on_small_and_its_mask_is_whole(run, tmp_path):
    (tmp_path / "large.jpg").write_bytes(encoded(np.kron(pixels(1), np.ones((20, 20, 1), np.uint8))))
    scores = ask(run, tmp_path / "out", tmp_path / "large.jpg", "--threshold", "0", "--long-side", "96")
    assert decode_mask((tmp_path / "out" / "masks" / "large.png").read_bytes()).shape == (1440, 1920)
    assert Image.open(tmp_path / "out" / "overlays" / "large.jpg").size[1] < 200
    assert scores["settings"]["long_side"] == 96


def test_pictures_are_worked_on_at_the_size_of_the_run_s_masks_and_within_their_bound(run, monkeypatch):
    kept = predict.kept_settings(run.masks).model_copy(
        update={"long_side": 900, "max_pixels": 250_000, "scales": (0.5,)}
    )
    monkeypatch.setattr(predict, "kept_settings", lambda folder: kept)
    predictor = predict.predictor_of(run, 0.0, None, processes=0)
    assert predictor.long_side == 900 and predict.predictor_of(run, 0.0, 640, processes=0).long_side == 640
    picture = Upright(np.kron(pixels(1), np.ones((9, 9, 1), np.uint8)), (1296, 1728))
    (job,) = predictor.jobs([Loaded(Wanted("a", Path("a.jpg"), {}, None), picture)])
    height, width = job.task.rgb.shape[:2]
    assert 240_000 < height * width <= 250_000 and job.task.cams.shape == (3, height, width)
    assert job.task.size == (1296, 1728)


@pytest.fixture(scope="module")
def wrong(run, tmp_path_factory) -> dict[str, Path]:
    """Inputs to go wrong with."""
    folder = tmp_path_factory.mktemp("wrong")
    made = {name: folder / name for name in ("empty", "photos", "out", "other", "untrained", "unmasked", "new")}
    for name in ("empty", "photos", "other"):
        made[name].mkdir()
    (made["photos"] / "a.jpg").write_bytes(encoded(pixels(0)))
    (made["other"] / "letter.txt").write_text("dear")
    config = load_config(run.config_file)
    for name in ("untrained", "unmasked"):
        RunFolder(made[name]).write_config(config)
    (made["unmasked"] / "model.safetensors").write_bytes(run.model.read_bytes())
    ask(run, made["out"], made["photos"], "--threshold", "0.25")
    for name, text in TAG_FILES.items():
        made[name] = folder / f"{name}.{'jsonl' if name.startswith('json') else 'csv'}"
        made[name].write_text(text)
    return made | {"run": run.path}


TAG_FILES = {
    "headless": "photos/a.jpg,dog\n",
    "misspelt": "path,tags\nphotos/a.jpg,bottel\n",
    "elsewhere": "path,tags\nb.jpg,dog\n",
    "twice": "path,tags\nphotos/a.jpg,dog\nphotos/a.jpg,bottle\n",
    "commas": "path,tags\nphotos/a.jpg,dog,bottle\n",
    "quoted": 'path,tags\nphotos/a.jpg,"dog,bottle"\n',
    "nothing": "path,tags\n",
    "json_broken": '{"path": "photos/a.jpg", "tags"\n',
    "json_number": '{"path": "photos/a.jpg", "tags": 3}\n',
}
GOOD = "{photos} --run {run} --out {new}"
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "no run": ("{photos} --run {empty} --out {new}", ("--run", "config.yaml", "ktse train")),
    "run that is not trained": ("{photos} --run {untrained} --out {new}", ("model.safetensors", "ktse train")),
    "run without masks": ("{photos} --run {unmasked} --out {new}", ("no masks", "ktse masks")),
    "picture that is not there": ("{empty}/a.jpg --run {run} --out {new}", ("a.jpg", "no such file", "folders")),
    "folder without pictures": ("{empty} --run {run} --out {new}", ("empty", "no pictures", "--recursive")),
    "pattern that nothing has": ("{photos}/*.png --run {run} --out {new}", ("*.png", "pattern")),
    "threshold beyond 1": (f"{GOOD} --threshold 1.5", ("--threshold", "1.5", "0 to 1")),
    "threshold that is no number": (f"{GOOD} --threshold high", ("--threshold", "high", "number")),
    "working size too small": (f"{GOOD} --long-side 5", ("--long-side", "5", "32")),
    "negative processes": (f"{GOOD} --processes -1", ("--processes", "-1", "256")),
    "no tags file": (f"{GOOD} --tags {{empty}}/t.csv", ("--tags", "t.csv", "no such file")),
    "tags without a first line": (f"{GOOD} --tags {{headless}}", ("headless", "path,tags")),
    "tag that is no class": (f"{GOOD} --tags {{misspelt}}", ("line 2", "bottel", "'bottle'")),
    "tags of other pictures": (f"{GOOD} --tags {{elsewhere}}", ("elsewhere", "none of the 1 pictures", "folder")),
    "two opinions of one picture": (f"{GOOD} --tags {{twice}}", ("line 3", "photos/a.jpg", "earlier")),
    "tags parted by commas": (f"{GOOD} --tags {{commas}}", ("line 2", "parted by ;")),
    "a tag with a comma": (f"{GOOD} --tags {{quoted}}", ("line 2", "'dog,bottle'", "part tags by ;")),
    "tags without a line": (f"{GOOD} --tags {{nothing}}", ("nothing.csv", "no line")),
    "tags that are no JSON": (f"{GOOD} --tags {{json_broken}}", ("line 1", "not JSON")),
    "tags of a wrong kind": (f"{GOOD} --tags {{json_number}}", ("line 1", '"tags": ["dog"]')),
    "output among other files": ("{photos} --run {run} --out {other}", ("--out", "other files", "empty folder")),
    "output that is a file": ("{photos} --run {run} --out {headless}", ("--out", "headless", "folder")),
    "output of another threshold": (
        "{photos} --run {run} --out {out} --threshold 0.5",
        ("--out", "threshold 0.25", "0.5", "another --out"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_input_is_one_line_with_the_mend(name, wrong, capsys):
    line, expected = CASES[name]
    call: Callable[[list[str]], None] = predict.main
    with pytest.raises(SystemExit) as stop:
        run_main(call, [part.format(**wrong) for part in line.split(" ")])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and error.startswith("ktse: ") and "\n" not in error
    for part in expected:
        assert part in error
    assert not wrong["new"].exists()


def test_two_commands_do_not_write_to_one_folder_at_once(run, photos, tmp_path, capsys):
    log = PredictionLog(tmp_path / "out", {})
    with pytest.raises(SystemExit):
        run_main(predict.main, [str(photos), "--run", str(run.path), "--out", str(tmp_path / "out")])
    log.close()
    assert "another ktse predict" in capsys.readouterr().err


def test_its_own_masks_and_overlays_are_no_pictures(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    for _ in range(2):
        predict.main([".", "--recursive", "--run", str(run.path), "--out", "predictions", "--processes", "0"])
    names = json.loads((photos / "predictions" / "scores.json").read_text())["pictures"]
    theirs = [path for path in photos.rglob("*") if path.is_file() and "predictions" not in path.parts]
    assert len(names) == len(theirs)
