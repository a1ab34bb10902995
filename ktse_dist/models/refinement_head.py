"""IRN's two branches on the stages of a backbone: class boundaries, and the way to an object's centre (docs/method.md
3), with the published parameter names."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDE = 4  # of the result
EDGE_WIDTH, EDGE_GROUPS = 32, 4
WIDTHS, GROUPS = (64, 128, 256, 256, 256), (8, 16, 16, 16, 16)  # displacement branch, a stage each


class MeanShift(nn.Module):
    """Takes the mean displacement of a data set away, except in training, where it is not known yet."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(2))

    def forward(self, displacement: Tensor) -> Tensor:
        return displacement if self.training else displacement - self.running_mean[:, None, None]


class RefinementHead(nn.Module):
    """Five stages of features to boundary logits and displacements, all at STRIDE.

    channels, strides: of the stages, two of them at STRIDE, then up to three coarser ones.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        assert len(channels) == len(strides) == 5 and tuple(strides[:2]) == (STRIDE, STRIDE), (channels, strides)
        self.strides = tuple(strides)
        self.edge_layers = nn.ModuleList(squeeze(inputs, EDGE_WIDTH, EDGE_GROUPS) for inputs in channels)
        self.edge_layers.append(nn.Conv2d(5 * EDGE_WIDTH, 1, 1))
        self.dp_layers = nn.ModuleList(map(squeeze, channels, WIDTHS, GROUPS))
        self.dp_layers.append(squeeze(sum(WIDTHS[2:]), 256, 16))
        last = squeeze(WIDTHS[0] + WIDTHS[1] + 256, 256, 16)
        self.dp_layers.append(nn.Sequential(*last, nn.ReLU(), nn.Conv2d(256, 2, 1, bias=False), MeanShift()))

    def forward(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of a picture H x W -> edge [B,1,h,w], displacement [B,2,h,w] (y, x), h = H/STRIDE rounded up."""
        return self.edge(stages), self._displacement(stages)

    def edge(self, stages: Sequence[Tensor]) -> Tensor:
        """The first of both alone, all that masks need."""
        size = stages[1].shape[2:]
        found = [
            F.relu(enlarged(layer(x), stride // STRIDE, size))
            for layer, x, stride in zip(self.edge_layers, stages, self.strides, strict=False)
        ]
        return self.edge_layers[5](torch.cat(found, dim=1))

    def _displacement(self, stages: Sequence[Tensor]) -> Tensor:
        middle, size = stages[2].shape[2:], stages[1].shape[2:]
        found = [layer(x) for layer, x in zip(self.dp_layers, stages, strict=False)]
        fine, coarse = [F.relu(x) for x in found[:2]], found[2:]
        ratios = [stride // self.strides[2] for stride in self.strides[2:]]
        coarse = [F.relu(enlarged(x, ratio, middle)) for x, ratio in zip(coarse, ratios, strict=True)]
        joined = self.dp_layers[5](torch.cat(coarse, dim=1))
        up = F.relu(enlarged(joined, self.strides[2] // STRIDE, size))
        return self.dp_layers[6](torch.cat([*fine, up], dim=1))


def squeeze(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.GroupNorm(groups, outputs))


def enlarged(x: Tensor, ratio: int, size: Sequence[int]) -> Tensor:
    """x `ratio` times as large, cut to `size`, since strides round sizes up."""
    if ratio == 1:
        return x
    return F.interpolate(x, scale_factor=ratio, mode="bilinear", align_corners=False)[..., : size[0], : size[1]]
