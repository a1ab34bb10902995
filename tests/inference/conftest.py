"""The published code's tiny network (tests/golden/README.md), with the weights that a case holds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ktse_dist.inference.multiscale import CamNetwork

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture(scope="session")
def tiny_network() -> Callable[[dict[str, np.ndarray]], CamNetwork]:
    return network_of_case


def network_of_case(case: dict[str, np.ndarray]) -> CamNetwork:
    w = {name[2:]: torch.from_numpy(array) for name, array in case.items() if name.startswith("w_")}

    def cam(images: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(images, w["conv1a.weight"], stride=2, padding=1)
        x = F.conv2d(x, w["b2.conv.weight"], stride=2, padding=1).relu()
        x = F.conv2d(x, w["b3.conv.weight"], w["b3.conv.bias"], stride=2, padding=1).relu()
        x = F.conv2d(x, w["b7.conv.weight"]).relu()
        statistics = (w["bn7.running_mean"], w["bn7.running_var"], w["bn7.weight"], w["bn7.bias"])
        x = F.conv2d(F.batch_norm(x, *statistics).relu(), w["fc8.weight"]).relu()
        return F.conv2d(x, w["fc9.weight"])[:, 1:]

    return CamNetwork(cam, lambda cam: cam.mean((2, 3)), 8, MEAN, STD)
