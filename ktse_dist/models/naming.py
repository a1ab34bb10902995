"""What others call the tensors of our networks: the published KTSE, the A1 ImageNet file, torchvision, BECO."""

import re
from collections.abc import Callable, Collection
from typing import NamedTuple

GATES = {f"gates.{part}{i}": f"gconv{i}.att_{part}.0.weight" for i in (1, 2, 3) for part in "pn"}
HEAD = {published: name for name, published in GATES.items()} | {f"fc{i}.weight": f"fc{i}.weight" for i in (8, 9)}
COUNTER = "num_batches_tracked"  # training bookkeeping of torch's norms; ours are frozen
MXNET_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
A1_BLOCK = re.compile(r"(res|bn)([2-7])(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)")
BLOCKS = {6: "resnet50", 23: "resnet101"}  # residual blocks of layer3


class Naming(NamedTuple):
    """One way to name a network: `ours(name)` is a `backbone.*` or `head.*` name, None for what we have no use for."""

    backbone: str
    ours: Callable[[str], str | None]


def naming_of(names: Collection[str]) -> Naming | None:
    """The naming that a file follows, seen from its names; None if it is none of ours."""
    if "arg:conv1a_weight" in names:
        return Naming("resnet38d", from_a1)
    if "conv1a.weight" in names:
        return Naming("resnet38d", from_published_name)
    for prefix in ("", "backbone."):
        stem = f"{prefix}stem_layer.conv1.weight", f"{prefix}conv1.weight"
        block = re.compile(rf"{prefix}layer3\.\d+\.conv3\.weight")
        depth = sum(block.fullmatch(name) is not None for name in names)
        if depth in BLOCKS and any(name in names for name in stem):
            return Naming(BLOCKS[depth], from_resnet)
    return None


def from_a1(name: str) -> str | None:
    """Wide ResNet A1 of mxnet: res2a, res2b1 ... are our b2, b2_1 ...; the classifier linear1000 is left out."""
    plain = name.partition(":")[2] or name
    if plain.startswith("linear1000_"):
        return None
    block = A1_BLOCK.fullmatch(plain)
    if block:
        kind, level, number, branch, part = block.groups()
        place = f"b{level}_{number}" if number else f"b{level}"
        return f"backbone.{place}.{'conv' if kind == 'res' else 'bn'}_{branch}.{MXNET_NORM.get(part, part)}"
    layer, _, part = plain.partition("_")
    return f"backbone.{layer}.{MXNET_NORM.get(part, part)}"


def from_published_name(name: str) -> str | None:
    """The published stage 1. Its norm bn8 is made and never called (docs/method.md 1.2); we have none."""
    if name.startswith("bn8.") or name.endswith(COUNTER):
        return None
    return f"head.{HEAD[name]}" if name in HEAD else f"backbone.{name}"


def from_resnet(name: str) -> str | None:
    """torchvision's names, and BECO's: those under `backbone.`, with the stem under `stem_layer.`, then its aspp."""
    if name.startswith(("fc.", "aspp.")) or name.endswith(COUNTER):
        return None
    return f"backbone.{name.removeprefix('backbone.').removeprefix('stem_layer.')}"
