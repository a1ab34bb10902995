"""`ktse predict --model`: segmentation networks in both kinds of file, real files in, real files out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ktse_dist import export, predict
from ktse_dist.config import Network
from ktse_dist.data.decode import decode_mask
from ktse_dist.errors import UserError
from ktse_dist.inference.segmentation import SegmentationNetwork, segmented
from ktse_dist.models import build_deeplab
from ktse_dist.models.segmenter import load_segmenter, save_segmenter
from ktse_dist.run_folder import RunFolder

CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """A run with a network of stage 2 that knows nothing."""
    torch.manual_seed(0)
    folder, small = RunFolder(tmp_path_factory.mktemp("run")), Network(weights="none")
    network = build_deeplab(small, len(CLASSES), load_weights=False)
    for branch in network.aspp.children():
        nn.init.normal_(branch.weight, std=0.5)  # answers that differ from pixel to pixel
    folder.segment.path.mkdir()
    state = nn.ModuleDict({"networks": nn.ModuleList([network])}).state_dict()
    save_segmenter(folder.segment.model, state, small, CLASSES, {})
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
    ],
)
def test_options_that_do_not_go_together_are_one_line(run, photo, tmp_path, arguments, said):
    real = {"NETWORK": str(run.segment.model), "RUN": str(run.path)}
    with pytest.raises(UserError, match=said):
        predict.main([str(photo), *(real.get(word, word) for word in arguments), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pictures"], "leave out --split and --pictures"),
        (["--out", "folder"], "give a new file, NAME.onnx"),
        (["--run", "elsewhere"], "learn the network first: ktse segment --run"),
    ],
)
def test_an_export_that_cannot_be_is_one_line(run, tmp_path, arguments, said):
    usual = ["--run", str(run.path), "--format", "onnx", "--out", str(tmp_path / "network.onnx")]
    with pytest.raises(UserError, match=said):
        export.main([*usual, *arguments])
    assert not list(tmp_path.iterdir())
