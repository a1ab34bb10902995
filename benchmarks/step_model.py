"""A training step on paper: what its ranks send, and how long it takes where they are linked so and so.

docs/scaling.md derives it. Everything here is arithmetic: no figure of a GPU was measured.
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch.utils.flop_counter import FlopCounterMode

from ktse_dist import models
from ktse_dist.config.method import Network

FP32 = 4  # bytes; weights and gradients are fp32 in every precision (bf16 is the module's own autocast)
STRIDE = {"efficientnet_lite0": 16, "resnet38d": 8}
PASSES = {1: 1, 2: 3}  # calls of the network: pictures with their partners, erased, mixed
PICTURES = {1: (1,), 2: (2, 1, 2)}  # that each call sees for a picture of the batch; a mixed one is twice as high
COUNTS = {1: 0, 2: 6}  # numbers that the losses sum over ranks
DDP_BUCKET, DDP_FIRST = 25 << 20, 1 << 20  # bytes

GPUS_A_NODE = 8
PEAK = 989e12  # an H100's bf16 operations a second: the faster the GPU, the less time there is to send
REACHED = {"resnet38d": 0.4, "efficientnet_lite0": 0.05}  # of the peak; depthwise convolutions wait for memory
NVLINK = 450e9  # bytes a second in each direction, NVLink 4
LINKS = {f"{gigabits} Gbit/s": gigabits / 8 * 1e9 for gigabits in (400, 200, 100, 25)}  # of a whole node
USABLE = 0.8  # of a link's stated speed
LATENCY = 10e-6  # seconds for each level of a collective's tree


@dataclass(frozen=True)
class Size:
    """A network in numbers: elements of all parameters, of the trained ones, of those that ZeRO 3 splits.

    whole: how many parameters are so small that ZeRO 3 leaves them whole. forward, backward: operations for a picture.
    """

    parameters: int
    trained: int
    split: int
    whole: int
    forward: float
    backward: float


@cache
def size_of(backbone: str, classes: int = 20, side: int = 320) -> Size:
    with torch.device("meta"), FlopCounterMode(display=False) as counted:
        network = Network(backbone=backbone, output_stride=STRIDE[backbone], weights="none")
        body, head = models.build(network, classes, load_weights=False)
        cam = head(body(torch.empty(1, 3, side, side), torch.zeros(1, dtype=torch.int64)))
        forward = counted.get_total_flops()
        cam.sum().backward()
    parameters = [*body.parameters(), *head.parameters()]
    sizes, limit = [p.numel() for p in parameters], settings(3)["stage3_param_persistence_threshold"]
    return Size(
        parameters=sum(sizes),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        split=sum(n for n in sizes if n > limit),
        whole=sum(n <= limit for n in sizes),
        forward=forward,
        backward=counted.get_total_flops() - forward,
    )


def settings(stage: int) -> dict:
    """What our engine tells DeepSpeed of that ZeRO stage."""
    text = files("ktse_dist.training.engine").joinpath(f"zero{stage}.json").read_text()
    return json.loads(text)["zero_optimization"]


# --- bytes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """Bytes that each rank sends in a step by the ring convention. gradients: those that a backward pass can hide."""

    gradients: float
    others: float
    calls: int

    @property
    def total(self) -> float:
        return self.gradients + self.others


def sent(engine: str, size: Size, world: int, phase: int) -> Sent:
    """engine: ddp, zero1, zero2, zero3; or zero3_released, where weights go away after each use."""
    ring = FP32 * (world - 1) / world
    counts = 2 * COUNTS[phase]
    losses = 1 if counts else 0
    if engine == "ddp":
        return Sent(2 * ring * size.trained, ring * counts, ddp_buckets(size) + losses)
    if engine in ("zero1", "zero2"):  # DeepSpeed reduces both by an all-reduce of which each rank keeps its part
        calls = 2 * math.ceil(size.trained / settings(2)["reduce_bucket_size"]) + 3
        return Sent(2 * ring * size.trained, ring * (size.trained + counts), calls + losses)
    gathers = gathers_of(engine, phase)
    bucket = settings(3)["stage3_prefetch_bucket_size"]
    calls = (gathers + 1) * math.ceil(size.split / bucket) + size.whole + 2  # small ones are gathered one by one
    weights = gathers * size.split + size.parameters - size.split
    return Sent(ring * size.trained, ring * (weights + counts), calls + losses)


def gathers_of(engine: str, phase: int) -> int:
    """How often a step gathers what ZeRO 3 has split.

    DeepSpeed keeps a weight that is used again within stage3_max_reuse_distance (1e9) parameters, more than a whole
    step of ours goes through: one gather. Released after each use it is gathered in each pass forward, and backward
    twice at most: a module that was called several times is not released after its second backward call.
    """
    passes = PASSES[phase]
    return 1 if engine == "zero3" else passes + min(passes, 2)


def ddp_buckets(size: Size) -> int:
    return 1 + max(0, math.ceil((FP32 * size.trained - DDP_FIRST) / DDP_BUCKET))


# --- seconds ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """Seconds of computing, of sending, and of the sending that computing hides."""

    computing: float
    sending: float
    hidden: float

    @property
    def efficiency(self) -> float:
        """Against a GPU alone."""
        return self.computing / (self.computing + self.sending - self.hidden)

    @property
    def efficiency_without_overlap(self) -> float:
        return self.computing / (self.computing + self.sending)


def step(engine: str, backbone: str, phase: int, pictures: int, world: int, link: str, speed: float) -> Step:
    """A step of `pictures` of a GPU on each of `world` GPUs. link: of LINKS. speed: operations a second of a GPU."""
    size = size_of(backbone)
    told = sent(engine, size, world, phase)
    # a ring goes into every node and out of it once, so a node's link carries what one rank sends
    bandwidth = USABLE * (NVLINK if world <= GPUS_A_NODE else LINKS[link])
    waiting = told.calls * 2 * math.log2(world) * LATENCY
    computing = pictures * sum(PICTURES[phase]) * (size.forward + size.backward) / speed
    hidden = min(hideable(engine, size, told, bandwidth), last_backward(size, phase, pictures, speed))
    return Step(computing, told.total / bandwidth + waiting, hidden)


def hideable(engine: str, size: Size, told: Sent, bandwidth: float) -> float:
    """Seconds of sending gradients that may run beside the backward pass: all but the last bucket.

    ZeRO 1 and 2 do not overlap: DeepSpeed's overlap_comm is off for them, and our settings leave it so.
    """
    if engine in ("zero1", "zero2"):
        return 0.0
    bucket = DDP_BUCKET if engine == "ddp" else FP32 * settings(3)["reduce_bucket_size"]
    share = min(1.0, bucket / (FP32 * size.trained))
    return (1 - share) * told.gradients / bandwidth


def last_backward(size: Size, phase: int, pictures: int, speed: float) -> float:
    """Seconds of the backward pass of the network's first call, which comes last.

    A weight's gradient is whole only when all calls have added to it, so nothing can be sent before.
    """
    return pictures * PICTURES[phase][0] * size.backward / speed
