"""Bilinear upsampling inside a kernel: where a sample reads, and which samples read between the same pixels.

Half-pixel centres, as F.interpolate(align_corners=False): sample s reads at max((s + 0.5) * scale - 0.5, 0), where
scale = length / size for `length` source pixels and `size` samples. Cell i holds the samples whose position lies
between source pixels i and i + 1; the last one those from the last pixel on.
"""

import triton
import triton.language as tl


@triton.jit
def position(sample, scale, length):
    """(first source pixel, second one, weight of the second) of samples along one axis."""
    place = tl.maximum((sample + 0.5) * scale - 0.5, 0.0)
    first = tl.minimum(place.to(tl.int32), length - 1)
    return first, tl.minimum(first + 1, length - 1), place - first


@triton.jit
def first_past(pixel, length, size):
    """The first sample at or past a source pixel, by integers alone; 0 for pixel -1, `size` for pixel `length`."""
    doubled = size * (2 * pixel + 1) - length
    sample = tl.minimum((doubled + 2 * length - 1) // (2 * length), size)
    return tl.where(pixel < 0, 0, tl.where(pixel >= length, size, sample))


@triton.jit
def first_sample(cell, length, size):
    """The first sample of a cell; that of cell `length` is `size`. Cells may be empty."""
    return tl.where(cell <= 0, 0, first_past(cell, length, size))


@triton.jit
def between(top_left, top_right, bottom_left, bottom_right, down, right):
    """The value at weights `down` and `right` between four corners, in the order of operations of F.interpolate."""
    top = (1 - right) * top_left + right * top_right
    bottom = (1 - right) * bottom_left + right * bottom_right
    return (1 - down) * top + down * bottom
