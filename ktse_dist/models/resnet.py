"""ResNet-50 and ResNet-101 (He et al., 2016) as dense backbones, with torchvision's names."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ktse_dist.models.frozen_norm import FrozenBatchNorm

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
FROZEN = ("conv1", "layer1")

Norm = Callable[[int], nn.Module]  # channels -> a batch norm, frozen or not


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides and dilates), 1x1 to four times the width; a 1x1 shortcut where the shape changes."""

    def __init__(
        self, inputs: int, width: int, stride: int = 1, dilation: int = 1, norm: Norm = FrozenBatchNorm
    ) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), norm(outputs)
        self.downsample = None
        if inputs != outputs or stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        return F.relu(self.bn3(self.conv3(y)) + shortcut, inplace=True)


class ResNet(nn.Module):
    """Images to the 2048 channels of layer4.

    output_stride: 16 or 8 replace the late strides by dilation, in all blocks of their stage, as DeepLab does; 32 is
    the ImageNet classifier's own layout. dilate=False leaves the strides out all the same (IRN's layout). Weights start
    random. Frozen: conv1, layer1, all batch norms; the frozen part runs without gradient. trained: nothing is frozen,
    and batch norms are ordinary ones (docs/method.md 4). There is no dropout, so `keys` is not used.
    """

    channels = 2048
    stage_channels = (64, 256, 512, 1024, 2048)
    block_kinds = (Bottleneck,)
    mean = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std = (0.229 * 255, 0.224 * 255, 0.225 * 255)

    def __init__(self, depth: int, output_stride: int = 16, dilate: bool = True, trained: bool = False) -> None:
        super().__init__()
        assert output_stride in (8, 16, 32), output_stride
        self.stride, self.trained = output_stride, trained
        norm = nn.BatchNorm2d if trained else FrozenBatchNorm
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64)
        inputs, reached, dilation = 64, 4, 1
        for stage, blocks in enumerate(BLOCKS[depth], start=1):
            width, step = 32 << stage, 1 if stage == 1 else 2
            kept = step if reached * step <= output_stride else 1
            reached, dilation = reached * kept, dilation * step // kept
            dilation = dilation if dilate else 1
            self.add_module(f"layer{stage}", _stage(inputs, width, blocks, kept, dilation, norm))
            inputs = 4 * width
        for name in () if trained else FROZEN:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """images [B,3,H,W], normalised by mean and std -> features [B,2048,h,w], h = H/stride rounded up."""
        x = images.contiguous(memory_format=torch.channels_last)
        with nullcontext() if self.trained else torch.no_grad():
            x = F.relu(self.bn1(self.conv1(x)), inplace=True)
            x = self.layer1(F.max_pool2d(x, 3, 2, 1))
        return self.layer4(self.layer3(self.layer2(x)))

    @torch.no_grad()
    def stages(self, images: Tensor) -> list[Tensor]:
        """Features of the stem and of the four layers, `stage_channels` of them at `stage_strides`; no gradient."""
        x = images.contiguous(memory_format=torch.channels_last)
        found = [F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            found.append(layer(found[-1]))
        return found

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return (4, *(min(stride, self.stride) for stride in (4, 8, 16, 32)))


def _stage(inputs: int, width: int, blocks: int, stride: int, dilation: int, norm: Norm) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride, dilation, norm)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1, dilation, norm) for _ in range(blocks - 1)))
