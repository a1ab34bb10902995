"""What a training process needs before its first tensor."""

import ctypes
import logging
import sys

import torch

from ktse_dist.config import Config

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
KEEPING = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: 1 << 30, M_TOP_PAD: 1 << 26}
USUAL = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 64 << 20, M_TOP_PAD: 128 << 10}  # what glibc itself settles at


def prepare_process(threads: int | None) -> None:
    """Threads and log lines. threads None: torch's own choice."""
    if threads:
        torch.set_num_threads(threads)
    start_logging()


def uses_gpu(config: Config) -> bool:
    """Whether a run of this config trains on GPUs: as asked for under Ray, if there is one without it."""
    return torch.cuda.is_available() if config.engine.name == "torch" else config.ray.use_gpu


def fast_precision(use_gpu: bool) -> str:
    """`bf16` on a GPU and on CPUs with bf16 arithmetic (there 3 times faster on one thread), else `fp32`."""
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if use_gpu or capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def start_logging() -> None:
    log = logging.getLogger("ktse")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def keep_freed_memory() -> None:
    """Let glibc keep a step's freed tensors for the next one instead of returning their pages each time.

    For steps of one size: pictures of many sizes would leave gaps: masks of a large one took 6.7 GB, without it 3.
    """
    set_malloc(KEEPING)


def return_freed_memory() -> None:
    """The end of `keep_freed_memory`: what is free goes back to the system, now and later."""
    set_malloc(USUAL)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def set_malloc(options: dict[int, int]) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in options.items():
            libc.mallopt(option, value)
