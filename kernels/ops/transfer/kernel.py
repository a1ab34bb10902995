"""Transfer and alignment as one family: a mean of hinges relu((x - y) * keep - margin) over the tagged maps.

Map number = image * classes + class. With HALVES the map x is two pictures' maps, one above the other; with KEEP a
weight in [0,1] stands at each pixel. Maps are [B,C,pixels] with three strides. Absent maps are never read.
"""

import triton
import triton.language as tl

from kernels.ops.relu import relu


@triton.jit
def _excess(
    upper, lower, other, keep, pixel, pixels, image, this, margin,
    upper_b, upper_c, upper_p, lower_b, lower_c, lower_p, other_b, other_c, other_p, keep_b, keep_p,
    HALVES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """((x - y) * keep - margin, keep) at `pixel`; pixels beyond the map give -margin."""
    inside = pixel < pixels
    half = pixels // 2 if HALVES else pixels
    x = tl.load(
        upper + image * upper_b + this * upper_c + pixel.to(tl.int64) * upper_p, mask=inside & (pixel < half), other=0
    ).to(tl.float32)
    if HALVES:
        place = lower + image * lower_b + this * lower_c + (pixel - half).to(tl.int64) * lower_p
        x += tl.load(place, mask=inside & (pixel >= half), other=0).to(tl.float32)
    y = tl.load(other + image * other_b + this * other_c + pixel.to(tl.int64) * other_p, mask=inside, other=0)
    kept = tl.full(pixel.shape, 1.0, tl.float32)
    if KEEP:
        kept = tl.load(keep + image * keep_b + pixel.to(tl.int64) * keep_p, mask=inside, other=0).to(tl.float32)
    return (x - y.to(tl.float32)) * kept - margin, kept


@triton.jit
def hinge_value(
    partial, upper, lower, other, keep, labels, margin, elements, classes, pixels,
    upper_b, upper_c, upper_p, lower_b, lower_c, lower_p, other_b, other_c, other_p, keep_b, keep_p,
    HALVES: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """What one map adds to the mean: partial [maps]."""
    row = tl.program_id(0)
    label = tl.load(labels + row).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if label != 0:
        image, this = (row // classes).to(tl.int64), (row % classes).to(tl.int64)
        for start in range(0, pixels, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            excess, _ = _excess(
                upper, lower, other, keep, pixel, pixels, image, this, margin,
                upper_b, upper_c, upper_p, lower_b, lower_c, lower_p, other_b, other_c, other_p, keep_b, keep_p,
                HALVES, KEEP,
            )  # fmt: skip
            total += tl.where(pixel < pixels, relu(excess), 0)
    tl.store(partial + row, tl.sum(total, axis=0) * label / elements)


@triton.jit
def hinge_slope(
    grad_upper, grad_lower, grad_other, grad_loss, upper, lower, other, keep, labels, margin, elements, classes, pixels,
    upper_b, upper_c, upper_p, lower_b, lower_c, lower_p, other_b, other_c, other_p, keep_b, keep_p,
    HALVES: tl.constexpr, KEEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Every input's gradient from one slope, a block of a map at a time; a gradient that is None is not wanted."""
    row, block = tl.program_id(0), tl.program_id(1)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < pixels
    label = tl.load(labels + row).to(tl.float32)
    slope = tl.zeros((BLOCK,), tl.float32)
    if label != 0:
        excess, kept = _excess(
            upper, lower, other, keep, pixel, pixels, (row // classes).to(tl.int64), (row % classes).to(tl.int64),
            margin, upper_b, upper_c, upper_p, lower_b, lower_c, lower_p, other_b, other_c, other_p, keep_b, keep_p,
            HALVES, KEEP,
        )  # fmt: skip
        slope = tl.where(excess > 0, kept * (label / elements) * tl.load(grad_loss), 0.0)
    half = pixels // 2 if HALVES else pixels
    start = row.to(tl.int64) * half
    if grad_upper is not None:
        tl.store(grad_upper + start + pixel, slope.to(grad_upper.dtype.element_ty), mask=inside & (pixel < half))
    if grad_lower is not None:
        place = grad_lower + start + pixel - half
        tl.store(place, slope.to(grad_lower.dtype.element_ty), mask=inside & (pixel >= half))
    if grad_other is not None:
        place = grad_other + row.to(tl.int64) * pixels + pixel
        tl.store(place, (-slope).to(grad_other.dtype.element_ty), mask=inside)
