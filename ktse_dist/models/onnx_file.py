"""A segmentation network as one ONNX file, for whoever has no torch: pictures of any size to logits."""

import importlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from google.protobuf.message import DecodeError
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from ktse_dist.errors import UserError
from ktse_dist.files import atomic
from ktse_dist.models.segmenter import Segmenter

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto
    from onnxruntime import InferenceSession

FORMAT = "ktse_dist segmentation onnx 1"
ANEW = "export it again, to a new file: ktse export --run RUN --format onnx --out FILE.onnx"
MAX_BYTES = 2**31 - 1  # of a protobuf message
EXAMPLE = (2, 3, 96, 128)  # pictures that the graph is traced with; two, so that one is nothing special


class Answering(nn.Module):
    """images float32 [B,3,H,W], RGB from 0 to 255 -> mean logits of all networks, float32 [B,K,h,w]."""

    def __init__(self, networks: list[nn.Module]):
        super().__init__()
        self.networks = nn.ModuleList(networks)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(list(getattr(networks[0], name)))[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images - self.mean) / self.std
        return torch.stack([network(pixels) for network in self.networks]).mean(dim=0)


class OnnxNetwork(NamedTuple):
    """A session as `inference.segmentation.segmented` asks it; on a CPU."""

    session: "InferenceSession"
    device: torch.device = torch.device("cpu")

    def normalised(self, rgb: np.ndarray) -> Tensor:
        """rgb uint8 [H,W,3] -> float32 [1,3,H,W] from 0 to 255: the graph normalises."""
        return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None].float()

    def logits(self, images: Tensor) -> Tensor:
        try:
            (found,) = self.session.run(["logits"], {"images": images.numpy()})
        except (RuntimeError, *runtime_errors(installed("onnxruntime"))) as error:
            size, why = "x".join(map(str, images.shape[:1:-1])), " ".join(str(error).split())[:200]
            raise UserError(
                f"onnxruntime cannot look at a picture of {size} ({why}); give --long-side 640 and another --out"
            ) from None
        return torch.from_numpy(found)


def save_onnx(path: Path, segmenter: Segmenter) -> None:
    """Write the mean answer of the networks, with all numbers inside the file; atomic. UserError without onnx."""
    onnx, _ = installed("onnx"), installed("onnxscript")
    any_size = dict(zip((0, 2, 3), map(torch.export.Dim, ("batch", "height", "width")), strict=True))
    with atomic(path) as file, quiet():  # opened first: a place that cannot be written to is told at once
        program = torch.onnx.export(
            Answering(segmenter.networks).eval(), (torch.zeros(EXAMPLE),), dynamo=True, verbose=False,
            input_names=["images"], output_names=["logits"], dynamic_shapes={"images": any_size},
        )  # fmt: skip
        model = program.model_proto
        about = {"format": FORMAT, "classes": json.dumps(segmenter.classes), "input": "RGB, 0 to 255, [B,3,H,W]"}
        onnx.helper.set_model_props(model, about | {"output": "logits at the network's stride; 0 is the background"})
        file.write(model.SerializeToString())


def load_onnx(path: Path) -> tuple[OnnxNetwork, list[str]]:
    """The network of a file that `save_onnx` wrote, and its classes. Raises UserError for every other file."""
    onnx, runtime = installed("onnx"), installed("onnxruntime")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {ANEW}")
    if path.stat().st_size > MAX_BYTES:
        raise UserError(
            f"{path}: has {path.stat().st_size:,} bytes; allowed are {MAX_BYTES:,}: not an ONNX file of ours"
        )
    content = path.read_bytes()
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        mend = f"{ANEW}; or call it NAME.safetensors, if it is that"
        raise UserError(f"{path}: not an ONNX file ({error}); {mend}") from None
    about = {entry.key: entry.value for entry in model.metadata_props}
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: not a network of this program; {ANEW}")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors(model)):
        raise UserError(f"{path}: wants numbers of other files, which are not opened; {ANEW}")
    try:
        classes = TypeAdapter(list[str]).validate_json(about.get("classes", ""))
        network = OnnxNetwork(session(runtime, content))
        (output,), (images,) = network.session.get_outputs(), network.session.get_inputs()
    except (ValidationError, ValueError, RuntimeError, *runtime_errors(runtime)) as error:
        raise UserError(f"{path}: damaged ({' '.join(str(error).split())[:200]}); {ANEW}") from None
    names, types = (images.name, output.name), {images.type, output.type}
    any_size = len(images.shape) == 4 and images.shape[1] == 3 and not any(isinstance(n, int) for n in images.shape[2:])
    fits = names == ("images", "logits") and output.shape[1:2] == [len(classes) + 1]
    if not (fits and any_size and types == {"tensor(float)"}):
        raise UserError(f"{path}: its graph does not fit its {len(classes)} classes, or pictures of any size; {ANEW}")
    return network, classes


def session(runtime: ModuleType, content: bytes) -> "InferenceSession":
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors alone
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def runtime_errors(runtime: ModuleType) -> tuple[type[Exception], ...]:
    """What a session may raise for a file that is damaged: the binding's exceptions have no base of their own."""
    found = vars(runtime.capi.onnxruntime_pybind11_state).values()
    return tuple(one for one in found if isinstance(one, type) and issubclass(one, Exception))


def tensors(model: "ModelProto") -> Iterator["TensorProto"]:
    """All of a model, in the graph, in the graphs of its nodes, and in its functions."""
    yield from of_graph(model.graph)
    for function in model.functions:
        yield from of_nodes(function.node)
        yield from of_attributes(function.attribute_proto)  # what a call leaves out


def of_graph(graph: "GraphProto") -> Iterator["TensorProto"]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from of_nodes(graph.node)


def of_nodes(nodes) -> Iterator["TensorProto"]:
    for node in nodes:
        yield from of_attributes(node.attribute)


def of_attributes(attributes) -> Iterator["TensorProto"]:
    for attribute in attributes:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from of_graph(graph)


def installed(name: str) -> ModuleType:
    """A package of the extra `onnx`, which only ONNX files need. Without onnxruntime's reports to its makers."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise UserError(f"ONNX files need {missing.name}: pip install 'ktse_dist[onnx]'") from None


@contextmanager
def quiet() -> Iterator[None]:
    """torch.onnx tells of optional packages and of its own deprecations."""
    told = logging.getLogger("torch.onnx")
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        told.setLevel(level)
