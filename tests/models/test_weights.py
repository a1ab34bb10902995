import os
import pickle
import subprocess
import sys
from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.errors import UserError
from ktse_dist.models import build, starting_point
from ktse_dist.models.cam_head import CamHead
from ktse_dist.models.convert import convert, renamed
from ktse_dist.models.naming import GATES
from ktse_dist.models.resnet38d import ResNet38d
from ktse_dist.models.weights import load_model, load_safetensors, load_start, save_model, save_tensors
from ktse_dist.training.loop import make_engine

LITE = Network(weights="none")
RESNET = Network(backbone="resnet38d", output_stride=8, weights="none")


def state_of(backbone, head):
    return torch.nn.ModuleDict({"backbone": backbone, "head": head}).state_dict()


def test_the_published_names_and_shapes_are_ours_without_the_unused_norm_and_counters(golden_lines):
    lines = [line.split("\t") for line in golden_lines("state_dict_names.txt")]
    published = {name: torch.zeros(()).expand(literal_eval(shape)) for name, shape, _ in lines}
    with torch.device("meta"):
        ours = state_of(ResNet38d(), CamHead(4096, 20))
    _, tensors, left_out = renamed(Path("stage1.pth"), published)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {name: t.shape for name, t in ours.items()}
    assert left_out == ["bn8"]


def test_a_saved_model_says_by_itself_what_it_is(tmp_path):
    backbone, head = build(Network(output_stride=8, weights="none"), 3)
    save_model(tmp_path / "m.safetensors", state_of(backbone, head), Network(output_stride=8), ["a", "b, c", "ü"])
    model = load_model(tmp_path / "m.safetensors")
    assert (model.classes, model.backbone.stride) == (["a", "b, c", "ü"], 8)
    image = torch.randn(1, 3, 40, 56)
    assert torch.equal(model.head(model.backbone(image)), head(backbone(image)))


def test_a_loaded_model_trains_what_a_built_one_trains(tmp_path):
    backbone, head = build(LITE, 2)
    save_model(tmp_path / "m.safetensors", state_of(backbone, head), LITE, ["a", "b"])
    loaded = load_model(tmp_path / "m.safetensors").backbone
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in backbone.parameters()]


def test_saving_replaces_the_file_and_leaves_nothing_else(tmp_path):
    for count in (2, 3):
        save_model(tmp_path / "m.safetensors", state_of(*build(LITE, count)), LITE, ["a", "b", "c"][:count])
    assert [f.name for f in tmp_path.iterdir()] == ["m.safetensors"]
    assert len(load_model(tmp_path / "m.safetensors").classes) == 3


