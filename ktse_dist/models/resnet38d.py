"""ResNet-38d, the published backbone: wide, pre-activation, stride 8 (docs/method.md 1.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ktse_dist.models.frozen_norm import FrozenBatchNorm
from ktse_dist.models.noise import drop_channels

FROZEN = ("conv1a", "b2", "b2_1", "b2_2")
DROPOUT = 0.2


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions after one shared activation; the shortcut is a 1x1 of it where the shape changes."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int = 1, dilations: tuple[int, int] = (1, 1)):
        super().__init__()
        self.bn_branch2a = FrozenBatchNorm(inputs)
        self.conv_branch2a = _conv(inputs, middle, 3, stride, dilations[0])
        self.bn_branch2b1 = FrozenBatchNorm(middle)
        self.conv_branch2b1 = _conv(middle, outputs, 3, dilation=dilations[1])
        self.conv_branch1 = None if inputs == outputs and stride == 1 else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn_branch2a(x), inplace=True)
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(active)
        y = self.conv_branch2a(active)
        y = self.conv_branch2b1(F.relu(self.bn_branch2b1(y), inplace=True))
        return y + shortcut


class Bottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1, with channel dropout before the last two; the shortcut is always a 1x1."""

    def __init__(self, inputs: int, outputs: int, dilation: int, first_use: int) -> None:
        super().__init__()
        self.first_use = first_use
        self.bn_branch2a = FrozenBatchNorm(inputs)
        self.conv_branch2a = _conv(inputs, outputs // 4, 1)
        self.bn_branch2b1 = FrozenBatchNorm(outputs // 4)
        self.conv_branch2b1 = _conv(outputs // 4, outputs // 2, 3, dilation=dilation)
        self.bn_branch2b2 = FrozenBatchNorm(outputs // 2)
        self.conv_branch2b2 = _conv(outputs // 2, outputs, 1)
        self.conv_branch1 = _conv(inputs, outputs, 1)

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        active = F.relu(self.bn_branch2a(x), inplace=True)
        shortcut = self.conv_branch1(active)
        y = F.relu(self.bn_branch2b1(self.conv_branch2a(active)), inplace=True)
        y = self.conv_branch2b1(drop_channels(y, DROPOUT, keys, self.first_use))
        y = F.relu(self.bn_branch2b2(y), inplace=True)
        return self.conv_branch2b2(drop_channels(y, DROPOUT, keys, self.first_use + 1)) + shortcut


class ResNet38d(nn.Module):
    """Images to 4096 channels at stride 8. State-dict names are the published ones (conv1a ... bn7).

    Frozen as published: conv1a, the b2 blocks, all batch norms. The frozen part runs without gradient, so the
    backward pass ends at b3 and keeps nothing of the largest maps. Weights start random.
    """

    channels = 4096
    block_kinds = (BasicBlock, Bottleneck)
    stride = 8
    mean = (0.485 * 255, 0.456 * 255, 0.406 * 255)
    std = (0.229 * 255, 0.224 * 255, 0.225 * 255)

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = _conv(3, 64, 3)
        self._add_group("b2", 3, BasicBlock(64, 128, 128, stride=2), lambda: BasicBlock(128, 128, 128))
        self._add_group("b3", 3, BasicBlock(128, 256, 256, stride=2), lambda: BasicBlock(256, 256, 256))
        self._add_group("b4", 6, BasicBlock(256, 512, 512, stride=2), lambda: BasicBlock(512, 512, 512))
        first = BasicBlock(512, 512, 1024, dilations=(1, 2))
        self._add_group("b5", 3, first, lambda: BasicBlock(1024, 512, 1024, dilations=(2, 2)))
        self.b6 = Bottleneck(1024, 2048, dilation=4, first_use=0)
        self.b7 = Bottleneck(2048, 4096, dilation=4, first_use=2)
        self.bn7 = FrozenBatchNorm(4096)
        for name in FROZEN:
            self.get_submodule(name).requires_grad_(False)

    def _add_group(self, name: str, blocks: int, first: BasicBlock, other) -> None:
        self.add_module(name, first)
        for i in range(1, blocks):
            self.add_module(f"{name}_{i}", other())

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """images [B,3,H,W], normalised -> relu(bn7) [B,4096,H/8,W/8] (rounded up); keys int64 [B] switch dropout on."""
        x = images.contiguous(memory_format=torch.channels_last)
        for name, block in self.named_children():
            with torch.set_grad_enabled(torch.is_grad_enabled() and name not in FROZEN):
                x = block(x, keys) if isinstance(block, Bottleneck) else block(x)
        return F.relu(x, inplace=True)
