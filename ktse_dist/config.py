"""The schema of a run: frozen pydantic models, and what must hold between their keys. config_file.py fills it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


REMOTE = re.compile(r"(s3|gs|https?)://(?!.*::)[^\s?#@]+")  # no password, no query that may hold a token
WRITABLE = re.compile(r"(s3|gs)://(?!.*::)[^\s?#@]+")
ROOT_ALLOWED = (
    "allowed are a folder, and s3:// and gs:// addresses without password, '?', '#' and '::'; give one of these"
)


def place(value: Any) -> Path | str | None:
    """An address stays text, as Path would swallow one of its slashes; everything else is a path."""
    if not isinstance(value, str | Path | None):
        raise PydanticCustomError("place", "a folder or an address is allowed")
    return Path(value) if isinstance(value, str) and not re.search(r"::|^\w+://", value) else value


def without_secrets(address: str) -> str:
    """An address as it may be shown: without password and query."""
    return re.split(r"[?#]", re.sub(r"//[^/]*@", "//", address))[0]


class Run(Model):
    """Where a run leaves its files: <root>/<name>/."""

    # a folder, or an s3:// or gs:// address for machines without a shared disk; None: $KTSE_RUNS, else ./runs
    root: Annotated[Path | str | None, PlainValidator(place)] = None
    name: str = Field("demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(5137, ge=0, lt=2**31)  # the published run's seed
    deadline: float = Field(600, gt=0, le=86_400)  # seconds that the storage at an address may be away

    @model_validator(mode="after")
    def _address(self) -> "Run":
        if isinstance(self.root, str) and not WRITABLE.fullmatch(self.root):
            raise ValueError(f"root is '{without_secrets(self.root)}'; {ROOT_ALLOWED}")
        return self


class Cache(Model):
    """What a node keeps of a remote data set (data.path is an address); all processes of the node share it."""

    folder: Path | None = None  # None: $XDG_CACHE_HOME/ktse, else ~/.cache/ktse
    gigabytes: float = Field(50, gt=0, le=1_000_000)  # the shards used least recently make room
    deadline: float = Field(120, gt=0, le=86_400)  # seconds without an answer until the run gives up


class Data(Model):
    """Which pictures, and how a training crop is cut from one (docs/method.md 1.1)."""

    # a folder or an address; None: the embedded stickers, packed on first use under the run root
    path: Annotated[Path | str | None, PlainValidator(place)] = None
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")  # of a remote dataset.json: nothing else is accepted
    cache: Cache = Cache()
    window_shards: int | None = Field(None, ge=1)  # shards shuffled together; None: all of them
    lanes: int = Field(1, ge=1, le=8)  # sequences of shards that run side by side, each with its part of every batch
    max_bad_fraction: float = Field(0.001, ge=0, le=1)  # pictures of an epoch that may be unreadable; 3 always may
    workers: int = Field(0, ge=0, le=64)  # decoding processes of each rank; 0: decode in the training process
    long_side: tuple[int, int] = (256, 512)  # drawn uniformly, inclusive
    crop: int = Field(320, ge=32, le=2048)
    resize: Literal["opencv", "pillow"] = "opencv"

    @model_validator(mode="after")
    def _ordered(self) -> "Data":
        low, high = self.long_side
        if not 16 <= low <= high <= 4096:
            raise ValueError(f"long_side is {[low, high]}; allowed are 16 <= smallest <= largest <= 4096")
        return self

    @model_validator(mode="after")
    def _address(self) -> "Data":
        if isinstance(self.path, str) and not REMOTE.fullmatch(self.path):
            raise ValueError(
                f"path is '{without_secrets(self.path)}'; allowed are a folder, and s3://, gs://, http:// and "
                "https:// addresses without password, '?', '#' and '::'; give one of these"
            )
        if self.sha256 and not isinstance(self.path, str):
            raise ValueError(
                f"sha256 pins a data set at an address, and path is '{self.path}'; leave it out: "
                "`ktse inspect --verify` checks a folder"
            )
        return self


class Network(Model):
    """The backbone in front of the CAM head."""

    backbone: Literal["efficientnet_lite0", "resnet38d", "resnet50", "resnet101"] = "efficientnet_lite0"
    output_stride: Literal[8, 16] = 16
    weights: Path | Literal["imagenet", "none"] = "imagenet"  # or a .safetensors file

    @model_validator(mode="after")
    def _resnet38d_has_one_stride(self) -> "Network":
        if self.backbone == "resnet38d" and self.output_stride != 8:
            raise ValueError(f"output_stride is {self.output_stride}; resnet38d has 8 only: set model.output_stride=8")
        return self


class Erasing(Model):
    """Intra-image erasing: which confident pixels are hidden from the second look (docs/method.md 1.5.1, 1.5.2)."""

    threshold: float = Field(0.6, gt=0, lt=1)  # share of a class's peak activation
    margin: float = Field(0.05, ge=0, lt=1)  # tolerated difference in local alignment


class Transfer(Model):
    """Simulated inter-image erasing: what the mixed picture may lose against its halves (docs/method.md 1.5.7)."""

    margin: float = Field(0.05, ge=0, lt=1)
    pairs: int | None = Field(None, ge=1)  # the first pairs of the global batch; None: all. Published: 4


class PseudoLabel(Model):
    """Online pseudo-labels (docs/method.md 1.6)."""

    high: float = Field(0.3, gt=0, lt=1)  # background plane that foreground must beat
    low: float = Field(0.15, gt=0, lt=1)  # background plane that sure background stays below
    division: Literal["relu", "raw"] = "relu"  # raw divides a CAM that is negative everywhere by its negative peak
    pixels: Literal["exact", "truncated"] = "exact"  # truncated: PAR sees pixels cut down to whole grey levels
    padding: Literal["ignored", "labelled"] = "ignored"  # labelled: the empty canvas around a picture gets labels too

    @model_validator(mode="after")
    def _ordered(self) -> "PseudoLabel":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}; allowed is less than high={self.high}")
        return self


class Segmentation(Model):
    """The pixel losses on the pseudo-labels (docs/method.md 1.5.6, 1.5.8)."""

    fg_weight: float = Field(0.0125, ge=0)
    inter_weight: float = Field(0.005, ge=0)
    inter_threshold: float = Field(0.2, ge=0, lt=1)


class Detach(Model):
    """Which CAM is only a teacher, so that no gradient reaches it. The published run detaches none."""

    transfer: bool = True  # the CAMs of the two halves
    local: bool = False  # the erased picture's CAM
    global_: bool = Field(False, alias="global")  # the un-erased picture's CAM


class Method(Model):
    """KTSE's losses. sie, ssr, mga weigh the paper's parts; 0 switches a part and its network passes off."""

    preset: Literal["published", "corrected"] = "corrected"
    sie: float = Field(1.0, ge=0)
    ssr: float = Field(1.0, ge=0)
    mga: float = Field(1.0, ge=0)
    erasing: Erasing = Erasing()
    transfer: Transfer = Transfer()
    pseudo_label: PseudoLabel = PseudoLabel()
    segmentation: Segmentation = Segmentation()
    detach: Detach = Detach()

    @property
    def uses_pairs(self) -> bool:
        """Whether any loss looks at the mixed picture, and so at partners."""
        return self.sie > 0 or self.ssr > 0

    @property
    def is_classification(self) -> bool:
        return not (self.uses_pairs or self.mga > 0)


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
            raise ValueError(f"phase1_epochs is {self.phase1_epochs}; allowed is at most train.epochs={self.epochs}")
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


class Pictures(Model):
    """The first pictures of each split; None: all of them."""

    train: int | None = Field(None, ge=1)
    val: int | None = Field(None, ge=1)


class Refinement(Model):
    """The network behind masks.refine=irn, trained on the CAMs' own sure pixels (docs/method.md 3)."""

    backbone: Literal["efficientnet_lite0", "resnet50"] = "efficientnet_lite0"  # published: resnet50
    weights: Path | Literal["imagenet", "none"] = "imagenet"  # or a .safetensors file
    high: float = Field(0.3, gt=0, lt=1)  # background that a CAM must beat for its class to be told to the network
    low: float = Field(0.1, gt=0, lt=1)  # background that no CAM beats where the network is told background
    crop: int = Field(512, ge=96, le=2048, multiple_of=4)  # at stride 4 well above the 10 pixels that are compared
    batch: int = Field(32, ge=1)
    epochs: int = Field(3, ge=1, le=1000)
    lr: float = Field(0.1, gt=0, le=10)  # of the boundary branch; the displacement branch has 10 times that
    beta: float = Field(10, gt=0, le=100)  # power of the affinities: the higher, the harder a boundary stops the walk

    @model_validator(mode="after")
    def _ordered(self) -> "Refinement":
        if self.low >= self.high:
            raise ValueError(f"low is {self.low}; allowed is less than high={self.high}")
        return self


