"""`ktse convert FILE OUT.safetensors`: a weight file of others, once, into one for model.weights and load_model.

The published stage-1 .pth, the A1 ImageNet .params of ResNet38d, the ResNet-50 and ResNet-101 .pth of torchvision
and BECO. What a file is, is read from its first bytes and its names, not from its own name.
"""

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ktse_dist.config.method import Network
from ktse_dist.errors import Parser, UserError, run_main
from ktse_dist.models import new_backbone
from ktse_dist.models.cam_head import CamHead
from ktse_dist.models.mxnet_params import MAGIC, read_params
from ktse_dist.models.naming import COUNTER, naming_of
from ktse_dist.models.weights import check_fit, save_model

MAX_CLASSES = 10_000
KNOWN = "the published stage-1 .pth, the A1 .params of ResNet38d, ResNet-50 and ResNet-101 of torchvision or BECO"
# What torch.load raises for damaged bytes, beside its own errors.
DAMAGED = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError)
DAMAGED += (AssertionError, OverflowError, MemoryError, struct.error, zipfile.BadZipFile, SafetensorError)


def convert(source: Path, target: Path, classes: Sequence[str] = ()) -> str:
    """Write `target` unless it was made from the same file before; returns one line about it, for people.

    classes: names in channel order; without them they are class1, class2, ... Raises UserError for files that are
    damaged or hold another network, and for a target that exists and comes from elsewhere.
    """
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if target.exists():
        check_same_source(target, source, sha256, classes)
        return f"nothing to do: {target} was converted from this file before"
    state = read_state(source)
    network, tensors, left_out = renamed(source, state)
    classes = class_names(source, classes, tensors)
    shapes = {name: tensor.to("meta", floats(tensor)) for name, tensor in tensors.items()}
    check_fit(source, shapes, expected(network, tensors, len(classes)))  # before anything is copied
    tensors = {name: finite(source, name, tensor.to(floats(tensor))) for name, tensor in tensors.items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        save_model(target, tensors, network, classes, {"source": source.name, "source_sha256": sha256})
    except (OSError, SafetensorError) as error:
        raise UserError(f"{target}: cannot be written ({error})") from None
    more = f", without {', '.join(left_out)}" if left_out else ""
    head = f"{len(classes)} classes" if classes else "no head"
    return f"converted: {target} ({network.backbone}, {head}{more})"


def check_same_source(target: Path, source: Path, sha256: str, classes: Sequence[str]) -> None:
    """Raise UserError unless `target` is what converting the source with these class names would write."""
    mend = "delete it, or name another OUT.safetensors"
    try:
        with safe_open(target, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError):
        raise UserError(f"{target}: exists and is no file of ours; {mend}") from None
    if metadata.get("source_sha256") != sha256:
        raise UserError(f"{target}: exists and was not made from {source} as it is now; {mend}")
    if classes and metadata.get("classes") != json.dumps(list(classes)):
        raise UserError(f"{target}: exists with other class names; {mend}")


def read_state(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a PyTorch or mxnet file. No code in it runs, and no length in it is believed."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":
        mend = "what ktse wrote goes as it is into model.weights, of others give the .pth or .params"
        raise UserError(f"{path}: safetensors, which are not converted; {mend}")
    if start.startswith(MAGIC):
        return {name: torch.from_numpy(array) for name, array in read_params(path).items()}
    try:
        if start.startswith(b"PK"):
            check_stored(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle versions, which are damage: one line says so
            state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        raise UserError(
            f"{path}: not a PyTorch or mxnet file of tensors alone ({reason(error)}); {KNOWN} are read"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not state or not all(map(is_entry, state.items())):
        raise UserError(f"{path}: not a state dict (a dictionary of names and dense tensors); {KNOWN} are read")
    return state


def reason(error: Exception) -> str:
    """Why torch.load refused a file. Its own words about pickles advise to run whatever code is in them."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors, or is no PyTorch file"
    return (str(error).splitlines() or [type(error).__name__])[0]


def is_entry(entry: tuple[object, object]) -> bool:
    name, tensor = entry
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type == "cpu"


def check_stored(path: Path) -> None:
    """torch.save never compresses: whoever does may unpack to more than memory holds."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise ValueError(f"'{entry.filename}' in it is compressed or larger than the file")


def renamed(source: Path, state: Mapping[str, Tensor]) -> tuple[Network, dict[str, Tensor], list[str]]:
    """The network that a state is for, its tensors under our names, and the layers that have no place in it."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel's
    naming = naming_of(plain.keys())
    if naming is None:
        raise UserError(f"{source}: '{next(iter(plain))}' ({len(plain)} names) is in no network known here: {KNOWN}")
    ours = {name: naming.ours(name) for name in plain}
    tensors = {ours[name]: tensor for name, tensor in plain.items() if ours[name]}
    unused = [name for name in plain if not ours[name] and not name.endswith(COUNTER)]
    left_out = {re.split(r"[._]", name.partition(":")[2] or name)[0] for name in unused}
    if len(tensors) + list(ours.values()).count(None) < len(state):
        raise UserError(f"{source}: two of its names mean the same tensor; it is damaged or not what it seems")
    return Network(backbone=naming.backbone, output_stride=8), tensors, sorted(left_out)


def class_names(source: Path, given: Sequence[str], tensors: Mapping[str, Tensor]) -> Sequence[str]:
    """The names of a head's classes; none if there is no head."""
    last = tensors.get("head.fc9.weight")
    count = last.shape[0] - 1 if last is not None and last.dim() else 0
    if given and len(given) != count:
        raise UserError(f"--classes: {len(given)} names given, {source} has {count} classes")
    if count > MAX_CLASSES:
        raise UserError(f"{source}: claims {count:,} classes; at most {MAX_CLASSES:,} are allowed")
    return given or [f"class{i + 1}" for i in range(count)]


def expected(network: Network, tensors: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """What must be in the file, on the meta device: a backbone, and a head where there is any part of one."""
    with torch.device("meta"):
        model = nn.ModuleDict({"backbone": new_backbone(network)})
        if any(name.startswith("head.") for name in tensors):
            model["head"] = CamHead(model["backbone"].channels, max(classes, 1))
    return model.state_dict()


def floats(tensor: Tensor) -> torch.dtype:
    """What a tensor is kept as: every kind of float as fp32, the rest as it is, to be refused."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def finite(source: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.isfinite().all():
        raise UserError(f"{source}: '{name}' has values that are no numbers, so it is damaged; fetch it again")
    return tensor


def main(arguments: list[str]) -> None:
    parser = Parser(prog="ktse convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="FILE")
    parser.add_argument("target", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--classes", default="", help="names of a head's classes, separated by commas")
    options = parser.parse_args(arguments)
    classes = [name.strip() for name in options.classes.split(",") if name.strip()]
    print(convert(options.source, options.target, classes))


if __name__ == "__main__":
    run_main(main)
