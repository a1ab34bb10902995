"""Batch normalisation that is never trained: fixed statistics, fixed affine part, everything a buffer."""

import torch
from torch import Tensor, nn


class FrozenBatchNorm(nn.Module):
    """Inference-mode batch norm in every mode (docs/method.md 1.2: all BN frozen), state-dict names of `nn.BatchNorm2d`
    less `num_batches_tracked`, which only training uses.

    weight and bias are buffers: no optimiser, gradient bucket or ZeRO partition ever sees them. One fused multiply-add,
    which keeps no copy of its input for the backward pass (`F.batch_norm` does).
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [B,C,H,W], fp32 or bf16 -> same shape and dtype."""
        scale, shift = scale_and_shift(self.weight, self.bias, self.running_mean, self.running_var, self.eps)
        return torch.addcmul(shift.to(x.dtype)[:, None, None], x, scale.to(x.dtype)[:, None, None])


def scale_and_shift(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Inference-mode batch norm as x * scale + shift; all [C]."""
    scale = weight * torch.rsqrt(var + eps)
    return scale, bias - mean * scale
