"""Weight files: self-describing safetensors, and the way there from the published PyTorch checkpoints.

    python -m ktse_dist.models.weights FILE.pth OUT.safetensors [--classes aeroplane,bicycle,...]
"""

import argparse
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ktse_dist.config import Network
from ktse_dist.errors import UserError, run_main
from ktse_dist.models import new_backbone
from ktse_dist.models.cam_head import CamHead

FORMAT = "ktse_dist model 1"
CONVERT = "python -m ktse_dist.models.weights FILE.pth OUT.safetensors"
GATES = {f"gates.{part}{i}": f"gconv{i}.att_{part}.0.weight" for i in (1, 2, 3) for part in "pn"}
UNUSED = "bn8."  # the published network makes this norm and never calls it (METHOD 1.2); we have none


class Model(NamedTuple):
    """A trained network and what its channels mean: cam_seg[:, c + 1] is classes[c]."""

    backbone: nn.Module
    head: CamHead
    classes: list[str]
    network: Network


def save_model(path: Path, state: Mapping[str, Tensor], network: Network, classes: Sequence[str]) -> None:
    """Write `backbone.*` and `head.*` entries of a state dict, with all that `load_model` needs; atomic.

    Other entries are left out. `classes` are the names in channel order; none for a file of the backbone alone.
    """
    tensors = {n: t.detach().cpu().contiguous() for n, t in state.items() if n.startswith(("backbone.", "head."))}
    metadata = {"format": FORMAT, "backbone": network.backbone, "output_stride": str(network.output_stride)}
    if classes:
        metadata |= {"classes": json.dumps(list(classes)), "hidden": str(tensors["head.fc8.weight"].shape[0])}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def load_model(path: Path) -> Model:
    """The network that `save_model` wrote, on the CPU. Raises UserError for every other file."""
    tensors, metadata = load_safetensors(path)
    network, classes, hidden = _network(path, metadata)
    if not classes:
        raise UserError(f"{path}: holds a backbone without head; give it as model.weights to train one")
    with torch.device("meta"):
        backbone = new_backbone(network)
        head = CamHead(backbone.channels, len(classes), hidden)
    model = nn.ModuleDict({"backbone": backbone, "head": head})
    _check_fit(path, tensors, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return Model(backbone, head, classes, network)


def load_backbone(path: Path, network: Network) -> dict[str, Tensor]:
    """The backbone's state in a file that `save_model` or the converter wrote, checked against `network`."""
    tensors, metadata = load_safetensors(path)
    found = _network(path, metadata)[0].backbone
    if found != network.backbone:
        raise UserError(f"model.weights: {path} holds a {found}, and model.backbone is {network.backbone}")
    state = {name.removeprefix("backbone."): t for name, t in tensors.items() if name.startswith("backbone.")}
    with torch.device("meta"):
        _check_fit(path, state, new_backbone(network).state_dict())
    return state


def load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Nothing else is opened: a pickle can run code when it is loaded."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: not safetensors ({error}); a PyTorch file is converted by: {CONVERT}") from None


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our `backbone.*`, `head.*` names -> the published ones (conv1a ..., fc8, fc9, gconv1.att_p.0.weight ...)."""
    short = {name.removeprefix("backbone.").removeprefix("head."): tensor for name, tensor in state.items()}
    return {GATES.get(name, name): tensor for name, tensor in short.items()}


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The way back. DataParallel's `module.` goes, and so does bn8."""
    ours = {published: name for name, published in GATES.items()} | {f: f for f in ("fc8.weight", "fc9.weight")}
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {
        f"head.{ours[name]}" if name in ours else f"backbone.{name}": tensor
        for name, tensor in plain.items()
        if not name.startswith(UNUSED)
    }


def published_names(backbone: nn.Module, head: nn.Module) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of everything in the two modules; works on the meta device."""
    state = nn.ModuleDict({"backbone": backbone, "head": head}).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in to_published(state).items()}


def convert(source: Path, target: Path, classes: Sequence[str] = ()) -> None:
    """A published stage-1 checkpoint (or its backbone alone) -> a file for `load_model` or `model.weights`.

    classes: names in channel order; without them they are class1, class2, ...
    """
    tensors = from_published(_load_plain_pickle(source))
    network = Network(backbone="resnet38d", output_stride=8)
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": new_backbone(network)})
        if "head.fc9.weight" in tensors:
            classes = _class_names(source, classes, tensors["head.fc9.weight"].shape[0] - 1)
            model["head"] = CamHead(model["backbone"].channels, len(classes))
    _check_fit(source, tensors, model.state_dict())
    save_model(target, tensors, network, classes if "head" in model else ())


def _class_names(source: Path, given: Sequence[str], count: int) -> Sequence[str]:
    if given and len(given) != count:
        raise UserError(f"--classes: {len(given)} names given, {source} has {count} classes")
    return given or [f"class{i + 1}" for i in range(count)]


def _load_plain_pickle(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path}: not a PyTorch file of tensors alone ({str(error).splitlines()[0]})") from None
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: not a state dict (a dictionary of names and tensors)")
    return state


def _network(path: Path, metadata: Mapping[str, str]) -> tuple[Network, list[str], int]:
    """What the metadata say: the network, the class names, the head's hidden width (no names: no head)."""
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a model of this program; a published PyTorch file is converted by: {CONVERT}")
    try:
        network = Network(backbone=metadata.get("backbone"), output_stride=int(metadata.get("output_stride", "")))
        classes = TypeAdapter(list[str]).validate_json(metadata.get("classes", "[]"))
        return network, classes, int(metadata.get("hidden", "0"))
    except ValueError as error:  # pydantic's errors are ValueErrors too
        raise UserError(f"{path}: its metadata cannot be read ({' '.join(str(error).split())})") from None


def _check_fit(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    odd = sorted(found.keys() ^ expected.keys())
    if odd:
        verb = "lacks" if odd[0] in expected else "has an unknown"
        raise UserError(f"{path}: {verb} '{odd[0]}' ({len(odd)} names differ), so it holds another network")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
            raise UserError(f"{path}: '{name}' has {shapes}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m ktse_dist.models.weights", description=convert.__doc__)
    parser.add_argument("source", type=Path, metavar="FILE.pth")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--classes", default="", help="names, separated by commas")
    arguments = parser.parse_args(argv)
    convert(arguments.source, arguments.target, [name.strip() for name in arguments.classes.split(",") if name.strip()])


if __name__ == "__main__":
    run_main(main)
