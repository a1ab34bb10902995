"""Segmentation networks as ONNX files: the same answers from another program's runtime, and files that lie."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.inference.segmentation import SegmentationNetwork, segmented
from ktse_dist.models import build_deeplab
from ktse_dist.models.onnx_file import load_onnx, save_onnx
from ktse_dist.models.segmenter import Segmenter

CLASSES = ["cat", "<b>"]
RGB = np.random.default_rng(0).integers(0, 256, (75, 110, 3), np.uint8)


class Small(nn.Conv2d):
    """A network that is traced within seconds."""

    mean, std = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter([Small(3, 1 + len(CLASSES), 5, stride=4, padding=2).eval() for _ in range(2)], CLASSES)


@pytest.fixture(scope="module")
def file(tmp_path_factory, segmenter) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "network.onnx"
    save_onnx(path, segmenter)
    return path


def answers_alike(file: Path, segmenter: Segmenter) -> None:
    network, classes = load_onnx(file)
    ours = SegmentationNetwork(segmenter.networks, torch.device("cpu"))
    for rgb in (RGB, RGB[:33, :47]):
        found, expected = (segmented(one, rgb, (0.75, 1.25)) for one in (network, ours))
        assert len(np.unique(expected.first)) > 1
        assert (found.first == expected.first).all()
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
    assert classes == CLASSES


def test_the_runtime_gives_the_same_labels_and_probabilities_at_any_size(file, segmenter):
    answers_alike(file, segmenter)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "stride", "count"), [("efficientnet_lite0", 16, 2), ("resnet101", 8, 1)])
def test_so_it_does_for_the_networks_of_stage_2(tmp_path, backbone, stride, count):
    torch.manual_seed(0)
    about = Network(backbone=backbone, output_stride=stride, weights="none")
    networks = [build_deeplab(about, len(CLASSES), load_weights=False).eval() for _ in range(count)]
    for branch in (branch for network in networks for branch in network.aspp.children()):
        nn.init.normal_(branch.weight, std=0.5)  # answers that differ from pixel to pixel
    save_onnx(tmp_path / "network.onnx", Segmenter(networks, CLASSES))
    answers_alike(tmp_path / "network.onnx", Segmenter(networks, CLASSES))


def test_the_file_is_valid_alone_and_says_what_it_is(file):
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    onnx.checker.check_model(str(file), full_check=True)
    model = onnx.load(file)
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [size.dim_param or size.dim_value for size in sizes] == ["batch", 3, "height", "width"]
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["input"] == "RGB, 0 to 255, [B,3,H,W]" and "background" in about["output"]


def test_the_runtime_keeps_no_notes_for_its_makers(file, tmp_path):
    load = f"from pathlib import Path; from ktse_dist.models.onnx_file import load_onnx; load_onnx(Path({str(file)!r}))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    subprocess.run([sys.executable, "-c", load], env=kept | {"HOME": str(tmp_path)}, check=True)
    assert not [*tmp_path.rglob("*onnxruntime*")]


def changed(file: Path, target: Path, change) -> Path:
    model = onnx.load(file)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


def outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")


def hidden(model: onnx.ModelProto) -> None:
    """In an attribute of a node of a graph that an attribute of a node holds."""
    inner = onnx.GraphProto()
    constant = inner.node.add(op_type="Constant")
    tensor = constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    outer = model.graph.node.add(op_type="If")
    outer.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g.CopyFrom(inner)


def usual_value(model: onnx.ModelProto) -> None:
    """In what a function takes where its call leaves an attribute out."""
    function = model.functions.add(name="F", domain="f")
    tensor = function.attribute_proto.add(name="v", type=onnx.AttributeProto.TENSOR).t
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret")


@pytest.mark.parametrize("change", [outside, hidden, usual_value])
def test_numbers_of_other_files_are_never_opened(file, tmp_path, change):
    with pytest.raises(UserError, match="wants numbers of other files"):
        load_onnx(changed(file, tmp_path / "bad.onnx", change))


def drop_format(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def more_classes(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "classes").value = '["a", "b", "c"]'


def no_classes(model: onnx.ModelProto) -> None:
    next(entry for entry in model.metadata_props if entry.key == "classes").value = "{"


def no_dimensions(model: onnx.ModelProto) -> None:
    """One number for all pixels."""
    model.graph.node[-1].output[0] = "all"
    model.graph.node.add(op_type="ReduceSum", input=["all"], output=["logits"]).attribute.add(
        name="keepdims", type=onnx.AttributeProto.INT, i=0
    )
    model.graph.output[0].type.tensor_type.shape.Clear()


def one_size(model: onnx.ModelProto) -> None:
    for axis, size in zip((2, 3), (64, 96), strict=True):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size


def bytes_in(model: onnx.ModelProto) -> None:
    """The pictures as bytes, turned into floats by the graph."""
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in model.graph.node:
        node.input[:] = ["floats" if name == "images" else name for name in node.input]
    cast = onnx.helper.make_node("Cast", ["images"], ["floats"], to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(0, cast)


def no_such_operation(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Shell"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop_format, "not a network of this program"),
        (more_classes, "does not fit its 3 classes"),
        (no_dimensions, "does not fit its 2 classes"),
        (one_size, "pictures of any size"),
        (bytes_in, "pictures of any size"),
        (no_classes, "damaged"),
        (no_such_operation, "damaged"),
    ],
)
def test_a_file_that_lies_is_one_line(file, tmp_path, change, said):
    with pytest.raises(UserError, match=said) as raised:
        load_onnx(changed(file, tmp_path / "bad.onnx", change))
    assert "\n" not in str(raised.value)


def test_what_the_runtime_refuses_while_it_runs_is_one_line(file):
    network, _ = load_onnx(file)
    with pytest.raises(UserError, match=r"cannot look at a picture of 8x6 .*--long-side") as raised:
        network.logits(torch.zeros(1, 5, 6, 8))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95 pickle", b"PK\x03\x04" * 100])
def test_what_is_no_onnx_is_refused(tmp_path, content):
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(UserError):
        load_onnx(tmp_path / "bad.onnx")


def test_a_cut_file_is_refused(file, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError):
        load_onnx(tmp_path / "bad.onnx")