class Masks(Model):
    """Seeds and masks after training (docs/method.md 2)."""

    # each also mirrored
    scales: tuple[Annotated[float, Field(ge=0.1, le=8)], ...] = Field((0.5, 1.0, 1.5, 2.0), min_length=1)
    refine: Literal["crf", "none", "irn"] = "crf"
    irn: Refinement = Refinement()
    # CRF background (1 - CAM)^alpha; train pictures choose
    alphas: tuple[Annotated[float, Field(gt=0, le=100)], ...] = Field((2.0, 4.0, 6.0, 10.0, 24.0), min_length=1)
    # what stands against the CAMs, alpha or (none, irn) a threshold; None: train pictures with ground truth choose
    strength: float | None = Field(None, gt=0, le=100)
    long_side: int | None = Field(None, ge=64, le=8192)  # larger pictures are shrunk for it, their masks not
    # a larger picture is looked at in overlapping tiles of so many, and its mask is made at so many and enlarged;
    # the usual ones of COCO at scale 2 have 1,228,800
    max_pixels: int = Field(1_250_000, ge=250_000, le=100_000_000)
    pictures: Pictures = Pictures()
    processes: int = Field(2, ge=0, le=256)  # for the refinement, beside each process that runs the network; 0: none
    workers: int = Field(0, ge=0, le=4096)  # Ray workers, each at one picture shard at a time; 0: without Ray, here


