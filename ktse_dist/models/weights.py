"""Weight files of ours: safetensors that say by themselves what they hold. convert.py makes them from others' files."""

import errno
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ktse_dist.config.method import Network
from ktse_dist.errors import UserError
from ktse_dist.files import replacing
from ktse_dist.models import new_backbone
from ktse_dist.models.cam_head import CamHead

FORMAT = "ktse_dist model 1"
CONVERT = "ktse convert FILE OUT.safetensors"
OTHERS = f"a whole .pth or .params of others is converted by: {CONVERT}; of ours copy the file again"
MAX_HIDDEN = 65_536  # width of a head; more is a damaged file


class Model(NamedTuple):
    """A trained network and what its channels mean: cam_seg[:, c + 1] is classes[c]."""

    backbone: nn.Module
    head: CamHead
    classes: list[str]
    network: Network


class Start(NamedTuple):
    """What a new run takes over from a file: the states of backbone and head (None: a new one), and why."""

    backbone: dict[str, Tensor]
    head: dict[str, Tensor] | None
    why: str


def save_model(
    path: Path,
    state: Mapping[str, Tensor],
    network: Network,
    classes: Sequence[str],
    source: Mapping[str, str] | None = None,
) -> None:
    """Write `backbone.*` and `head.*` entries of a state dict, with all that `load_model` needs; atomic.

    Other entries are left out. `classes` are the names in channel order; none for a file of the backbone alone.
    source: more metadata, about the file that this one was converted from.
    """
    tensors = {n: t.detach().cpu().contiguous() for n, t in state.items() if n.startswith(("backbone.", "head."))}
    metadata = {"format": FORMAT, "backbone": network.backbone, "output_stride": str(network.output_stride)}
    metadata |= source or {}
    if classes:
        metadata |= {"classes": json.dumps(list(classes)), "hidden": str(tensors["head.fc8.weight"].shape[0])}
    with replacing(path) as unfinished:
        save_tensors(tensors, unfinished, metadata)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file with the permissions of any new file: save_file alone makes one for its owner only.

    OSError for a full disk and the like. Other threads run meanwhile.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        code = int(found[1]) if found else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None
    path.chmod(mode)
    sort_header(path)


def sort_header(path: Path) -> None:
    """The same tensors and metadata as the same bytes: safetensors writes the metadata in a random order."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # it is, unless another version writes letters in another way
            file.seek(8)
            file.write(text.ljust(length))


def load_model(path: Path) -> Model:
    """The network that `save_model` wrote, on the CPU. Raises UserError for every other file."""
    tensors, metadata = load_safetensors(path)
    network, classes, hidden = _network(path, metadata)
    if not classes:
        raise UserError(f"{path}: holds a backbone without head; give it as model.weights to train one")
    model = _empty(network, classes, hidden)
    check_fit(path, tensors, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return Model(model["backbone"], model["head"], classes, network)


def load_start(path: Path, network: Network, classes: Sequence[str]) -> Start:
    """What a run of `classes` takes over from a file that `save_model` or the converter wrote.

    The head is taken over if it is for the same classes in the same order. Raises UserError for what does not fit.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; published weights become one by: {CONVERT}")
    tensors, metadata = load_safetensors(path)
    found, names, hidden = _network(path, metadata)
    if found.backbone != network.backbone:
        raise UserError(
            f"model.weights: {path} holds the backbone {found.backbone}, and model.backbone is {network.backbone}; "
            f"set model.backbone={found.backbone}, or give another file"
        )
    model = _empty(network, names, hidden)
    check_fit(path, tensors, model.state_dict())
    why = _why_anew(path, names, hidden, classes)
    parts = {
        part: {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")} for part in model
    }
    head = None if why else parts["head"]
    return Start(parts["backbone"], head, why or f"{path} has the same {len(names)} classes: its head is kept")


def _why_anew(path: Path, names: Sequence[str], hidden: int, classes: Sequence[str]) -> str:
    """Why the head of a file cannot serve `classes`; empty if it can."""
    if not names:
        reason = "holds a backbone alone"
    elif len(names) != len(classes):
        reason = f"has {len(names)} classes, the data set {len(classes)}"
    elif list(names) != list(classes):
        i = next(i for i, (a, b) in enumerate(zip(names, classes, strict=True)) if a != b)
        reason = f"calls class {i + 1} '{names[i]}', the data set '{classes[i]}'"
    elif hidden != CamHead.hidden:
        reason = f"has a head of width {hidden}, new ones have {CamHead.hidden}"
    else:
        return ""
    return f"{path} {reason}: the head starts anew"


def _empty(network: Network, classes: Sequence[str], hidden: int) -> nn.ModuleDict:
    """The modules that a file describes, without numbers."""
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": new_backbone(network)})
        if classes:
            model["head"] = CamHead(model["backbone"].channels, len(classes), hidden)
    return model


def load_safetensors(path: Path, mend: str = OTHERS) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Nothing else is opened: a pickle can run code when it is loaded.
    UserError that ends in `mend`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; {mend}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: not safetensors ({error}); {mend}") from None


def _network(path: Path, metadata: Mapping[str, str]) -> tuple[Network, list[str], int]:
    """What the metadata say: the network, the class names, the head's hidden width (no names: no head)."""
    if metadata.get("format") != FORMAT:
        mend = f"give what ktse train wrote, or {CONVERT}, which reads .pth and .params"
        raise UserError(f"{path}: not a model of this program; {mend}")
    try:
        network = Network(backbone=metadata.get("backbone"), output_stride=int(metadata.get("output_stride", "")))
        classes = TypeAdapter(list[str]).validate_json(metadata.get("classes", "[]"))
        hidden = int(metadata.get("hidden", "0"))
    except ValueError as error:  # pydantic's errors are ValueErrors too
        raise UserError(f"{path}: its metadata cannot be read ({' '.join(str(error).split())})") from None
    if not bool(classes) <= hidden <= MAX_HIDDEN:
        raise UserError(f"{path}: its metadata claim a head of width {hidden}; allowed are 1 to {MAX_HIDDEN:,}")
    return network, classes, hidden


def check_fit(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise UserError unless `found` has the names, shapes and types of `expected`; both may be meta tensors."""
    odd = sorted(found.keys() ^ expected.keys())
    if odd:
        verb = "lacks" if odd[0] in expected else "has an unknown"
        raise UserError(f"{path}: {verb} '{odd[0]}' ({len(odd)} names differ), so it holds another network")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            shapes = f"shape {list(tensor.shape)}, expected {list(expected[name].shape)}"
            raise UserError(f"{path}: '{name}' has {shapes}")
        if tensor.dtype != expected[name].dtype:
            raise UserError(f"{path}: '{name}' has type {tensor.dtype}, expected {expected[name].dtype}")
