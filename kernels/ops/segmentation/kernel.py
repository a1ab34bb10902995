"""The segmentation loss by tiles: all samples of a tile lie between the same four source pixels, its corners.

Along an axis of n source pixels there are n + 1 cells; cell i lies between pixels i - 1 and i (the same pixel twice at
the edge) and is cut into subtiles where it has many samples. A program holds the scores of one tile in registers,
[classes, pixels], a pixel to a thread: sums over classes stay within a thread. The gradient then changes hands through
shared memory, a class to a thread, and sums over pixels stay within a thread, too. The classes come in two parts,
FIRST and REST, because sizes are powers of two (80 = 64 + 16); the background is apart from them.
"""

import triton
import triton.language as tl

from kernels.ops.bilinear import first_past
from kernels.ops.relu import relu
from kernels.ops.segmentation import reference

IGNORED = tl.constexpr(reference.IGNORED)
INTER_EPSILON = tl.constexpr(reference.INTER_EPSILON)
LOG2_E = tl.constexpr(1.4426950408889634)
ABSENT = tl.constexpr(-1e30)  # the score of a class that only fills up a part
NEITHER = tl.constexpr(2**30)  # no class


@triton.jit
def group_sizes(
    partials, target, labels, foreground, threshold, classes, pixels,
    WITH_TAGS: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Partial numbers [3, programs] of the pixels of each term."""
    image = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tags = _tags(labels, image, classes, WITH_TAGS, CLASSES)
    _, background, single, confident = _groups(
        target, foreground, image.to(tl.int64) * pixels + pixel, pixel < pixels, tags, threshold, WITH_TAGS
    )
    program, programs = image * tl.num_programs(0) + tl.program_id(0), tl.num_programs(0) * tl.num_programs(1)
    tl.store(partials + program, tl.sum(background.to(tl.int32), axis=0).to(tl.float32))
    tl.store(partials + programs + program, tl.sum(single.to(tl.int32), axis=0).to(tl.float32))
    tl.store(partials + 2 * programs + program, tl.sum(confident.to(tl.int32), axis=0).to(tl.float32))


@triton.jit
def tile_losses(
    partials, shares, logits, target, labels, foreground, counts, fg_weight, inter_weight, threshold,
    classes, h, w, height, width, scale_y, scale_x, subtiles_y, subtiles_x, stride_b, stride_c, stride_p,
    WITH_TAGS: tl.constexpr, WITH_GRAD: tl.constexpr, CLASSES: tl.constexpr,
    FIRST: tl.constexpr, REST: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Partial sums [3, programs] of the three terms; with WITH_GRAD also what the tile adds to the gradient at its
    four corners, `shares` [B, tiles, 4, classes + 1].
    """
    tile_x, tile_y, image = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    programs = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
    program = (image * tl.num_programs(1) + tile_y) * tl.num_programs(0) + tile_x
    if WITH_GRAD:
        shares += program.to(tl.int64) * 4 * (classes + 1)
    cell_y, cell_x = tile_y // subtiles_y, tile_x // subtiles_x
    start_y = first_past(cell_y - 1, h, height) + tile_y % subtiles_y * TILE_Y
    start_x = first_past(cell_x - 1, w, width) + tile_x % subtiles_x * TILE_X
    number = tl.arange(0, TILE_Y * TILE_X)
    y, x = start_y + number % TILE_Y, start_x + number // TILE_Y
    down, right = _weight(y, cell_y, h, scale_y), _weight(x, cell_x, w, scale_x)
    inside = _within(y, cell_y, h, height) & _within(x, cell_x, w, width)

    tags = _tags(labels, image, classes, WITH_TAGS, CLASSES)
    pixel = image.to(tl.int64) * height * width + y * width + x
    wanted, background, single, confident = _groups(target, foreground, pixel, inside, tags, threshold, WITH_TAGS)
    uses = tl.where(confident, 2, tl.where(background | single, 1, 0))  # 0: nothing, 1: entropy, 2: runner-up
    use = tl.max(uses, axis=0)
    if use == 0:
        _store_nothing(partials, shares, program, programs, classes, WITH_GRAD, FIRST)
        return

    above, below = tl.maximum(cell_y - 1, 0) * w, tl.minimum(cell_y, h - 1) * w
    before, after = tl.maximum(cell_x - 1, 0), tl.minimum(cell_x, w - 1)
    logits += image.to(tl.int64) * stride_b
    a, b = logits + (above + before) * stride_p, logits + (above + after) * stride_p
    c, d = logits + (below + before) * stride_p, logits + (below + after) * stride_p
    ground = _score(a, b, c, d, 0, down, right)
    chosen = _score(a, b, c, d, wanted.to(tl.int64) * stride_c, down, right)
    line, column = tl.arange(0, 2)[:, None], tl.arange(0, 2)[None, :]
    corners = logits + (tl.where(line == 0, above, below) + tl.where(column == 0, before, after)) * stride_p
    first = _scores(corners, down, right, 0, classes, stride_c, FIRST)
    best = tl.max(first, axis=0)
    rest = None
    if REST:
        rest = _scores(corners, down, right, FIRST, classes, stride_c, REST)
        best = tl.maximum(best, tl.max(rest, axis=0))

    gap = tl.zeros((TILE_Y * TILE_X,), tl.float32)
    runner = tl.full((TILE_Y * TILE_X,), NEITHER, tl.int32)
    if WITH_TAGS:  # noqa: SIM102 (a constant: what is inside is not compiled otherwise)
        if use == 2:
            second = _second(first, rest, best, REST)
            gap = tl.where(confident, second - best, 0.0)
            if WITH_GRAD:
                runner = tl.where(confident & (second > 0), _who(first, rest, second, FIRST, REST), NEITHER)

    peak = tl.maximum(best, ground)
    shift = peak * LOG2_E
    first = tl.exp2(first * LOG2_E - shift[None, :])
    of_ground = tl.exp2(ground * LOG2_E - shift)
    mass = of_ground + tl.sum(first, axis=0)
    if REST:
        rest = tl.exp2(rest * LOG2_E - shift[None, :])
        mass += tl.sum(rest, axis=0)
    entropy = tl.log(mass) + (peak - chosen)

    of_background, of_single, of_confident = _denominators(counts)
    weight = tl.where(background, 1 / of_background, tl.where(single, fg_weight / of_single, 0.0))
    part = weight / mass
    slope = of_ground * part - tl.where(background, weight, 0.0)
    row = tl.arange(0, 8)
    seven = _seven_sums(background, single, entropy, gap, slope, down, right)
    tl.store(partials + row * programs + program, seven, mask=row < 3)
    if WITH_GRAD:
        tl.store(shares + (row - 3) * (classes + 1), seven, mask=(row >= 3) & (row < 7))
        wanted = tl.where(background, NEITHER, wanted - 1)
        slope = inter_weight / of_confident
        down = _weight(start_y + tl.arange(0, TILE_Y), cell_y, h, scale_y)
        right = _weight(start_x + tl.arange(0, TILE_X), cell_x, w, scale_x)
        _share(
            shares, first, part, weight, wanted, slope, runner, down, right, 0, classes,
            WITH_TAGS, FIRST, TILE_Y, TILE_X,
        )  # fmt: skip
        if REST:
            _share(
                shares, rest, part, weight, wanted, slope, runner, down, right, FIRST, classes,
                WITH_TAGS, REST, TILE_Y, TILE_X,
            )  # fmt: skip


@triton.jit
def total_loss(
    total, terms, partials, counts, fg_weight, inter_weight, programs, BLOCK: tl.constexpr
):  # fmt: skip
    """The three terms and their weighted sum from the partial sums, in one program."""
    background = tl.zeros((BLOCK,), tl.float32)
    single = tl.zeros((BLOCK,), tl.float32)
    confident = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, programs, BLOCK):
        program = start + tl.arange(0, BLOCK)
        background += tl.load(partials + program, mask=program < programs, other=0)
        single += tl.load(partials + programs + program, mask=program < programs, other=0)
        confident += tl.load(partials + 2 * programs + program, mask=program < programs, other=0)
    of_background, of_single, of_confident = _denominators(counts)
    bg = tl.sum(background, axis=0) / of_background
    fg = tl.sum(single, axis=0) / of_single
    inter = tl.sum(confident, axis=0) / of_confident
    tl.store(terms, bg)
    tl.store(terms + 1, fg)
    tl.store(terms + 2, inter)
    tl.store(total, bg + fg_weight * fg + inter_weight * inter)


