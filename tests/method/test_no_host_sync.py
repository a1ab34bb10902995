"""A training step never waits for the device: no operation whose result the host must see before it can go on.

The step runs on CPU tensors along the path of a GPU (tests/gpu asks CUDA itself), under a dispatch mode that refuses
what would wait on one: reading a value, sizes that depend on data, new tensors from Python numbers (a copy from
pageable memory).
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.ops.affinity import eager as affinity_eager
from kernels.ops.affinity import function as affinity
from kernels.ops.erasing import eager as erasing_eager
from kernels.ops.erasing import function as erasing
from kernels.ops.present import all_pixels
from kernels.ops.pyramid import function as pyramid
from kernels.ops.segmentation import eager as segmentation_eager
from kernels.ops.segmentation import function as segmentation
from kernels.ops.transfer import eager as transfer_eager
from kernels.ops.transfer import function as transfer
from ktse_dist import models
from ktse_dist.config.method import Network
from ktse_dist.config.stages import Segment
from ktse_dist.config_file import load_config
from ktse_dist.method.batch import Batch, MaskedBatch
from ktse_dist.method.cotrain import CoTraining
from ktse_dist.method.ktse import KTSE

WAITING = {
    "_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique", "_unique2",
    "unique_dim", "bincount", "allclose", "lift_fresh", "repeat_interleave",
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in WAITING, f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_", "_unsafe_index"):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{name} with a mask waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def eager_as_on_a_gpu(monkeypatch):
    """The torch path, told nothing about the values, as it is for CUDA tensors."""
    monkeypatch.setattr(affinity_eager, "filled_masks", lambda masks: None)
    monkeypatch.setattr(erasing_eager, "most_tags", lambda labels: labels.shape[1])
    monkeypatch.setattr(transfer_eager, "present_pairs", lambda labels: None)
    monkeypatch.setattr(segmentation_eager, "weighted_pixels", all_pixels)


@pytest.fixture
def kernels_as_on_a_gpu(monkeypatch):
    """The kernels' path with launches left out: what they write is the device's business, and nobody looks at it."""
    for op in (affinity, erasing, pyramid, segmentation, transfer):
        monkeypatch.setattr(op, "launch", lambda *arguments, **constants: None)
    monkeypatch.setenv("KTSE_KERNELS", "triton")


def new_module(preset: str, precision: str) -> KTSE:
    config = load_config(None, [f"method.preset={preset}", "model.weights=none"])
    return KTSE(*models.build(config.model, 3), config.method, precision)


def batch() -> Batch:
    size, pictures, pairs = 64, 2, 1
    pixels = torch.randint(0, 256, (pictures + pairs, 3, size, size), dtype=torch.uint8)
    inside = torch.tensor([[0, 0, size, size]] * (pictures + pairs), dtype=torch.int32)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0], [0, 1, 1]])
    keys = torch.arange(pictures)
    own, others = (pixels[:pictures], inside[:pictures], labels[:pictures], keys), (pixels[2:], inside[2:], labels[2:])
    return Batch(*own, *others, pictures=pictures, pairs=pairs, local_pairs=pairs, most_tags=2)


@pytest.mark.parametrize("path", ["eager_as_on_a_gpu", "kernels_as_on_a_gpu"])
@pytest.mark.parametrize(("preset", "precision"), [("published", "fp32"), ("corrected", "bf16")])
def test_a_step_of_either_phase_never_waits_for_the_device(request, path, preset, precision):
    request.getfixturevalue(path)
    module, pictures = new_module(preset, precision), batch()
    for phase in (1, 2):
        module(pictures, phase)["total"].backward()  # constants reach the device once, and stay
        with NoWaiting():
            module(pictures, phase)["total"].backward()


@pytest.mark.parametrize("operation", [
    lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero(),
    lambda x: torch.tensor([1.0], device=x.device),
], ids=["item", "bool", "mask", "nonzero", "new"])  # fmt: skip
def test_what_waits_is_noticed(operation):
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        operation(torch.randn(4))


@pytest.mark.parametrize("phase", [1, 2])
def test_a_step_of_stage_2_waits_for_nothing(phase):
    module = CoTraining([models.build_deeplab(Network(weights="none"), 3) for _ in range(2)], Segment(), "bf16")
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(0, 4, (4, 64, 64), dtype=torch.uint8)
    step = MaskedBatch(images, labels, labels < 2, torch.arange(4), pictures=4, classes=3)
    module(step, phase)  # constants reach the device in the first step
    with NoWaiting():
        module(step, phase)["total"].backward()
