"""Wrong weight files, through the command itself: one line that names the file or key and the mend, exit status 2."""

import pickle
import zipfile
from ast import literal_eval
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ktse_dist import models
from ktse_dist.cli import dispatch
from ktse_dist.config.method import Network
from ktse_dist.data.pack.stickers import pack_stickers
from ktse_dist.errors import run_main
from ktse_dist.models.resnet import ResNet
from ktse_dist.models.weights import save_model

FIXTURES = Path(__file__).parent / "fixtures"
LITE = Network(weights="none")


class Sly:
    def __reduce__(self):
        return print, ("ran",)


def constant(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors of full shape of which one number each is stored."""
    return {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory, golden_lines) -> dict[str, Path]:
    """Inputs to go wrong with; `out` does not exist."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.device("meta"):
        resnet = {name: tuple(tensor.shape) for name, tensor in ResNet(50).state_dict().items()}
    lines = [line.split("\t") for line in golden_lines("state_dict_names.txt")]
    stage1, resnet = constant({name: literal_eval(shape) for name, shape, _ in lines}), constant(resnet)
    states = {
        "stage1": stage1,
        "nan": resnet | {"layer4.0.conv1.weight": torch.full((512, 1024, 1, 1), torch.nan)},
        "short": {name: tensor for name, tensor in resnet.items() if name != "bn1.bias"},
        "shape": resnet | {"conv1.weight": torch.zeros(64, 3, 3, 3)},
        "whole": resnet | {"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.int64)},
        "twice": resnet | {"module.conv1.weight": torch.zeros(64, 3, 7, 7)},
        "vgg": {"features.0.weight": torch.zeros(1)},
        "many": stage1 | {"fc9.weight": torch.ones(()).expand(1 << 40, 256, 1, 1)},
        "meta": resnet | {"conv1.weight": torch.zeros(64, 3, 7, 7, device="meta")},
        "list": [torch.zeros(1)],
        "sly": {"conv1.weight": Sly()},
    }
    made = {name: folder / f"{name}.pth" for name in states}
    for name, state in states.items():
        torch.save(state, made[name])
    made["cut"] = folder / "cut.pth"
    made["cut"].write_bytes(made["stage1"].read_bytes()[:5000])
    made["bomb"] = folder / "bomb.pth"
    with zipfile.ZipFile(made["bomb"], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(1 << 20))
    made["text"] = folder / "readme.txt"
    made["text"].write_text("No weights here.\n")
    made["pickle"] = folder / "plain.pkl"
    made["pickle"].write_bytes(pickle.dumps({"a": Sly()}, protocol=2))
    made["params"] = folder / "cut.params"
    made["params"].write_bytes((FIXTURES / "legacy.params").read_bytes()[:-30])
    made["long"] = folder / "long.params"
    made["long"].write_bytes((FIXTURES / "v2.params").read_bytes() + bytes(8))
    made["lying"] = folder / "lying.params"
    content = bytearray((FIXTURES / "v1.params").read_bytes())
    content[36 + 7] = 0x40  # the first dimension of the first array
    made["lying"].write_bytes(content)
    made["fixtures"], made["out"], made["nowhere"] = FIXTURES, folder / "out.safetensors", folder / "none"
    made["taken"] = folder / "taken.safetensors"
    save_file({"x": torch.zeros(1)}, made["taken"])
    made["lite"] = folder / "lite.safetensors"
    with torch.random.fork_rng():
        parts = dict(zip(("backbone", "head"), models.build(LITE, 3), strict=True))
    save_model(made["lite"], torch.nn.ModuleDict(parts).state_dict(), LITE, ["a", "b", "c"])
    made["half"] = folder / "half.safetensors"
    made["half"].write_bytes(made["lite"].read_bytes()[:100_000])
    made["data"] = folder / "data"
    pack_stickers(made["data"], train=4, val=2)
    return made


TRAIN = "train data.path={data} engine.name=torch train.batch=[[0,2]] model.weights="
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "file to convert missing": ("convert {nowhere}/a.pth {out}", ("a.pth", "no such file")),
    "mxnet file cut short": ("convert {params} {out}", ("cut.params", "left")),
    "mxnet file with a lying shape": ("convert {lying} {out}", ("lying.params", "would take")),
    "mxnet file that goes on": ("convert {long} {out}", ("long.params", "8 bytes follow")),
    "mxnet file with sparse arrays": ("convert {fixtures}/sparse.params {out}", ("sparse.params", "row_sparse")),
    "mxnet file of another network": ("convert {fixtures}/v2.params {out}", ("v2.params", "names differ")),
    "PyTorch file cut short": ("convert {cut} {out}", ("cut.pth", "not a PyTorch or mxnet file")),
    "PyTorch file that unpacks": ("convert {bomb} {out}", ("bomb.pth", "compressed")),
    "PyTorch file with code": ("convert {sly} {out}", ("sly.pth", "it holds more than tensors")),
    "pickle with code": ("convert {pickle} {out}", ("plain.pkl", "it holds more than tensors")),
    "no state dict": ("convert {list} {out}", ("list.pth", "state dict")),
    "tensors without numbers": ("convert {meta} {out}", ("meta.pth", "state dict")),
    "no weights at all": ("convert {text} {out}", ("readme.txt", "not a PyTorch or mxnet file")),
    "safetensors to convert": ("convert {lite} {out}", ("lite.safetensors", "model.weights")),
    "network that is not ours": ("convert {vgg} {out}", ("vgg.pth", "features.0.weight", "torchvision")),
    "tensor missing": ("convert {short} {out}", ("short.pth", "lacks 'backbone.bn1.bias'")),
    "tensor of another shape": ("convert {shape} {out}", ("shape.pth", "[64, 3, 3, 3]", "[64, 3, 7, 7]")),
    "tensor of integers": ("convert {whole} {out}", ("whole.pth", "torch.int64")),
    "one tensor under two names": ("convert {twice} {out}", ("twice.pth", "two of its names")),
    "values that are no numbers": ("convert {nan} {out}", ("nan.pth", "layer4.0.conv1.weight", "damaged")),
    "more classes than there can be": ("convert {many} {out}", ("many.pth", "1,099,511,627,775", "10,000")),
    "class names for another count": ("convert {stage1} {out} --classes a,b", ("--classes", "2", "20")),
    "target that is another file": ("convert {stage1} {taken}", ("taken.safetensors", "exists", "delete")),
    "target under a file": ("convert {stage1} {text}/out.safetensors", ("out.safetensors", "cannot be written")),
    "ImageNet for a network that brings none": (
        f"{TRAIN}imagenet model.backbone=resnet101",
        ("model.weights", "torchvision's resnet101", "OUT.safetensors"),
    ),
    "backbone that does not exist": (f"{TRAIN}none model.backbone=vgg16", ("model.backbone", "vgg16", "resnet50")),
    "weights missing": (f"{TRAIN}{{nowhere}}.safetensors", ("none.safetensors", "no such file", "ktse convert FILE")),
    "weights not converted yet": (f"{TRAIN}{{fixtures}}/v2.params", ("v2.params", "ktse convert FILE")),
    "weights of another backbone": (
        f"{TRAIN}{{lite}} model.backbone=resnet50",
        ("model.weights", "lite.safetensors", "efficientnet_lite0", "resnet50"),
    ),
    "weights of another program": (f"{TRAIN}{{taken}}", ("taken.safetensors", "not a model of this program")),
    "dry run with weights of another backbone": (
        f"{TRAIN}{{lite}} model.backbone=resnet50 --dry-run",
        ("model.weights", "lite.safetensors", "efficientnet_lite0"),
    ),
    "weights cut short": (f"{TRAIN}{{half}}", ("half.safetensors", "not safetensors")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_weight_file_is_one_line_with_the_mend(name, files, tmp_path, capsys, monkeypatch):
    line, expected = CASES[name]
    monkeypatch.setenv("KTSE_RUNS", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        run_main(dispatch, [part.format(**files) for part in line.split(" ")])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.err.startswith("ktse: ") and said.err.count("\n") == 1
    assert "ran" not in said.out.split() and len(said.err) < 1000 and "weights_only" not in said.err
    for part in expected:
        assert part in said.err


def test_a_refused_conversion_leaves_nothing(files):
    assert not list(files["out"].parent.glob("*out.safetensors*"))


def test_the_dry_run_says_what_becomes_of_the_weights(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KTSE_RUNS", str(tmp_path))
    run_main(dispatch, (TRAIN + "{lite} --dry-run").format(**files).split(" "))
    expected = f"model.weights: {files['lite']} has 3 classes, the data set 20: the head starts anew"
    assert expected in capsys.readouterr().out


def test_the_dry_run_says_that_weights_are_not_there_yet_and_goes_on(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KTSE_RUNS", str(tmp_path))
    run_main(dispatch, (TRAIN + "{nowhere}.safetensors --dry-run").format(**files).split(" "))
    said = capsys.readouterr().out
    last = said.splitlines()[-1]
    assert last.startswith(f"model.weights: not ready: {files['nowhere']}.safetensors: no such file")
    assert "steps: " in said
