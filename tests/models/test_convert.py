"""Foreign weight files become ours, once, whatever their names; A1's names are those of its symbol definition."""

import hashlib
import struct
import zlib
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.models import new_backbone
from ktse_dist.models.convert import convert, read_state, renamed
from ktse_dist.models.weights import load_safetensors, load_start

RESNET50 = Network(backbone="resnet50", output_stride=16)
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
A1_BLOCKS = {2: 3, 3: 3, 4: 6, 5: 3, 6: 1, 7: 1}  # blocks of each level


def value(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of one number, which tells names apart; only that number is stored."""
    return torch.full((), zlib.crc32(name.encode()) % 4096 / 64).expand(shape)


def meta_state(backbone: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return new_backbone(Network(backbone=backbone, output_stride=8)).state_dict()


def torchvision(backbone: str) -> dict[str, Tensor]:
    """What torchvision's file of this network holds."""
    state = {name: value(name, tuple(tensor.shape)) for name, tensor in meta_state(backbone).items()}
    counters = {f"{n.removesuffix('running_var')}num_batches_tracked": torch.zeros(()) for n in state if "var" in n}
    return state | counters | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}


def a1_names() -> dict[str, str]:
    """A1's names (its symbol: level, block, branch) -> ours, both spelled out by their rules."""
    norms, convolutions = {"bn7": "bn7"}, {"conv1a": "conv1a"}
    for level, blocks in A1_BLOCKS.items():
        branches = ("branch2a", "branch2b1") if level < 6 else ("branch2a", "branch2b1", "branch2b2")
        for block in range(blocks):
            theirs, ours = (f"{level}b{block}", f"b{level}_{block}") if block else (f"{level}a", f"b{level}")
            norms |= {f"bn{theirs}_{branch}": f"{ours}.bn_{branch}" for branch in branches}
            convolutions |= {f"res{theirs}_{branch}": f"{ours}.conv_{branch}" for branch in branches}
        if level != 1:
            convolutions[f"res{level}a_branch1"] = f"b{level}.conv_branch1"
    names = {f"arg:{theirs}_weight": f"{ours}.weight" for theirs, ours in convolutions.items()}
    for theirs, ours in norms.items():
        kind = {part: "aux" if part.startswith("moving") else "arg" for part in NORM}
        names |= {f"{kind[part]}:{theirs}_{part}": f"{ours}.{ours_part}" for part, ours_part in NORM.items()}
    return names


def write_params(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """The layout of 2016, as mxnet 0.9.5 writes it: value(name) begins each array, the rest is a hole."""
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, len(shapes)))
        for name, shape in shapes.items():
            file.write(struct.pack(f"<I{len(shape)}I", len(shape), *shape) + struct.pack("<iii", 2, 0, 0))
            file.write(struct.pack("<f", value(name, ()).item()))
            file.seek(4 * (int(np.prod(shape)) - 1), 1)
        file.write(struct.pack("<Q", len(shapes)))
        for name in shapes:
            file.write(struct.pack("<Q", len(name)) + name.encode())


def test_every_name_of_the_a1_file_is_one_of_ours_and_the_classifier_is_left_out(tmp_path):
    names = a1_names()
    shapes = dict.fromkeys(names, (1,)) | {"arg:linear1000_weight": (1,), "arg:linear1000_bias": (1,)}
    write_params(tmp_path / "a1.params", shapes)
    network, tensors, left_out = renamed(tmp_path, read_state(tmp_path / "a1.params"))
    assert (network.backbone, left_out) == ("resnet38d", ["linear1000"])
    assert tensors.keys() == {f"backbone.{name}" for name in meta_state("resnet38d")}
    for theirs, ours in names.items():
        assert torch.equal(tensors[f"backbone.{ours}"], value(theirs, (1,))), theirs


