"""The levels of the global pyramid head: a CAM pooled to all of them, a level at a pixel, and the way back to the CAM.

Pooling and upsampling are products with small matrices along each axis. Bands are the rows, or columns, of all levels.
"""

import triton
import triton.language as tl

from kernels.ops.bilinear import between, position
from kernels.ops.relu import relu

CELLS = tl.constexpr(4 + 16 + 64 + 256)  # of all levels, one after the other
BANDS = tl.constexpr(2 + 4 + 8 + 16)
PADDED = tl.constexpr(32)  # bands, as a product takes them


@triton.jit
def pool(pooled, cam, classes, h, w, stride_b, stride_c, stride_p, BLOCK: tl.constexpr):
    """All levels of one map, averaging(rows) @ map @ averaging(columns): the blocks of equal level are the pyramid."""
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    maps = cam + image * stride_b + channel * stride_c
    band, place = tl.arange(0, PADDED), tl.arange(0, BLOCK)
    means = tl.zeros((PADDED, PADDED), tl.float32)
    for left in range(0, w, BLOCK):
        x = left + place
        half = tl.zeros((PADDED, BLOCK), tl.float32)
        for top in range(0, h, BLOCK):
            y = top + place
            inside = (y[:, None] < h) & (x[None, :] < w)
            tile = tl.load(maps + (y[:, None] * w + x[None, :]) * stride_p, mask=inside, other=0).to(tl.float32)
            half = tl.dot(averaging(band[:, None], y[None, :], h), tile, half, input_precision="ieee")
        means = tl.dot(half, averaging(band[None, :], x[:, None], w), means, input_precision="ieee")
    level = level_of(band)
    cell = band - (level - 2)
    slot = ((level * level - 4) // 3 + cell * level)[:, None] + cell[None, :]
    same = (level[:, None] == level[None, :]) & (band < BANDS)[:, None] & (band < BANDS)[None, :]
    tl.store(pooled + (image * classes + channel) * CELLS + slot, means, mask=same)


@triton.jit
def pool_backward(
    grad_cam, levels, cam, gpp, grad_scores, classes, h, w, level_stride, stride_b, stride_c, stride_p,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of one map of the CAM: from its levels [4,...,h,w] through both linear maps, and from its score.

    Bands of levels 2, 4 and 8 share one product, `low`; those of 16 have their own, `high`.
    """
    image, channel = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    plane, place = (image * classes + channel) * h * w, tl.arange(0, BLOCK)
    band = tl.arange(0, 16)
    low, high = tl.zeros((16, 16), tl.float32), tl.zeros((16, 16), tl.float32)
    for left in range(0, w, BLOCK):
        x = left + place
        for index in tl.static_range(4):
            bands = band if index < 3 else band + 14
            half = tl.zeros((16, BLOCK), tl.float32)
            for top in range(0, h, BLOCK):
                y = top + place
                inside = (y[:, None] < h) & (x[None, :] < w)
                tile = levels + index * level_stride + plane + y[:, None] * w + x[None, :]
                tile = tl.load(tile, mask=inside, other=0)
                half = tl.dot(spreading(bands[:, None], y[None, :], h, 2 << index), tile, half, input_precision="ieee")
            columns = spreading(bands[None, :], x[:, None], w, 2 << index)
            if index < 3:
                low = tl.dot(half, columns, low, input_precision="ieee")
            else:
                high = tl.dot(half, columns, high, input_precision="ieee")
    for top in range(0, h, BLOCK):
        y = top + place
        low_rows = tl.dot(averaging(band[None, :], y[:, None], h), low, input_precision="ieee")
        high_rows = tl.dot(averaging(band[None, :] + 14, y[:, None], h), high, input_precision="ieee")
        for left in range(0, w, BLOCK):
            x = left + place
            slope = tl.dot(low_rows, averaging(band[:, None], x[None, :], w), input_precision="ieee")
            slope = tl.dot(high_rows, averaging(band[:, None] + 14, x[None, :], w), slope, input_precision="ieee")
            inside, pixel = (y[:, None] < h) & (x[None, :] < w), y[:, None] * w + x[None, :]
            if grad_scores is not None:
                seen = tl.load(cam + image * stride_b + channel * stride_c + pixel * stride_p, mask=inside, other=0)
                value = tl.load(gpp + plane + pixel, mask=inside, other=0)
                agreed = tl.where(seen > 0, relu(value), tl.where(seen < 0, relu(-value), 0.0))
                slope += agreed * (tl.load(grad_scores + image * classes + channel) / (h * w))
            tl.store(grad_cam + plane + pixel, slope, mask=inside)


@triton.jit
def level_of(band):
    """Bands 0-1 belong to level 2, 2-5 to 4, 6-13 to 8, 14-29 to 16: a level's first band is level - 2."""
    return tl.where(band < 2, 2, tl.where(band < 6, 4, tl.where(band < 14, 8, 16)))


@triton.jit
def averaging(band, place, length):
    """Weight of a place along one axis in the mean of a band; bands overlap where the axis is short."""
    level = level_of(band)
    cell = band - (level - 2)
    start, end = cell * length // level, ((cell + 1) * length + level - 1) // level
    return tl.where((place >= start) & (place < end), 1.0 / (end - start), 0.0)


@triton.jit
def spreading(band, place, length, LEVEL: tl.constexpr):
    """Weight of a band at a place along one axis when LEVEL is brought to the CAM's size; 0 for other levels' bands."""
    first, second, share = position(place, LEVEL / length, LEVEL)
    cell = band - (LEVEL - 2)
    return tl.where(cell == first, 1 - share, 0.0) + tl.where(cell == second, share, 0.0)


@triton.jit
def sampled(pooled, channel, y, x, h, w, inside, LEVEL):
    """A level's value at pixels (y, x) of the CAM's grid."""
    top, bottom, down = position(y, LEVEL / h, LEVEL)
    left, right, aside = position(x, LEVEL / w, LEVEL)
    cells = pooled + channel * CELLS + (LEVEL * LEVEL - 4) // 3
    return between(
        tl.load(cells + top * LEVEL + left, mask=inside, other=0),
        tl.load(cells + top * LEVEL + right, mask=inside, other=0),
        tl.load(cells + bottom * LEVEL + left, mask=inside, other=0),
        tl.load(cells + bottom * LEVEL + right, mask=inside, other=0),
        down, aside,
    )  # fmt: skip
