"""How a run learns: rates, lengths, engines, workers."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ktse_dist.config.base import Model


class Phase(Model):
    """SGD in one phase."""

    lr: float = Field(gt=0, le=10)
    momentum: float = Field(ge=0, lt=1)
    head_rate: float = Field(gt=0, le=100)  # learning rate of the new head, as a multiple


class Optimiser(Model):
    """SGD with polynomial decay (docs/method.md 1.3)."""

    phase1: Phase
    phase2: Phase
    weight_decay: float = Field(5e-4, ge=0)
    power: float = Field(0.9, gt=0)
    horizon: Literal["actual", "batch_8"] = "actual"  # batch_8: updates as if every batch had 8 pictures
    warmup_steps: int = Field(0, ge=0)  # first steps of a run, over which learning rates rise linearly
    lr_batch: int | None = Field(None, ge=1)  # batch that the rates are meant for; others scale them linearly
    floor: float | None = Field(None, ge=0, le=1)  # what the learning rate does not fall below; None: 0


def schedule(batch: Any) -> Any:
    return [[0, batch]] if isinstance(batch, int) and not isinstance(batch, bool) else batch


class Train(Model):
    """How long, how large, how often."""

    # (from epoch, pictures in the global batch); a number is that of all epochs
    batch: Annotated[tuple[tuple[int, int], ...], BeforeValidator(schedule)] = ((0, 16),)
    epochs: int = Field(40, ge=1, le=10_000)
    phase1_epochs: int = Field(10, ge=0)  # classification only, before KTSE's losses start
    # pictures that a worker sends through the network at once, against a lack of memory; None: its part of the batch
    micro_batch: int | None = Field(None, ge=1)
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # auto: bf16 autocast where the device computes faster in it
    recompute: bool = False  # activation checkpointing: less memory, a third more arithmetic
    compile: bool = False  # torch.compile of the backbone: minutes at first, for every shape, then faster steps
    baseline: bool = False  # also fork a classification-only run from the end of phase 1
    checkpoint_steps: int = Field(200, ge=1)
    keep: int = Field(2, ge=1)  # latest checkpoints kept
    log_steps: int = Field(10, ge=1)
    grace_seconds: int = Field(30, ge=2, le=3600)  # from SIGTERM to the end; clouds give 30 s to 2 minutes
    hang_seconds: int = Field(900, ge=5, le=86_400)  # without a step; 3 times that for the first, which compiles

    @model_validator(mode="after")
    def _consistent(self) -> "Train":
        starts = [start for start, _ in self.batch]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)) or min(size for _, size in self.batch) < 1:
            raise ValueError(f"batch is {self.batch}; allowed are [[0, size], [later epoch, size], ...], sizes >= 1")
        if self.baseline and not 0 < self.phase1_epochs < self.epochs:
            raise ValueError(
                f"baseline forks at the end of phase 1, and phase1_epochs={self.phase1_epochs} of epochs={self.epochs} "
                "leaves none; set train.baseline=false, or phase1_epochs between 1 and epochs - 1"
            )
        if self.phase1_epochs > self.epochs:
            raise ValueError(
                f"phase1_epochs is {self.phase1_epochs}; allowed is at most train.epochs={self.epochs}; set both"
            )
        return self

    def batch_size(self, epoch: int) -> int:
        return next(size for start, size in reversed(self.batch) if start <= epoch)


class Engine(Model):
    """What moves gradients: `torch` is one process without Ray; `ddp` and `deepspeed` run under Ray Train."""

    name: Literal["torch", "ddp", "deepspeed"] = "deepspeed"
    zero: Literal[1, 2, 3] = 2  # DeepSpeed's sharding stage


MOST_WORKERS = 4096


def worker_count(value: Any) -> int | tuple[int, int]:
    """A number of workers, or the smallest and the largest one."""
    ends = value if isinstance(value, list | tuple) and len(value) == 2 else (value, value)
    whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
    if not (whole and 1 <= ends[0] <= ends[1] <= MOST_WORKERS):
        raise PydanticCustomError(
            "workers", f"allowed are a number from 1 to {MOST_WORKERS}, and two of them as [smallest, largest]"
        )
    return tuple(value) if isinstance(value, list) else value


class Ray(Model):
    # [smallest, largest]: as many as the cluster has room for, more or fewer of them while the run goes on
    workers: Annotated[int | tuple[int, int], BeforeValidator(worker_count)] = 2
    resize_seconds: float = Field(
        60, ge=1, le=86_400
    )  # from one look for more room to the next; growing is a new start
    use_gpu: bool = False
    threads: int = Field(1, ge=1, le=256)  # CPU threads of one worker
    max_failures: int = Field(10, ge=0, le=1000)  # new starts after lost ranks; a fault that comes back ends the run
    # the same after notices that a node will be taken away, which say nothing about the run
    max_preemptions: int = Field(1000, ge=0, le=100_000)

    @property
    def fewest(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Kernels(Model):
    mode: Literal["auto", "reference", "triton"] = "auto"
