"""`ktse predict --model`: segmentation networks in both kinds of file, real files in, real files out."""

import contextlib
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from torch import nn

from ktse_dist import export, predict
from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.data.decode import decode_mask
from ktse_dist.data.pack import voc
from ktse_dist.errors import UserError
from ktse_dist.inference.segmentation import SegmentationNetwork, segmented
from ktse_dist.models import build_deeplab
from ktse_dist.models.segmenter import load_segmenter, save_segmenter
from ktse_dist.run_folder import RunFolder

CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    return with_network(tmp_path_factory.mktemp("run"), CLASSES)


@pytest.fixture(scope="module")
def voc_run(tmp_path_factory) -> RunFolder:
    return with_network(tmp_path_factory.mktemp("voc"), voc.CLASSES)


def with_network(path: Path, classes: Sequence[str]) -> RunFolder:
    """A run with a network of stage 2 that knows nothing."""
    torch.manual_seed(0)
    folder, small = RunFolder(path), Network(weights="none")
    network = build_deeplab(small, len(classes), load_weights=False)
    for branch in network.aspp.children():
        nn.init.normal_(branch.weight, std=0.5)  # answers that differ from pixel to pixel
    folder.write_config(load_config(None, []))
    folder.segment.write_config(load_config(None, []))
    folder.segment.learnt_masks_file.write_text("of some masks")
    state = nn.ModuleDict({"networks": nn.ModuleList([network])}).state_dict()
    save_segmenter(folder.segment.model, state, small, classes, {})
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 90, 3), np.uint8)).save(file)
    return file


def ask(model: Path, out: Path, *arguments: object) -> dict:
    predict.main([*map(str, arguments), "--model", str(model), "--out", str(out), "--processes", "0"])
    return json.loads((out / "scores.json").read_text())


def test_the_mask_is_what_the_network_says_and_the_record_tells_its_shares(run, photo, tmp_path):
    scores = ask(run.segment.model, tmp_path / "out", photo, "--quick")
    (record,) = scores["pictures"].values()
    mask = decode_mask((tmp_path / "out" / record["mask"]).read_bytes())
    network = SegmentationNetwork(load_segmenter(run.segment.model).networks, torch.device("cpu"))
    expected = segmented(network, np.array(Image.open(photo)), ()).first
    assert (mask == expected).all() and len(np.unique(mask)) > 1
    shares = np.bincount(mask.ravel(), minlength=3) / mask.size
    assert [record["share"].get(name, 0) for name in ("background", *CLASSES)] == pytest.approx(shares, abs=1e-6)
    assert record["tags_from"] == "network" and Image.open(tmp_path / "out" / record["overlay"]).size[0] >= 220
    assert scores["settings"]["crf"] == "none" and scores["settings"]["scales"] == []


def test_by_default_it_looks_at_several_scales_and_ends_in_a_crf(run, photo, tmp_path):
    pytest.importorskip("pydensecrf")
    scores = ask(run.segment.model, tmp_path / "out", photo)
    assert scores["settings"]["crf"] == "plain" and scores["settings"]["scales"] == [0.75, 1.0, 1.25]


@pytest.mark.parametrize("given", [(), ("--quick",)])
def test_a_huge_picture_is_worked_on_within_a_bound_and_its_mask_is_whole(run, tmp_path, monkeypatch, given):
    pytest.importorskip("pydensecrf")
    monkeypatch.setattr(predict, "Segment", partial(predict.Segment, max_pixels=250_000))
    monkeypatch.setattr(SegmentationNetwork, "logits", spied(seen := [], SegmentationNetwork.logits))
    Image.new("RGB", (900, 600), (90, 130, 60)).save(tmp_path / "huge.png")
    scores = ask(run.segment.model, tmp_path / "out", tmp_path / "huge.png", "--long-side", "8192", *given)
    assert max(seen) <= 1.01 * 250_000 * (1 if given else 1.25**2)  # a scale's sides are rounded
    (record,) = scores["pictures"].values()
    assert decode_mask((tmp_path / "out" / record["mask"]).read_bytes()).shape == (600, 900)


def spied(seen: list[int], logits):
    def call(network, images):
        seen.append(images.shape[2] * images.shape[3])
        return logits(network, images)

    return call


