"""From features to class activation maps and class scores: the global pyramid head, GPP (docs/method.md 1.2)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels


class PyramidGates(nn.Module):
    """Three gates that merge the CAM's average-pooling pyramid from coarse to fine; each weight [2,2C,3,3].

    p1, n1 ... p3, n3 gate the positive and the negative part. They are this module's own parameters, and calling it
    is the only use of them, so ZeRO-3 finds them gathered.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("p1", "n1", "p2", "n2", "p3", "n3"):
            weight = nn.Parameter(torch.empty(2, 2 * classes, 3, 3))
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # what nn.Conv2d does, as published
            self.register_parameter(name, weight)

    def forward(self, cam: Tensor) -> tuple[Tensor, Tensor]:
        """cam [B,C,h,w] (signed) -> (gpp [B,C,h,w], scores [B,C]: logits of the tags)."""
        gates = ((self.p1, self.n1), (self.p2, self.n2), (self.p3, self.n3))
        return kernels.pyramid_gate(cam, gates)


class CamHead(nn.Module):
    """Two 1x1 convolutions without bias; channel 0 of the result is the background, channel c+1 class c."""

    hidden = 256

    def __init__(self, channels: int, classes: int, hidden: int = hidden) -> None:
        super().__init__()
        self.fc8 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc9 = nn.Conv2d(hidden, classes + 1, 1, bias=False)
        self.gates = PyramidGates(classes)
        nn.init.xavier_uniform_(self.fc8.weight)
        nn.init.xavier_uniform_(self.fc9.weight)

    def forward(self, features: Tensor) -> Tensor:
        """features [B,F,h,w] -> cam_seg [B,C+1,h,w]; the CAM is cam_seg[:, 1:]. `gates` scores it."""
        return self.fc9(F.relu(self.fc8(features), inplace=True))
