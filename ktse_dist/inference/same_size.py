"""Pictures of one size go through a network together: groups of them out of a stream, with bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
WAITING = 8  # groups' worth of pixels that may wait for company


def same_size(items: Iterable[Item], shape: Callable[[Item], tuple[int, int]], pixels: int) -> Iterator[list[Item]]:
    """Lists of items of one shape (height, width), each of at most `pixels` pixels or one item alone.

    Lists come when they are full; when more than WAITING * pixels wait, the largest goes as it is.
    """
    waiting: dict[tuple[int, int], list[Item]] = {}
    held = 0
    for item in items:
        size = shape(item)
        waiting.setdefault(size, []).append(item)
        held += size[0] * size[1]
        if (len(waiting[size]) + 1) * size[0] * size[1] <= pixels:
            if held <= WAITING * pixels:
                continue
            size = max(waiting, key=lambda s: len(waiting[s]) * s[0] * s[1])
        held -= len(waiting[size]) * size[0] * size[1]
        yield waiting.pop(size)
    yield from waiting.values()