@triton.jit
def logit_grad(
    grad, shares, logits, grad_total, channels, h, w, subtiles_y, subtiles_x, stride_b, stride_c, stride_p,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Each source pixel gathers its shares of the tiles around it. `grad` is channels-last: [B, h * w, channels]."""
    image = tl.program_id(1)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < h * w * channels
    pixel, channel = element // channels, element % channels
    y, x = pixel // w, pixel % w
    across = (w + 1) * subtiles_x
    shares += image.to(tl.int64) * (h + 1) * subtiles_y * across * 4 * channels
    gathered = tl.zeros((BLOCK,), tl.float32)
    for corner in tl.static_range(4):
        row, column = (y + 1 - corner // 2) * subtiles_y, (x + 1 - corner % 2) * subtiles_x
        for down in range(subtiles_y):
            for right in range(subtiles_x):
                tile = (row + down) * across + column + right
                place = (tile.to(tl.int64) * 4 + corner) * channels + channel
                gathered += tl.load(shares + place, mask=inside, other=0)
    place = image.to(tl.int64) * stride_b + channel.to(tl.int64) * stride_c + pixel.to(tl.int64) * stride_p
    active = tl.load(logits + place, mask=inside, other=0) > 0
    value = tl.where(active, gathered * tl.load(grad_total), 0.0)
    tl.store(grad + image.to(tl.int64) * h * w * channels + element, value, mask=inside)


@triton.jit
def _tags(labels, image, classes, WITH_TAGS: tl.constexpr, CLASSES: tl.constexpr):
    """How many classes an image has; 1 without tags, when every image counts as having one."""
    if WITH_TAGS:
        every = tl.arange(0, CLASSES)
        present = tl.load(labels + image * classes + every, mask=every < classes, other=0) != 0
        return tl.sum(present.to(tl.int32), axis=0)
    else:
        return 1


@triton.jit
def _groups(target, foreground, pixel, inside, tags, threshold, WITH_TAGS: tl.constexpr):
    """Class number (0 where ignored), and whether a pixel belongs to background, single, confident pixels."""
    wanted = tl.load(target + pixel, mask=inside, other=IGNORED).to(tl.int32)
    background, valid = wanted == 0, wanted != IGNORED
    single = valid & (wanted != 0) & (tags == 1)
    confident = inside & (wanted < 0)
    if WITH_TAGS:
        confident = (tl.load(foreground + pixel, mask=inside & (tags > 1), other=0) > threshold) & inside & (tags > 1)
    return tl.where(valid, wanted, 0), background, single, confident


@triton.jit
def _store_nothing(
    partials, shares, program, programs, classes, WITH_GRAD: tl.constexpr, FIRST: tl.constexpr
):  # fmt: skip
    """What a tile adds where none of its pixels counts."""
    tl.store(partials + program, 0.0)
    tl.store(partials + programs + program, 0.0)
    tl.store(partials + 2 * programs + program, 0.0)
    if WITH_GRAD:
        for start in range(0, 4 * (classes + 1), FIRST):
            place = start + tl.arange(0, FIRST)
            tl.store(shares + place, tl.zeros((FIRST,), tl.float32), mask=place < 4 * (classes + 1))


@triton.jit
def _denominators(counts):
    return (
        tl.maximum(tl.load(counts), 1.0),
        tl.maximum(tl.load(counts + 1), 1.0),
        tl.load(counts + 2) + INTER_EPSILON,
    )


@triton.jit
def _weight(sample, cell, length, scale):
    """The weight of the second corner along one axis. At the edge, where both are one pixel, one corner has it all."""
    place = (sample + 0.5) * scale - 0.5 - (cell - 1)
    return tl.minimum(tl.maximum(place, tl.where(cell == 0, 1.0, 0.0)), tl.where(cell == length, 0.0, 1.0))


@triton.jit
def _within(sample, cell, length, size):
    """Which samples, counted from the first one of a cell, belong to it."""
    return (sample < size) & (((2 * sample + 1) * length < (2 * cell + 1) * size) | (cell == length))


@triton.jit
def _class(start, NUMBER: tl.constexpr):
    return start + tl.arange(0, NUMBER)[:, None]


@triton.jit
def _scores(corners, down, right, start, classes, stride_c, NUMBER: tl.constexpr):
    """Scores [NUMBER, pixels] of the classes from `start` on, ABSENT past the last one; channel 0 is the background."""
    number = start + tl.arange(0, NUMBER)[:, None, None]
    logits = tl.load(corners[None, :, :] + (number + 1).to(tl.int64) * stride_c, mask=number < classes, other=0)
    logits = tl.where(number < classes, relu(logits.to(tl.float32)), ABSENT)
    left, far = tl.split(logits)
    a, c = tl.split(left)
    b, d = tl.split(far)
    return _between(a[:, None], b[:, None], c[:, None], d[:, None], down[None, :], right[None, :])


@triton.jit
def _score(a, b, c, d, channel, down, right):
    """The score of one channel at each pixel, given the addresses of the first channel's four logits."""
    a, b = relu(tl.load(a + channel).to(tl.float32)), relu(tl.load(b + channel).to(tl.float32))
    c, d = relu(tl.load(c + channel).to(tl.float32)), relu(tl.load(d + channel).to(tl.float32))
    return _between(a, b, c, d, down, right)


@triton.jit
def _between(a, b, c, d, down, right):
    top = a * ((1 - down) * (1 - right)) + b * ((1 - down) * right)
    return top + c * (down * (1 - right)) + d * (down * right)


@triton.jit
def _second(first, rest, best, REST: tl.constexpr):
    """The score of the second best class at each pixel."""
    second = _below(first, best)
    if REST:
        second = tl.maximum(second, _below(rest, best))
    return second


@triton.jit
def _who(first, rest, score, FIRST: tl.constexpr, REST: tl.constexpr):
    """The first class that has the score, at each pixel."""
    number = tl.min(tl.where(first == score[None, :], _class(0, FIRST), NEITHER), axis=0)
    if REST:
        of_rest = tl.min(tl.where(rest == score[None, :], _class(FIRST, REST), NEITHER), axis=0)
        number = tl.minimum(number, of_rest)
    return number


@triton.jit
def _below(scores, best):
    """The largest score that is not the best one, or 0.

    Numbers that are not negative are ordered as their bits. With comparisons instead LLVM packs their results into
    bit fields, which doubles the work.
    """
    bits = scores.to(tl.int32, bitcast=True)
    lower = tl.maximum(bits - best.to(tl.int32, bitcast=True)[None, :], -1)  # all bits, or none for the best
    return tl.max(bits & lower, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _seven_sums(background, single, entropy, gap, slope, down, right):
    """Seven sums over the tile in one, [8]: the three terms, then the background's share at each corner."""
    row = tl.arange(0, 8)[:, None]
    seven = tl.where(row == 1, tl.where(single, entropy, 0.0)[None, :], tl.where(background, entropy, 0.0)[None, :])
    seven = tl.where(row == 2, gap[None, :], seven)
    seven = tl.where(row == 3, (slope * (1 - down) * (1 - right))[None, :], seven)
    seven = tl.where(row == 4, (slope * (1 - down) * right)[None, :], seven)
    seven = tl.where(row == 5, (slope * down * (1 - right))[None, :], seven)
    seven = tl.where(row == 6, (slope * down * right)[None, :], seven)
    return tl.sum(tl.trans(seven), axis=0)


@triton.jit
def _share(
    shares, odds, part, weight, wanted, slope, runner, down, right, start, classes,
    WITH_TAGS: tl.constexpr, NUMBER: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Stores what the classes from `start` on add to the gradient at each corner."""
    number = _class(start, NUMBER)
    lowered = tl.where(number == wanted[None, :], -weight[None, :], 0.0)
    if WITH_TAGS:
        both = tl.where(runner == wanted, slope - weight, slope)
        lowered = tl.where(number == runner[None, :], both[None, :], lowered)
    grad = odds * part[None, :] + lowered
    grad = tl.reshape(tl.trans(grad), (TILE_X, TILE_Y, NUMBER))
    on_left = tl.sum(grad * (1 - right)[:, None, None], axis=0)
    on_right = tl.sum(grad * right[:, None, None], axis=0)
    down = down[:, None]
    number = start + tl.arange(0, NUMBER)
    place, inside = shares + 1 + number, number < classes
    tl.store(place, tl.sum(on_left * (1 - down), axis=0), mask=inside)
    tl.store(place + classes + 1, tl.sum(on_right * (1 - down), axis=0), mask=inside)
    tl.store(place + 2 * (classes + 1), tl.sum(on_left * down, axis=0), mask=inside)
    tl.store(place + 3 * (classes + 1), tl.sum(on_right * down, axis=0), mask=inside)
