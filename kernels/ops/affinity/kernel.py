"""Pixel-adaptive refinement: the weights of every pixel's neighbours, and one iteration over all masks of a picture.

Neighbours are taken one dilation at a time, 8 of them unrolled: their rows and columns are clamped once, which repeats
the edge, and their reads do not wait for one another. Pixels of the last block beyond the last one count as that one
until they are stored, so every read lies inside its picture.
"""

import triton
import triton.language as tl

from kernels.ops.affinity import reference

EPSILON = tl.constexpr(reference.EPSILON)
SHARPNESS = tl.constexpr(reference.SHARPNESS)


@triton.jit
def affinity(
    weights, images, dilations, position, count, height, width, stride_b, stride_c, stride_p,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """Colour and position weights fp32 [B,K,H*W]; count: number of dilations; position [K].

    Four passes over the neighbours, each reading their colours again: what it reads lies in the first cache, and only
    finished weights are written. The deviation takes two of them (mean, then squares): one would cancel in flat
    regions, where it is divided by.
    """
    image = tl.program_id(1)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    own = tl.minimum(pixel, height * width - 1)
    y, x = own // width, own % width
    red = images + image.to(tl.int64) * stride_b
    green, blue = red + stride_c, red + 2 * stride_c
    r, g, b = _colours(red, green, blue, own * stride_p)
    mean_r, mean_g, mean_b = _mean(
        red, green, blue, r, g, b, y, x, dilations, count, height, width, stride_p, PIXELS
    )  # fmt: skip
    scale_r, scale_g, scale_b = _scale(
        red, green, blue, mean_r, mean_g, mean_b, y, x, dilations, count, height, width, stride_p, PIXELS
    )  # fmt: skip
    peak, total = _mass(
        red, green, blue, r, g, b, scale_r, scale_g, scale_b, y, x, dilations, count, height, width, stride_p, PIXELS
    )  # fmt: skip
    share = 1 / total
    weights += image.to(tl.int64) * (8 * count) * height * width
    for i in range(count):
        up, low, left, right = _around(y, x, tl.load(dilations + i), height, width)
        for n in tl.static_range(8):
            at_r, at_g, at_b = _colours(red, green, blue, _place(n, up, y, low, left, x, right, width) * stride_p)
            likeness = _likeness((at_r - r) * scale_r, (at_g - g) * scale_g, (at_b - b) * scale_b)
            weight = tl.exp(likeness - peak) * share + tl.load(position + 8 * i + n)
            tl.store(weights + pixel, weight, mask=inside)
            weights += height * width


@triton.jit
def _mean(red, green, blue, r, g, b, y, x, dilations, count, height, width, stride_p, PIXELS: tl.constexpr):
    """The neighbours' mean colour, of differences to the own one: none of it is lost in a flat region."""
    sum_r = tl.zeros((PIXELS,), tl.float32)
    sum_g = tl.zeros((PIXELS,), tl.float32)
    sum_b = tl.zeros((PIXELS,), tl.float32)
    for i in range(count):
        up, low, left, right = _around(y, x, tl.load(dilations + i), height, width)
        for n in tl.static_range(8):
            at_r, at_g, at_b = _colours(red, green, blue, _place(n, up, y, low, left, x, right, width) * stride_p)
            sum_r += at_r - r
            sum_g += at_g - g
            sum_b += at_b - b
    return r + sum_r / (8 * count), g + sum_g / (8 * count), b + sum_b / (8 * count)


@triton.jit
def _scale(
    red, green, blue, mean_r, mean_g, mean_b, y, x, dilations, count, height, width, stride_p, PIXELS: tl.constexpr
):  # fmt: skip
    """What makes a colour difference a number of sharpened deviations, for each colour."""
    square_r = tl.zeros((PIXELS,), tl.float32)
    square_g = tl.zeros((PIXELS,), tl.float32)
    square_b = tl.zeros((PIXELS,), tl.float32)
    for i in range(count):
        up, low, left, right = _around(y, x, tl.load(dilations + i), height, width)
        for n in tl.static_range(8):
            at_r, at_g, at_b = _colours(red, green, blue, _place(n, up, y, low, left, x, right, width) * stride_p)
            square_r += (at_r - mean_r) * (at_r - mean_r)
            square_g += (at_g - mean_g) * (at_g - mean_g)
            square_b += (at_b - mean_b) * (at_b - mean_b)
    scale_r = 1 / ((tl.sqrt(square_r / (8 * count - 1)) + EPSILON) * SHARPNESS)
    scale_g = 1 / ((tl.sqrt(square_g / (8 * count - 1)) + EPSILON) * SHARPNESS)
    scale_b = 1 / ((tl.sqrt(square_b / (8 * count - 1)) + EPSILON) * SHARPNESS)
    return scale_r, scale_g, scale_b


@triton.jit
def _mass(
    red, green, blue, r, g, b, scale_r, scale_g, scale_b, y, x, dilations, count, height, width, stride_p,
    PIXELS: tl.constexpr,
):  # fmt: skip
    """(largest exponent, sum of exponentials below it) of all neighbours, in one pass."""
    peak = tl.full((PIXELS,), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    for i in range(count):
        up, low, left, right = _around(y, x, tl.load(dilations + i), height, width)
        for n in tl.static_range(8):
            at_r, at_g, at_b = _colours(red, green, blue, _place(n, up, y, low, left, x, right, width) * stride_p)
            likeness = _likeness((at_r - r) * scale_r, (at_g - g) * scale_g, (at_b - b) * scale_b)
            lesser = tl.exp(tl.minimum(likeness, peak) - tl.maximum(likeness, peak))
            total = tl.where(likeness > peak, total * lesser + 1, total + lesser)
            peak = tl.maximum(likeness, peak)
    return peak, total


@triton.jit
def propagate(
    out, masks, weights, dilations, count, height, width,
    QUADS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One iteration: out, masks fp32 [B,Q,H*W,4]; a program takes QUADS of Q.

    Four masks of a pixel lie side by side: one read of 16 bytes takes them, and reads of a warp are contiguous. A
    weight is read once for all of them. PIXELS must be 32 num_warps: a thread then has one pixel, and no weight crosses
    threads.
    """
    group, image = tl.program_id(1), tl.program_id(2)
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    own = tl.minimum(pixel, height * width - 1)
    y, x = own // width, own % width
    quads = (image.to(tl.int64) * tl.num_programs(1) + group) * QUADS + tl.arange(0, QUADS)
    lanes = (quads * height * width * 4)[:, None, None] + tl.arange(0, 4)[None, None, :]
    weights += image.to(tl.int64) * (8 * count) * height * width
    total = tl.zeros((QUADS, PIXELS, 4), tl.float32)
    for i in range(count):
        up, low, left, right = _around(y, x, tl.load(dilations + i), height, width)
        for n in tl.static_range(8):
            weight = tl.load(weights + pixel, mask=inside, other=0)
            place = _place(n, up, y, low, left, x, right, width)
            total += weight[None, :, None] * tl.load(masks + lanes + (place * 4)[None, :, None])
            weights += height * width
    tl.store(out + lanes + (pixel * 4)[None, :, None], total, mask=inside[None, :, None])


@triton.jit
def _around(y, x, dilation, height, width):
    """The rows and columns at a distance, with the edge repeated."""
    up, low = tl.maximum(y - dilation, 0), tl.minimum(y + dilation, height - 1)
    left, right = tl.maximum(x - dilation, 0), tl.minimum(x + dilation, width - 1)
    return up, low, left, right


@triton.jit
def _place(n: tl.constexpr, up, y, low, left, x, right, width):
    """Where neighbour n of 8 lies in its picture; row by row, the centre left out."""
    row = up if n < 3 else (y if n < 5 else low)
    column = left if n == 0 or n == 3 or n == 5 else (x if n == 1 or n == 6 else right)
    return row * width + column


@triton.jit
def _colours(red, green, blue, place):
    r, g, b = tl.load(red + place), tl.load(green + place), tl.load(blue + place)
    return r.to(tl.float32), g.to(tl.float32), b.to(tl.float32)


@triton.jit
def _likeness(r, g, b):
    """The exponent of a neighbour's weight, from its colour differences in units of the deviations."""
    return -(r * r + g * g + b * b) * (1 / 3)
