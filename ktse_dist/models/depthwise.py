"""Depthwise convolution whose kernels are frozen: a fast data gradient for CPUs.

oneDNN runs depthwise *forward* convolutions 5 to 20 times faster than their backward ones (dilated or bf16 ones most
of all). With frozen kernels only the gradient of the input is wanted, and for stride 1 that is itself a forward
convolution, with the kernels flipped. Stride 2 goes through the ordinary gradient, in fp32 (bf16 has no fast kernel).
Forward 5x5 kernels at dilation 4 (output stride 8) are slow too; as dilation 1 on every fourth pixel they are not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def frozen_depthwise(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """Depthwise convolution of x [B,C,H,W] with weight [C,1,k,k], bias [C]; gradients reach `x` only.

    Follows autocast like `F.conv2d`. The fast gradient serves CPU tensors; other devices use the ordinary one.
    """
    weight, bias = weight.detach(), bias.detach()
    if x.device.type != "cpu" or not (torch.is_grad_enabled() and x.requires_grad):
        return _convolve(x, weight, bias, stride, padding, dilation)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return _FrozenDepthwise.apply(x.to(dtype), weight.to(dtype), bias.to(dtype), stride, padding, dilation)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, dilation: int) -> Tensor:
    kernel = weight.shape[-1]
    spread = dilation > 2 and kernel > 3 and stride == 1 and padding == dilation * (kernel - 1) // 2
    if spread and x.device.type == "cpu":
        return _convolve_every_nth(x, weight, bias, dilation)
    return F.conv2d(x, weight, bias, stride, padding, dilation, weight.shape[0])


def _convolve_every_nth(x: Tensor, weight: Tensor, bias: Tensor | None, n: int) -> Tensor:
    """Dilation n as n*n interleaved pictures without dilation (space to batch); size-keeping padding, stride 1."""
    batch, channels, height, width = x.shape
    rows, columns = -(-height // n), -(-width // n)
    tiles = F.pad(x, (0, columns * n - width, 0, rows * n - height)).permute(0, 2, 3, 1)
    tiles = tiles.reshape(batch, rows, n, columns, n, channels).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(batch * n * n, rows, columns, channels).permute(0, 3, 1, 2)
    y = F.conv2d(tiles, weight, bias, padding=weight.shape[-1] // 2, groups=channels)
    y = y.permute(0, 2, 3, 1).reshape(batch, n, n, rows, columns, channels).permute(0, 3, 1, 4, 2, 5)
    y = y.reshape(batch, rows * n, columns * n, channels)[:, :height, :width].permute(0, 3, 1, 2)
    return y.clone(memory_format=torch.channels_last)  # no view: the caller may write into it


class _FrozenDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry, ctx.input_shape = (stride, padding, dilation), x.shape
        return _convolve(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        if stride > 1:
            return _strided_gradient(grad, weight, ctx.input_shape, *ctx.geometry), None, None, None, None, None
        padding = dilation * (weight.shape[-1] - 1) - padding
        return _convolve(grad, weight.flip(2, 3), None, 1, padding, dilation), None, None, None, None, None


def _strided_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int, dilation: int):
    """The ordinary data gradient, in fp32. Only the shape of the convolution's input matters, so it may be empty."""
    shaped = torch.empty(shape, device=grad.device, memory_format=torch.channels_last)
    result = torch.ops.aten.convolution_backward(
        grad.float(), shaped, weight.float(), None, [stride] * 2, [padding] * 2, [dilation] * 2,
        False, [0, 0], weight.shape[0], [True, False, False],
    )  # fmt: skip
    return result[0].to(grad.dtype)
