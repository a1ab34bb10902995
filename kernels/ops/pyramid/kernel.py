"""The gates of the global pyramid head: four steps up the pyramid, four steps down; levels.py pools and spreads.

A 3x3 convolution is a product over the classes at each pixel (ROWS: 2 gates x 9 taps of one sign), then a sum over
neighbours. So a program holds some pixels for all classes, reads each value once and never a neighbour's; only the rows
of those products pass between pixels, from one launch to the next.
"""

import triton
import triton.language as tl

from kernels.ops.pyramid.levels import CELLS, sampled
from kernels.ops.relu import relu

ROWS = tl.constexpr(2 * 9)
PADDED = tl.constexpr(32)  # rows, as a product takes them


@triton.jit
def reached(pooled, before, channel, pixel, y, x, h, w, inside, STEP: tl.constexpr):
    """The map after STEP gates: level 2 before the first one, then what the step before stored."""
    if STEP == 0:
        return sampled(pooled, channel, y, x, h, w, inside, 2)
    else:
        return tl.load(before + channel * (h * w) + pixel, mask=inside, other=0)


@triton.jit
def taps(weight, row, column, known, stride_o, stride_c, stride_t):
    """A gate's weight [2,2C,9] at (row // 9, column, row % 9)."""
    place = row // 9 * stride_o + column * stride_c + row % 9 * stride_t
    return tl.load(weight + place, mask=known & (row < ROWS), other=0).to(tl.float32)


@triton.jit
def opened(products, gates, pixel, y, x, h, w, inside):
    """The four gates [4,pixels], kept in `gates`: the sigmoid of what neighbours' products add up to, 0 outside."""
    which, tap = tl.arange(0, 4)[:, None, None], tl.arange(0, 16)[None, :, None]
    below, beside = y[None, None, :] + tap // 3 - 1, x[None, None, :] + tap % 3 - 1
    there = inside[None, None, :] & (tap < 9) & (below >= 0) & (below < h) & (beside >= 0) & (beside < w)
    logits = tl.load(products + ((which * 9 + tap) * h + below) * w + beside, mask=there, other=0)
    value = tl.sigmoid(tl.sum(logits, axis=1))
    tl.store(gates + tl.arange(0, 4)[:, None] * h * w + pixel[None, :], value, mask=inside[None, :])
    return value


@triton.jit
def one_of(gates, which: tl.constexpr):
    """A gate of [4,pixels] as a row [1,pixels]."""
    return tl.sum(tl.where(tl.arange(0, 4)[:, None] == which, gates, 0.0), axis=0)[None, :]


