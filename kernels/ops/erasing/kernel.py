"""Foreground and erasing in two launches: extrema of the present maps, then their maximum at every pixel."""

import triton
import triton.language as tl

from kernels.ops.bilinear import between, first_sample, position
from kernels.ops.erasing import reference
from kernels.ops.relu import ALL, relu

EPSILON = tl.constexpr(reference.EPSILON)


@triton.jit
def extrema(
    cam, labels, chosen, lowest, highest, count,
    classes, h, w, height, width, scale_y, scale_x, stride_b, stride_c, stride_p,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Smallest and largest value of one class's upsampled map, if the image has the class.

    Between four source pixels the samples form a grid, and a bilinear function is smallest and largest at a corner of
    it: four samples a cell tell the extrema. They go to the slot of the class among the present ones of its image.
    """
    image, this = tl.program_id(0), tl.program_id(1)
    every = tl.arange(0, CLASSES)
    present = tl.load(labels + image * classes + every, mask=every < classes, other=0) != 0
    if this == 0:
        tl.store(count + image, tl.sum(present.to(tl.int32), axis=0))
    if tl.load(labels + image * classes + this) == 0:
        return
    maps = cam + image.to(tl.int64) * stride_b + this.to(tl.int64) * stride_c
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, h * w, BLOCK):
        cell = start + tl.arange(0, BLOCK)
        y, x = cell // w, cell % w
        top, bottom = first_sample(y, h, height), first_sample(y + 1, h, height) - 1
        left, right = first_sample(x, w, width), first_sample(x + 1, w, width) - 1
        inside = (cell < h * w) & (top <= bottom) & (left <= right)
        below, beside = tl.minimum(y + 1, h - 1), tl.minimum(x + 1, w - 1)
        a = relu(tl.load(maps + (y * w + x) * stride_p, mask=inside, other=0).to(tl.float32))
        b = relu(tl.load(maps + (y * w + beside) * stride_p, mask=inside, other=0).to(tl.float32))
        c = relu(tl.load(maps + (below * w + x) * stride_p, mask=inside, other=0).to(tl.float32))
        d = relu(tl.load(maps + (below * w + beside) * stride_p, mask=inside, other=0).to(tl.float32))
        for corner in tl.static_range(4):
            sample_y = top if corner < 2 else bottom
            sample_x = left if corner % 2 == 0 else right
            _, _, down = position(sample_y, scale_y, h)
            _, _, aside = position(sample_x, scale_x, w)
            value = between(a, b, c, d, down, aside)
            low = tl.minimum(low, tl.where(inside, value, float("inf")))
            high = tl.maximum(high, tl.where(inside, value, 0.0))
    slot = image * classes + tl.sum((present & (every < this)).to(tl.int32), axis=0)
    tl.store(chosen + slot, this)
    tl.store(lowest + slot, tl.min(low, axis=0))
    tl.store(highest + slot, tl.max(high, axis=0))


@triton.jit
def strongest(
    out, cam, images, chosen, lowest, highest, count, threshold,
    classes, h, w, height, width, scale_y, scale_x, stride_b, stride_c, stride_p, image_b, image_c, image_p,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The maximum over present classes of the stretched maps; with CHANNELS, the picture where that is lower.

    `out` has the strides of the pictures, or is [B, height * width] when there are none (CHANNELS = 0).
    """
    image = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    y0, y1, down = position(pixel // width, scale_y, h)
    x0, x1, aside = position(pixel % width, scale_x, w)
    a, b, c, d = (y0 * w + x0) * stride_p, (y0 * w + x1) * stride_p, (y1 * w + x0) * stride_p, (y1 * w + x1) * stride_p
    best = tl.zeros((BLOCK,), tl.float32)
    for slot in range(image * classes, image * classes + tl.load(count + image)):
        maps = cam + image.to(tl.int64) * stride_b + tl.load(chosen + slot).to(tl.int64) * stride_c
        value = between(
            relu(tl.load(maps + a, mask=inside, other=0).to(tl.float32)),
            relu(tl.load(maps + b, mask=inside, other=0).to(tl.float32)),
            relu(tl.load(maps + c, mask=inside, other=0).to(tl.float32)),
            relu(tl.load(maps + d, mask=inside, other=0).to(tl.float32)),
            down, aside,
        )  # fmt: skip
        low, high = tl.load(lowest + slot), tl.load(highest + slot)
        stretched = relu(value - low - EPSILON) / (high - low + EPSILON)
        best = tl.maximum(best, stretched, propagate_nan=ALL)
    if CHANNELS == 0:
        tl.store(out + image.to(tl.int64) * height * width + pixel, best, mask=inside)
    for channel in tl.static_range(CHANNELS):
        place = image.to(tl.int64) * image_b + channel * image_c + pixel.to(tl.int64) * image_p
        colour = tl.load(images + place, mask=inside, other=0)
        tl.store(out + place, tl.where(best < threshold, colour, 0), mask=inside)
