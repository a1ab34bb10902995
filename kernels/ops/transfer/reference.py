"""Transfer and local alignment as published (docs/method.md 1.5.7 and 1.5.4)."""

import torch
from torch import Tensor


def transfer_loss(cam_a: Tensor, cam_b: Tensor, cam_mix: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Plain version of `kernels.transfer_loss`."""
    lost = torch.cat([cam_a, cam_b], dim=2).float() - cam_mix.float() - margin
    return (lost.relu() * labels[:, :, None, None].float()).mean()


def align_loss(cam: Tensor, cam_erased: Tensor, keep: Tensor, labels: Tensor, margin: float = 0.05) -> Tensor:
    """Plain version of `kernels.align_loss`."""
    gained = (cam_erased.float() - cam.float()) * keep.float() - margin
    return (gained.relu() * labels[:, :, None, None].float()).mean()