class Segment(Model):
    """Stage 2, a segmentation network learnt from the masks (docs/method.md 4)."""

    networks: Literal[1, 2] = 2  # two teach each other where the masks are not trusted
    trusted: float = Field(0.5, gt=0, le=1)  # share of a class's pixels in a mask, the surest ones, whose label counts
    # probability from which the networks' own answer is a label; None: it never is, and all epochs are the warm-up
    sure: float | None = Field(0.95, gt=0, lt=1)
    mix: float = Field(0.5, ge=0, le=1)  # share of the pictures that get objects of another one pasted in
    boundary_weight: float = Field(0.2, ge=0)  # more loss along the edges of what was pasted
    colour: bool = True  # change colours at random
    area: tuple[float, float] = (0.5, 0.75)  # of a picture that a training crop covers
    # of the final test; the published: 0.75, 1, 1.25
    scales: tuple[Annotated[float, Field(ge=0.1, le=4)], ...] = Field((0.75, 1.0, 1.25), min_length=1)
    crf: Literal["none", "plain", "wrapped"] = "plain"  # wrapped: on the published test's picture (quirk 27)
    long_side: int | None = Field(None, ge=64, le=8192)  # larger pictures are shrunk for the test, their masks not

    @model_validator(mode="after")
    def _ordered(self) -> "Segment":
        low, high = self.area
        if not 0.01 <= low <= high <= 1:
            raise ValueError(f"area is {[low, high]}; allowed are 0.01 <= smallest <= largest <= 1")
        return self


class Config(Model):
    """One run, complete."""

    run: Run = Run()
    data: Data = Data()
    model: Network = Network()
    method: Method = Method()
    optimiser: Optimiser
    train: Train = Train()
    engine: Engine = Engine()
    ray: Ray = Ray()
    kernels: Kernels = Kernels()
    masks: Masks = Masks()
    segment: Segment = Segment()

    @model_validator(mode="after")
    def _every_rank_has_a_picture(self) -> "Config":
        smallest = min(size for _, size in self.train.batch)
        if self.engine.name != "torch" and smallest < self.ray.most:
            raise ValueError(
                f"train.batch has a batch of {smallest} for ray.workers={self.ray.most}; every worker needs a "
                "picture: raise train.batch or lower ray.workers"
            )
        return self

    @model_validator(mode="after")
    def _waiting_for_storage_is_not_hanging(self) -> "Config":
        if isinstance(self.run.root, str) and self.train.hang_seconds <= self.run.deadline:
            raise ValueError(
                f"train.hang_seconds is {self.train.hang_seconds}, and a run waits up to run.deadline="
                f"{self.run.deadline:g} s for the storage at run.root; raise it above that"
            )
        return self

    @model_validator(mode="after")
    def _every_lane_has_its_share(self) -> "Config":
        lanes = self.data.lanes
        for _, size in self.train.batch:
            if size % lanes:
                raise ValueError(
                    f"train.batch has a batch of {size} for data.lanes={lanes}; every lane gives as many pictures: "
                    f"use multiples of {lanes}, or set data.lanes=1"
                )
        return self

    @property
    def world(self) -> int:
        """Ranks; where their number may change the fewest, each of which has the most to do."""
        return 1 if self.engine.name == "torch" else self.ray.fewest