@triton.jit
def returned(slopes, row, y, x, h, w, inside):
    """Slope of the logit to which a pixel contributes by the tap of a row: that of a neighbour, 0 outside the map."""
    above, before = y - (row % 9 // 3 - 1), x - (row % 3 - 1)
    there = inside & (row < ROWS) & (above >= 0) & (above < h) & (before >= 0) & (before < w)
    return tl.load(slopes + (row // 9 * h + above) * w + before, mask=there, other=0)


@triton.jit
def of_gpp(
    grad_gpp, grad_scores, cam, value, image, channel, pixel, here, classes, size, stride_b, stride_c, stride_p,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the map after the last gate, `value`: from outside, and from its share in the scores."""
    slope = tl.zeros((CLASSES, BLOCK), tl.float32)
    if grad_gpp is not None:
        slope += tl.load(grad_gpp + image * classes * size + (channel * size + pixel), mask=here, other=0)
    if grad_scores is not None:
        seen = cam + image * stride_b + channel.to(tl.int64) * stride_c + pixel * stride_p
        seen = tl.load(seen, mask=here, other=0).to(tl.float32)
        share = tl.load(grad_scores + image * classes + channel, mask=channel < classes, other=0) / size
        agreed = tl.where(value > 0, relu(seen), tl.where(value < 0, relu(-seen), 0.0))
        slope += share * agreed
    return slope


@triton.jit
def gate_forward(
    after, gates, products, partial, pooled, before, arrived, cam, positive, negative,
    classes, h, w, stride_b, stride_c, stride_p, p_o, p_c, p_t, n_o, n_c, n_t,
    STEP: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gate number STEP (none at 0), then the products for the next one; after the last gate the scores.

    Reads the map `before` and the products `arrived` of the step before; writes the map `after` this gate, its four
    `gates` and the `products` [36,h,w] of the next one, or for STEP = 3 `partial` sums of the scores.
    """
    block, image, size = tl.program_id(0), tl.program_id(1).to(tl.int64), h * w
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    y, x, inside = pixel // w, pixel % w, pixel < size
    pooled += image * classes * CELLS
    if STEP > 0:
        arrived += image * (2 * ROWS) * size
        gates += image * 4 * size
        four = opened(arrived, gates, pixel, y, x, h, w, inside)
        allow_coarse, allow_fine = one_of(four, 0), one_of(four, 1)
        deny_coarse, deny_fine = one_of(four, 2), one_of(four, 3)
        after += image * classes * size
    if STEP > 1:
        before += image * classes * size
    row = tl.arange(0, PADDED)[:, None]
    speaking, denying = tl.zeros((PADDED, BLOCK), tl.float32), tl.zeros((PADDED, BLOCK), tl.float32)
    y, x = y[None, :], x[None, :]
    for start in range(0, classes, CLASSES):
        channel = start + tl.arange(0, CLASSES)
        known, here = channel[None, :] < classes, (channel[:, None] < classes) & inside[None, :]
        place = channel[:, None] * size + pixel[None, :]
        if STEP == 0:
            value = sampled(pooled, channel[:, None], y, x, h, w, here, 2)
        else:
            coarse = reached(pooled, before, channel[:, None], pixel[None, :], y, x, h, w, here, STEP - 1)
            fine = sampled(pooled, channel[:, None], y, x, h, w, here, 2 << STEP)
            allowed = relu(coarse) * allow_coarse + relu(fine) * allow_fine
            denied = relu(-coarse) * deny_coarse + relu(-fine) * deny_fine
            value = allowed / 2 - denied / 2
            tl.store(after + place, value, mask=here)
        if STEP < 3:
            finer = sampled(pooled, channel[:, None], y, x, h, w, here, 4 << STEP)
            weight = taps(positive, row, channel[None, :], known, p_o, p_c, p_t)
            speaking = tl.dot(weight, relu(value), speaking, input_precision="ieee")
            weight = taps(positive, row, classes + channel[None, :], known, p_o, p_c, p_t)
            speaking = tl.dot(weight, relu(finer), speaking, input_precision="ieee")
            weight = taps(negative, row, channel[None, :], known, n_o, n_c, n_t)
            denying = tl.dot(weight, relu(-value), denying, input_precision="ieee")
            weight = taps(negative, row, classes + channel[None, :], known, n_o, n_c, n_t)
            denying = tl.dot(weight, relu(-finer), denying, input_precision="ieee")
        else:
            maps = cam + image * stride_b + channel.to(tl.int64)[:, None] * stride_c
            seen = tl.load(maps + pixel[None, :] * stride_p, mask=here, other=0).to(tl.float32)
            agreed = relu(seen) * relu(value) - relu(-seen) * relu(-value)
            score = partial + (block * tl.num_programs(1) + image) * classes + channel
            tl.store(score, tl.sum(agreed, axis=1) / size, mask=channel < classes)
    if STEP < 3:
        out = products + image * (2 * ROWS) * size + row * size + pixel[None, :]
        tl.store(out, speaking, mask=(row < ROWS) & inside[None, :])
        tl.store(out + ROWS * size, denying, mask=(row < ROWS) & inside[None, :])


@triton.jit
def gate_backward(
    slopes, gates, running, finest, arrived, opening, pooled, after, before, cam, grad_gpp, grad_scores,
    positive, negative,
    classes, h, w, stride_b, stride_c, stride_p, p_o, p_c, p_t, n_o, n_c, n_t,
    STEP: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the map `after` STEP gates, then the slopes of the logits of gate STEP (of none at 0).

    `running` holds the gradient of the map above and takes that of this map in its place; `finest` takes the gradient
    of the level that joins at gate STEP + 1, whose slopes have `arrived` and whose gates are `opening`. At the top
    (STEP = 3) the gradient is that of gpp itself. `gates` and `slopes` [4,h,w] belong to gate STEP.
    """
    image, size = tl.program_id(1).to(tl.int64), h * w
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y, x, inside = (pixel // w)[None, :], (pixel % w)[None, :], (pixel < size)[None, :]
    pixel = pixel[None, :]
    pooled += image * classes * CELLS
    running += image * classes * size
    if STEP > 0:
        after += image * classes * size
        aligned = tl.zeros((CLASSES, BLOCK), tl.float32)
        a0, a1, a2, a3 = aligned, aligned, aligned, aligned
    if STEP > 1:
        before += image * classes * size
    if STEP < 3:
        finest += image * classes * size
        arrived += image * 4 * size
        opening += image * 4 * size + pixel
        row = tl.arange(0, PADDED)[:, None]
        speaking = returned(arrived, row, y, x, h, w, inside)
        denying = returned(arrived + 2 * size, row, y, x, h, w, inside)
        allow_coarse = tl.load(opening, mask=inside, other=0) / 2
        allow_fine = tl.load(opening + size, mask=inside, other=0) / 2
        deny_coarse = tl.load(opening + 2 * size, mask=inside, other=0) / 2
        deny_fine = tl.load(opening + 3 * size, mask=inside, other=0) / 2
    row = tl.arange(0, PADDED)[None, :]
    for start in range(0, classes, CLASSES):
        channel = start + tl.arange(0, CLASSES)[:, None]
        known, here, place = channel < classes, (channel < classes) & inside, channel * size + pixel
        value = reached(pooled, after, channel, pixel, y, x, h, w, here, STEP)
        if STEP == 3:
            slope = of_gpp(
                grad_gpp, grad_scores, cam, value, image, channel, pixel, here, classes, size,
                stride_b, stride_c, stride_p, CLASSES, BLOCK,
            )  # fmt: skip
        else:
            above = tl.load(running + place, mask=here, other=0)
            finer = sampled(pooled, channel, y, x, h, w, here, 4 << STEP)
            weight = taps(positive, row, channel, known, p_o, p_c, p_t)
            allowed = tl.dot(weight, speaking, above * allow_coarse, input_precision="ieee")
            weight = taps(negative, row, channel, known, n_o, n_c, n_t)
            denied = tl.dot(weight, denying, -above * deny_coarse, input_precision="ieee")
            slope = tl.where(value > 0, allowed, tl.where(value < 0, -denied, 0.0))
            weight = taps(positive, row, classes + channel, known, p_o, p_c, p_t)
            allowed = tl.dot(weight, speaking, above * allow_fine, input_precision="ieee")
            weight = taps(negative, row, classes + channel, known, n_o, n_c, n_t)
            denied = tl.dot(weight, denying, -above * deny_fine, input_precision="ieee")
            finer = tl.where(finer > 0, allowed, tl.where(finer < 0, -denied, 0.0))
            tl.store(finest + place, finer, mask=here)
        tl.store(running + place, slope, mask=here)
        if STEP > 0:
            coarse = reached(pooled, before, channel, pixel, y, x, h, w, here, STEP - 1)
            fine = sampled(pooled, channel, y, x, h, w, here, 2 << STEP)
            a0 += slope * relu(coarse)
            a1 += slope * relu(fine)
            a2 += slope * tl.minimum(coarse, 0)
            a3 += slope * tl.minimum(fine, 0)
    if STEP > 0:
        out, gates = slopes + image * 4 * size + pixel, gates + image * 4 * size + pixel
        for which in tl.static_range(4):
            aligned = a0 if which == 0 else (a1 if which == 1 else (a2 if which == 2 else a3))
            gate = tl.load(gates + which * size, mask=inside, other=0)
            slope = tl.sum(aligned, axis=0)[None, :] * gate * (1 - gate) / 2
            tl.store(out + which * size, slope, mask=inside)


@triton.jit
def weight_backward(
    partial, slopes, pooled, maps, batch, classes, h, w,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """What SPAN pixels of one image add to the gradients of all gates' weights: `partial` [part,3,sign,2,2C,9]."""
    part, step, size = tl.program_id(0), tl.program_id(2), h * w
    parts = tl.cdiv(size, SPAN)
    image, first = (part // parts).to(tl.int64), part % parts * SPAN
    channel, row = tl.program_id(1) * CLASSES + tl.arange(0, CLASSES)[:, None], tl.arange(0, PADDED)[None, :]
    slopes += (step * batch + image) * 4 * size
    pooled += image * classes * CELLS
    maps += ((step - 1) * batch + image) * classes * size
    zero = tl.zeros((CLASSES, PADDED), tl.float32)
    allow_coarse, allow_fine, deny_coarse, deny_fine = zero, zero, zero, zero
    for start in range(first, tl.minimum(first + SPAN, size), BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        y, x, inside = pixel // w, pixel % w, pixel < size
        speaking = returned(slopes, row, y[:, None], x[:, None], h, w, inside[:, None])
        denying = returned(slopes + 2 * size, row, y[:, None], x[:, None], h, w, inside[:, None])
        y, x, here = y[None, :], x[None, :], (channel < classes) & inside[None, :]
        if step == 0:
            coarse = sampled(pooled, channel, y, x, h, w, here, 2)
        else:
            coarse = tl.load(maps + channel * size + pixel[None, :], mask=here, other=0)
        fine = sampled(pooled, channel, y, x, h, w, here, 4 << step)
        allow_coarse = tl.dot(relu(coarse), speaking, allow_coarse, input_precision="ieee")
        allow_fine = tl.dot(relu(fine), speaking, allow_fine, input_precision="ieee")
        deny_coarse = tl.dot(relu(-coarse), denying, deny_coarse, input_precision="ieee")
        deny_fine = tl.dot(relu(-fine), denying, deny_fine, input_precision="ieee")
    known = (channel < classes) & (row < ROWS)
    out = partial + (part * 3 + step).to(tl.int64) * (4 * 2 * classes * 9)
    out += (row // 9 * 2 * classes + channel) * 9 + row % 9
    tl.store(out, allow_coarse, mask=known)
    tl.store(out + classes * 9, allow_fine, mask=known)
    tl.store(out + 4 * classes * 9, deny_coarse, mask=known)
    tl.store(out + 5 * classes * 9, deny_fine, mask=known)