def test_a_saved_model_is_for_all_whom_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        save_model(tmp_path / "m.safetensors", state_of(*build(LITE, 2)), LITE, ["a", "b"])
    finally:
        os.umask(before)
    assert (tmp_path / "m.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["old.pth", "old.bin", "sly.safetensors"])
def test_a_pickle_is_refused_with_the_converting_command(tmp_path, name):
    path = tmp_path / name
    torch.save({"conv1a.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"ktse convert FILE OUT\.safetensors") as caught:
        load_safetensors(path)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_safetensors_of_others_are_refused(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a model of this program"):
        load_model(tmp_path / "x.safetensors")


def test_damaged_metadata_are_refused_in_one_line(tmp_path):
    save_model(tmp_path / "m.safetensors", state_of(*build(LITE, 2)), LITE, ["a", "b"])
    tensors, metadata = load_safetensors(tmp_path / "m.safetensors")
    save_file(tensors, tmp_path / "m.safetensors", metadata | {"classes": "[1, {}]"})
    with pytest.raises(UserError, match="metadata cannot be read") as caught:
        load_model(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)


def test_a_backbone_of_another_kind_is_refused(tmp_path):
    save_model(tmp_path / "m.safetensors", state_of(*build(LITE, 2)), LITE, ["a", "b"])
    with pytest.raises(UserError, match="holds the backbone efficientnet_lite0"):
        load_start(tmp_path / "m.safetensors", RESNET, ["a", "b"])


def test_a_missing_tensor_is_named(tmp_path):
    state = state_of(*build(LITE, 2))
    del state["backbone.stem.weight"]
    save_model(tmp_path / "m.safetensors", state, LITE, ["a", "b"])
    with pytest.raises(UserError, match=r"lacks 'backbone\.stem\.weight'"):
        load_model(tmp_path / "m.safetensors")


def test_a_wrong_shape_is_named(tmp_path):
    state = state_of(*build(LITE, 2)) | {"backbone.stem.weight": torch.zeros(1)}
    save_model(tmp_path / "m.safetensors", state, LITE, ["a", "b"])
    with pytest.raises(UserError, match=r"'backbone\.stem\.weight' has shape \[1\], expected \[32, 3, 3, 3\]"):
        load_model(tmp_path / "m.safetensors")


def test_a_model_file_starts_another_run_s_backbone(tmp_path):
    backbone, head = build(LITE, 2)
    save_model(tmp_path / "m.safetensors", state_of(backbone, head), LITE, ["a", "b"])
    other, new_head = build(Network(weights=tmp_path / "m.safetensors"), 5)
    assert torch.equal(other.head.weight, backbone.head.weight) and new_head.fc9.out_channels == 6


@pytest.fixture
def trained(tmp_path):
    """A file with a head for a, b, c, and the modules in it."""
    torch.manual_seed(1)
    parts = build(LITE, 3)
    save_model(tmp_path / "m.safetensors", state_of(*parts), LITE, ["a", "b", "c"])
    return tmp_path / "m.safetensors", parts


def test_a_run_of_the_same_classes_goes_on_with_the_file_s_head(trained):
    path, parts = trained
    config = load_config(None, ["engine.name=torch", f"model.weights={path}"])
    engine = make_engine(config, SimpleNamespace(classes=["a", "b", "c"]))
    started = engine.state()[0]
    for name, tensor in state_of(*parts).items():
        assert torch.equal(started[name], tensor), name


OTHERS = {
    "fewer": (["a", "b"], "has 3 classes, the data set 2"),
    "renamed": (["a", "x", "c"], "calls class 2 'b', the data set 'x'"),
    "reordered": (["a", "c", "b"], "calls class 2 'b', the data set 'c'"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_for_other_classes_the_head_starts_anew_and_why_is_said(trained, case):
    (path, parts), (names, reason) = trained, OTHERS[case]
    network = Network(weights=path)
    assert starting_point(network, names) == f"{path} {reason}: the head starts anew"
    torch.manual_seed(5)
    backbone, head = build(network, len(names), names=names)
    torch.manual_seed(5)
    assert torch.equal(head.fc8.weight, CamHead(1280, len(names)).fc8.weight)
    assert torch.equal(backbone.head.weight, parts[0].head.weight)


def test_a_backbone_alone_gets_a_new_head(tmp_path):
    backbone, _ = build(LITE, 2)
    only = torch.nn.ModuleDict({"backbone": backbone}).state_dict()
    save_model(tmp_path / "b.safetensors", only, LITE, [])
    said = starting_point(Network(weights=tmp_path / "b.safetensors"), ["a"])
    assert said.endswith("holds a backbone alone: the head starts anew")
    with pytest.raises(UserError, match="holds a backbone without head"):
        load_model(tmp_path / "b.safetensors")


@pytest.mark.parametrize(("claimed", "reason"), [("99", "shape"), ("-1", "width -1"), ("9" * 20, "width 9999")])
def test_a_head_of_another_width_than_claimed_is_refused(trained, claimed, reason):
    path, _ = trained
    tensors, metadata = load_safetensors(path)
    save_file(tensors, path, metadata | {"hidden": claimed})
    with pytest.raises(UserError, match=reason):
        load_model(path)


def test_numbers_of_another_type_are_refused(trained):
    path, _ = trained
    tensors, metadata = load_safetensors(path)
    save_file(tensors | {"head.fc8.weight": tensors["head.fc8.weight"].half()}, path, metadata)
    with pytest.raises(UserError, match=r"'head\.fc8\.weight' has type torch\.float16, expected torch\.float32"):
        load_model(path)


def test_imagenet_weights_of_resnet38d_are_asked_for_as_a_file():
    with pytest.raises(UserError, match=r"model\.weights: .*\.safetensors"):
        build(Network(backbone="resnet38d", output_stride=8), 20)


def test_a_converted_published_checkpoint_is_a_model(tmp_path, filled_net):
    short = {name.removeprefix("backbone.").removeprefix("head."): t for name, t in state_of(*filled_net).items()}
    published = {GATES.get(name, name): t for name, t in short.items()} | {"bn8.weight": torch.ones(256)}
    torch.save({f"module.{name}": tensor for name, tensor in published.items()}, tmp_path / "stage1.pth")
    convert(tmp_path / "stage1.pth", tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors")
    assert model.classes[::19] == ["class1", "class20"]
    for name, tensor in state_of(*filled_net).items():
        assert torch.equal(state_of(model.backbone, model.head)[name], tensor), name


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Sly:
        def __reduce__(self):
            return print, ("ran",)

    (tmp_path / "sly.pth").write_bytes(pickle.dumps({"conv1a.weight": Sly()}, protocol=2))
    run = subprocess.run(
        [sys.executable, "-m", "ktse_dist.models.convert", tmp_path / "sly.pth", tmp_path / "out.safetensors"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 2 and run.stderr.startswith("ktse: ") and "ran" not in run.stdout
    assert run.stderr.count("\n") == 1


def test_equal_networks_are_equal_files(tmp_path):
    tensors, about = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.int64)}, {c: f"{c} ü" for c in "hgfedcba"}
    written = set()
    for number in range(8):
        save_tensors(tensors, tmp_path / str(number), about)
        written.add((tmp_path / str(number)).read_bytes())
        with safe_open(tmp_path / str(number), "pt") as file:
            assert file.metadata() == about and torch.equal(file.get_tensor("b"), torch.ones(3))
    assert len(written) == 1
