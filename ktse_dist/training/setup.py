"""What a training process needs before its first tensor."""

import logging
import sys

import torch

from ktse_dist.config import Config


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
