"""Depthwise convolution whose kernels are frozen: a fast data gradient for CPUs.

oneDNN runs depthwise *forward* convolutions 5 to 20 times faster than their backward ones (dilated or bf16 ones most
of all). With frozen kernels only the gradient of the input is wanted, and for stride 1 that is itself a forward
convolution, with the kernels flipped. Stride 2 goes through the ordinary gradient, in fp32 (bf16 has no fast kernel).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def frozen_depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """Depthwise convolution of x [B,C,H,W] with weight [C,1,k,k], bias [C]; gradients reach `x` only.

    Follows autocast like `F.conv2d`. The fast gradient serves CPU tensors; other devices use the ordinary one.
    """
    weight, bias, groups = weight.detach(), bias.detach(), weight.shape[0]
    if x.device.type != "cpu" or not (torch.is_grad_enabled() and x.requires_grad):
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return _FrozenDepthwise.apply(x.to(dtype), weight.to(dtype), bias.to(dtype), stride, padding, dilation)


class _FrozenDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.input_shape = (stride, padding, dilation), x.shape
        return F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        if stride > 1:
            return _strided_gradient(grad, weight, ctx.input_shape, *ctx.geometry), None, None, None, None, None
        padding = dilation * (weight.shape[-1] - 1) - padding
        flipped = F.conv2d(grad, weight.flip(2, 3), None, 1, padding, dilation, weight.shape[0])
        return flipped, None, None, None, None, None


def _strided_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int, dilation: int):
    """The ordinary data gradient, in fp32. Only the shape of the convolution's input matters, so it may be empty."""
    shaped = torch.empty(shape, device=grad.device, memory_format=torch.channels_last)
    result = torch.ops.aten.convolution_backward(
        grad.float(), shaped, weight.float(), None, [stride] * 2, [padding] * 2, [dilation] * 2,
        False, [0, 0], weight.shape[0], [True, False, False],
    )  # fmt: skip
    return result[0].to(grad.dtype)
