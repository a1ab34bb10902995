"""The published network with the golden numbers' weights, built once: 106 M parameters take their time."""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ktse_dist.models.cam_head import CamHead
from ktse_dist.models.naming import GATES
from ktse_dist.models.resnet38d import ResNet38d


def fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """The rule by which tests/golden/README.md gives every parameter a value from its published name."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    x = np.arange(math.prod(shape), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    x *= np.uint32(2654435761)
    for shift, factor in ((16, 2246822507), (13, 3266489909), (16, 1)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    v = x * (2.0 / 2**32) - 1
    if len(shape) > 1:
        v *= math.sqrt(3 / math.prod(shape[1:]))
    elif name.endswith("running_var"):
        v = 1 + 0.2 * np.abs(v)
    else:
        v = 0.1 * v + name.endswith(".weight")
    return torch.from_numpy(v.astype(np.float32)).reshape(shape)


@pytest.fixture(scope="session")
def filled_net() -> tuple[nn.Module, nn.Module]:
    with torch.device("meta"):
        backbone, head = ResNet38d(), CamHead(4096, 20)
    for module, published in ((backbone, {}), (head, GATES)):
        state = {n: fill(published.get(n, n), tuple(t.shape)) for n, t in module.state_dict().items()}
        module.load_state_dict(state, assign=True)
    return backbone, head


@pytest.fixture(scope="session")
def golden_fill():
    """`golden_fill("b2.conv_branch1.weight", (128, 64, 1, 1))`: a parameter's golden value."""
    return fill


@pytest.fixture(scope="session")
def golden_lines():
    """`golden_lines("net_gpp_info.txt")`: the lines of a text among the golden files."""
    return lambda name: (Path(__file__).parents[1] / "golden" / name).read_text().splitlines()
