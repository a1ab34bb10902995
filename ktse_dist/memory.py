"""What glibc's malloc does with freed memory: keep it for the next step, or give it back."""

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEEPING = {MMAP_THRESHOLD: 1 << 30, TRIM_THRESHOLD: 1 << 30, TOP_PAD: 1 << 26}
USUAL = {MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20, TOP_PAD: 128 << 10}  # what glibc itself settles at


def keep_freed_memory() -> None:
    """Let a step's freed tensors stay for the next one instead of returning their pages each time.

    For steps of one size: pictures of many sizes would leave gaps: masks of a large one took 6.7 GB, without it 3.
    """
    set_malloc(KEEPING)


def return_freed_memory() -> None:
    """The end of `keep_freed_memory`: what is free goes back to the system, now and later."""
    set_malloc(USUAL)
    trim()


def trim() -> None:
    """What is free goes back to the system now, also from between what is in use."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def set_malloc(options: dict[int, int]) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)
