import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ktse_dist.models.depthwise import frozen_depthwise


def gradients(convolve, x, weight, bias, geometry, cotangent=None):
    x = x.detach().requires_grad_()
    y = convolve(x, weight, bias, *geometry)
    cotangent = torch.cos(torch.arange(y.numel(), dtype=y.dtype).view(y.shape)) if cotangent is None else cotangent
    return y.detach(), torch.autograd.grad(y, x, cotangent)[0]


def plain(x, weight, bias, stride, padding, dilation):
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups=weight.shape[0])


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(9, 20), width=st.integers(9, 20), kernel=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]), dilation=st.sampled_from([1, 2, 4]), less=st.integers(0, 1),
)  # fmt: skip
def test_values_and_gradient_equal_the_plain_convolution(height, width, kernel, stride, dilation, less):
    x = torch.randn(2, 6, height, width).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(6, 1, kernel, kernel), torch.randn(6)
    geometry = (stride, dilation * (kernel - 1) // 2 + 1 - less, dilation)
    for ours, theirs in zip(
        gradients(frozen_depthwise, x, weight, bias, geometry), gradients(plain, x, weight, bias, geometry), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gradient_agrees_with_finite_differences():
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64, requires_grad=True)
    weight, bias = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.randn(2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: frozen_depthwise(x, weight, bias, 1, 2, 2), (x,))


@pytest.mark.parametrize("stride", [1, 2])
def test_bf16_autocast_gives_the_plain_convolution_in_bf16(stride):
    x = torch.randn(2, 8, 12, 12).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(8, 1, 3, 3), torch.randn(8)
    with torch.autocast("cpu", torch.bfloat16):
        values, gradient = gradients(frozen_depthwise, x, weight, bias, (stride, 1, 1))
    exact_values, exact_gradient = gradients(
        plain,
        x,
        weight,
        bias,
        (stride, 1, 1),
        torch.cos(torch.arange(values.numel(), dtype=torch.bfloat16).view(values.shape)).float(),
    )
    assert values.dtype == torch.bfloat16 and gradient.dtype == torch.float32
    torch.testing.assert_close(values.float(), exact_values, rtol=2e-2, atol=5e-2)
    torch.testing.assert_close(gradient, exact_gradient, rtol=2e-2, atol=5e-2)


def test_kernels_get_no_gradient():
    weight = torch.randn(3, 1, 3, 3, requires_grad=True)
    frozen_depthwise(torch.randn(1, 3, 8, 8, requires_grad=True), weight, torch.zeros(3), 1, 1, 1).sum().backward()
    assert weight.grad is None