@pytest.mark.slow
def test_an_a1_file_of_real_shapes_becomes_a_backbone(tmp_path):
    ours, names = meta_state("resnet38d"), a1_names()
    shapes = {theirs: tuple(ours[name].shape) for theirs, name in names.items()}
    write_params(tmp_path / "a1.params", shapes | {"arg:linear1000_weight": (1000, 4096)})
    said = convert(tmp_path / "a1.params", tmp_path / "a1.safetensors")
    assert said.endswith("(resnet38d, no head, without linear1000)")
    network = Network(backbone="resnet38d", output_stride=8)
    state = load_start(tmp_path / "a1.safetensors", network, ["cat"]).backbone
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in ours.items()}
    for theirs, name in names.items():
        first, rest = state[name].flatten()[0], state[name].flatten()[1:]
        assert first == value(theirs, ()) and not rest.any()


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("torchvision") / "resnet50-0676ba61.params"  # a name that lies
    torch.save(torchvision("resnet50"), path)
    return path


@pytest.fixture(scope="module")
def converted(resnet50) -> tuple[Path, str]:
    target = resnet50.with_name("resnet50.safetensors")
    return target, convert(resnet50, target)


def test_torchvision_s_file_becomes_a_backbone_without_its_classifier(converted):
    target, said = converted
    assert said.endswith("(resnet50, no head, without fc)")
    state = load_start(target, RESNET50, ["cat"]).backbone
    for name, tensor in state.items():
        assert torch.equal(tensor, value(name, tuple(tensor.shape))), name


def test_the_target_s_folders_are_made(resnet50, tmp_path):
    convert(resnet50, tmp_path / "a" / "b" / "resnet50.safetensors")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["resnet50.safetensors"]


def test_a_converted_file_remembers_its_source(converted, resnet50):
    metadata = load_safetensors(converted[0])[1]
    assert metadata["source"] == resnet50.name
    assert metadata["source_sha256"] == hashlib.sha256(resnet50.read_bytes()).hexdigest()


def test_the_same_file_again_is_nothing_to_do(converted, resnet50):
    target, _ = converted
    before = target.stat().st_mtime_ns
    assert convert(resnet50, target).startswith("nothing to do")
    assert target.stat().st_mtime_ns == before


def test_a_target_from_another_file_is_not_overwritten(converted, tmp_path):
    target, _ = converted
    before = target.stat().st_mtime_ns
    torch.save(torchvision("resnet50") | {"fc.bias": torch.ones(1000)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="exists and was not made from"):
        convert(tmp_path / "other.pth", target)
    assert target.stat().st_mtime_ns == before


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_published_deeplab_names_are_resnet101_s(golden_lines, prefix):
    lines = [line.split("\t") for line in golden_lines("state_dict_names_deeplab.txt")]
    state = {prefix + name: torch.zeros(()).expand(literal_eval(shape)) for name, shape in lines}
    network, tensors, left_out = renamed(Path("beco.pth"), state)
    assert (network.backbone, left_out) == ("resnet101", ["aspp"])
    found = {name: tensor.shape for name, tensor in tensors.items()}
    assert found == {f"backbone.{name}": tensor.shape for name, tensor in meta_state("resnet101").items()}


def test_torchvision_s_resnet101_is_told_from_its_depth():
    network, tensors, _ = renamed(Path("x.pth"), torchvision("resnet101"))
    assert network.backbone == "resnet101"
    assert tensors.keys() == {f"backbone.{name}" for name in meta_state("resnet101")}


def test_a_state_dict_one_level_down_is_found(tmp_path):
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(2)}}, tmp_path / "x.pth")
    assert read_state(tmp_path / "x.pth")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_pytorch_file_is_read_or_refused_in_one_line(tmp_path, zipped):
    path = tmp_path / "x.pth"
    torch.save({"conv1.weight": torch.arange(6.0)}, path, _use_new_zipfile_serialization=zipped)
    good, random = path.read_bytes(), np.random.default_rng(0)
    for trial in range(150):
        content = bytearray(good[: random.integers(len(good))] if trial % 3 == 0 else good)
        for place in random.integers(len(good), size=trial % 3):
            content[place % max(1, len(content)) : place % max(1, len(content)) + 1] = bytes([random.integers(256)])
        path.write_bytes(content)
        try:
            read_state(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