def test_a_voc_list_gives_the_folder_that_the_server_takes(voc_run, tmp_path, capsys):
    pictures = tmp_path / "JPEGImages"
    pictures.mkdir()
    for n, name in enumerate(("2008_000006", "2008_000011", "2008_000012")):
        pixels = np.random.default_rng(n).integers(0, 256, (40 + n, 60, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{name}.jpg")
    (tmp_path / "test.txt").write_text("2008_000006\n2008_000012\n")
    scores = ask(voc_run.segment.model, tmp_path / "out", pictures, "--quick", "--voc-list", tmp_path / "test.txt")
    assert len(scores["pictures"]) == 2 and "for VOC's test server: 2 masks" in capsys.readouterr().out
    results = tmp_path / "out" / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    assert {file.name for file in results.iterdir()} == {"2008_000006.png", "2008_000012.png"}
    with Image.open(results / "2008_000012.png") as mask:
        assert mask.mode == "P" and mask.size == (60, 42) and np.asarray(mask).max() <= 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2008_000007\n", "0 pictures are called '2008_000007'"),
        ("a b c\n", "is no line of a list"),
        ("\n", "names no picture"),
    ],
)
def test_a_list_of_other_pictures_is_one_line(voc_run, photo, tmp_path, text, said):
    (tmp_path / "test.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        ask(voc_run.segment.model, tmp_path / "out", photo, "--voc-list", tmp_path / "test.txt")


def test_the_server_takes_the_classes_of_voc_alone(run, photo, tmp_path):
    (tmp_path / "test.txt").write_text("photo\n")
    with pytest.raises(UserError, match="the network knows 2 classes"):
        ask(run.segment.model, tmp_path / "out", photo, "--voc-list", tmp_path / "test.txt")


@pytest.mark.slow
def test_an_exported_network_predicts_the_same_pixels(run, photo, tmp_path, capsys):
    export.main(["--run", str(run.path), "--format", "onnx", "--out", str(tmp_path / "network.onnx")])
    assert "exported: the network of" in capsys.readouterr().out
    found = []
    for model in (tmp_path / "network.onnx", run.segment.model):
        (record,) = ask(model, tmp_path / model.suffix, photo, "--quick")["pictures"].values()
        found.append((tmp_path / model.suffix / record["mask"]).read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "NETWORK", "--threshold", "0.5"], "--threshold: only with --run"),
        (["--model", "NETWORK", "--tags", "a.csv"], "--tags: only with --run"),
        (["--run", "RUN", "--quick"], "--quick: only with --model"),
        (["--model", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["--model", "nowhere.onnx"], "nowhere.onnx: no such file"),
        (["--model", "FOLDER"], r"a folder; give a file: of a run, .*/segment/model\.safetensors"),
        (["--run", "STAGE"], "a network of ktse segment; give --run .* or --model .*/segment/model"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(run, photo, tmp_path, arguments, said):
    real = {
        "NETWORK": str(run.segment.model),
        "RUN": str(run.path),
        "FOLDER": str(run.path),
        "STAGE": str(run.segment.path),
    }
    with pytest.raises(UserError, match=said):
        predict.main([str(photo), *(real.get(word, word) for word in arguments), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pictures"], "leave out --split and --pictures"),
        (["--out", "folder"], "give a new file, NAME.onnx"),
        (["--run", "elsewhere"], "no config.yaml there"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(run, tmp_path, arguments, said):
    usual = ["--run", str(run.path), "--format", "onnx", "--out", str(tmp_path / "network.onnx")]
    with pytest.raises(UserError, match=said):
        export.main([*usual, *arguments])
    assert not list(tmp_path.iterdir())


def coco_of(out: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(out / "predicted.json")


def test_predictions_are_exported_to_the_same_pixels_with_upright_pictures_beside_them(run, photo, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(photo).save(tmp_path / "turned.jpg", exif=turned)
    scores = ask(run.segment.model, tmp_path / "predictions", photo, tmp_path / "turned.jpg", "--quick")
    export.main(
        [
            "--predictions",
            str(tmp_path / "predictions"),
            "--format",
            "coco",
            "--out",
            str(tmp_path / "out"),
            "--pictures",
        ]
    )
    coco = coco_of(tmp_path / "out")
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == CLASSES
    for picture in coco.loadImgs(coco.getImgIds()):
        name = picture["file_name"].removesuffix(".jpg")
        mask = decode_mask((tmp_path / "predictions" / scores["pictures"][name]["mask"]).read_bytes())
        found = np.zeros_like(mask)
        for annotation in coco.loadAnns(coco.getAnnIds(picture["id"])):
            found[coco.annToMask(annotation) > 0] = annotation["category_id"]
        assert (found == mask).all() and picture["source"] == scores["pictures"][name]["path"]
        with Image.open(tmp_path / "out" / "images" / "predicted" / picture["file_name"]) as copied:
            assert copied.size == (picture["width"], picture["height"]) == mask.shape[::-1]
            assert 0x0112 not in copied.getexif()
    assert len(coco.imgs) == 2


def test_predictions_are_both_splits_of_a_data_set_in_yolo_s_format(run, photo, tmp_path):
    ask(run.segment.model, tmp_path / "predictions", photo, "--quick")
    export.main(["--predictions", str(tmp_path / "predictions"), "--format", "yolo", "--out", str(tmp_path / "out")])
    about = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert about["train"] == about["val"] == about["predicted"] == "images/predicted"


@pytest.mark.parametrize(
    ("damage", "more", "said"),
    [
        (lambda folder: (folder / "scores.json").unlink(), [], "finished ktse predict"),
        (lambda folder: (folder / "scores.json").write_text("{"), [], "damaged"),
        (lambda folder: (folder / "scores.json").write_text('{"pictures": {"../x": {"path": "x"}}}'), [], "names that"),
        (lambda folder: (folder / "masks" / "photo.png").unlink(), [], "photo.*same ktse predict again"),
        (lambda folder: None, ["--split", "val"], "leave it out"),
        (lambda folder: None, ["--format", "onnx"], "give --run"),
    ],
)
def test_predictions_that_cannot_be_exported_are_one_line_and_leave_nothing(run, photo, tmp_path, damage, more, said):
    ask(run.segment.model, tmp_path / "predictions", photo, "--quick")
    damage(tmp_path / "predictions")
    with pytest.raises(UserError, match=said):
        export.main(["--predictions", str(tmp_path / "predictions"), "--out", str(tmp_path / "out"), *more])
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "predictions"}
