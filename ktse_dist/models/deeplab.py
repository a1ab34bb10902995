"""DeepLabV2 (Chen et al., 2017): a dense backbone and atrous spatial pyramid pooling (docs/method.md 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATES = (6, 12, 18, 24)  # at stride 8
HEAD_STD = 0.01
CENTRED_STD = 0.1  # with it the head learns well at a rate of 0.01 to 0.04


class ASPP(nn.Module):
    """The sum of dilated 3x3 convolutions with bias, one a rate: features [B,F,h,w] -> logits [B,K,h,w]."""

    def __init__(self, channels: int, outputs: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = [f"c{i}" for i in range(len(rates))]  # the published names
        for name, rate in zip(self.branches, rates, strict=True):
            branch = nn.Conv2d(channels, outputs, 3, padding=rate, dilation=rate)
            nn.init.normal_(branch.weight, std=HEAD_STD)
            nn.init.zeros_(branch.bias)
            self.add_module(name, branch)

    def forward(self, features: Tensor) -> Tensor:
        return sum(self.get_submodule(name)(features) for name in self.branches)


class DeepLab(nn.Module):
    """Pictures to logits of background and classes, at the backbone's stride.

    The state dict has the published names, with the backbone's stem under our own (models/naming.py): `backbone.conv1`
    for `backbone.stem_layer.conv1`. The rates shrink with the stride: they are distances in the picture.

    centred: the head sees each pixel's features less their mean, at one length. Those of EfficientNet-Lite0 lie between
    0 and 6, so what all pixels have in common would rule the head: it learnt the background, or blew up.
    """

    def __init__(self, backbone: nn.Module, classes: int, centred: bool = False) -> None:
        super().__init__()
        self.backbone, self.centred = backbone, centred
        self.aspp = ASPP(backbone.channels, classes + 1, tuple(max(1, rate * 8 // backbone.stride) for rate in RATES))

    @property
    def mean(self) -> tuple[float, ...]:
        return self.backbone.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.backbone.std

    def forward(self, images: Tensor) -> Tensor:
        """images [B,3,H,W], normalised by mean and std -> logits [B,C+1,h,w]; channel 0 is the background."""
        features = self.backbone(images)
        return self.aspp(centre(features) if self.centred else features)


def centre(features: Tensor) -> Tensor:
    """[B,F,h,w] -> the same, with mean 0 and deviation CENTRED_STD over the features of each pixel."""
    last = features.permute(0, 2, 3, 1)
    return (CENTRED_STD * F.layer_norm(last, last.shape[3:])).permute(0, 3, 1, 2)


def upsampled(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Logits [B,K,h,w] to [B,K,*size], in fp32."""
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
