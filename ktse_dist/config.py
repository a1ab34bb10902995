"""The schema of a run: frozen pydantic models, presets, YAML and `a.b=c` overrides.

Precedence: preset < YAML < override. Nothing else in ktse_dist reads YAML.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ktse_dist.errors import UserError
from ktse_dist.presets import PRESETS

YAML_LIMIT = 65_536  # bytes; a larger file is not one of our configs


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


class Train(Model):
    """How long, how large, how often."""

    batch: tuple[tuple[int, int], ...] = ((0, 16),)  # (from epoch, pictures in the global batch)
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
    hang_seconds: int = Field(900, ge=5, le=86_400)  # without a step: above the first step's compiling and fetching

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


class Ray(Model):
    workers: int = Field(2, ge=1, le=4096)
    use_gpu: bool = False
    threads: int = Field(1, ge=1, le=256)  # CPU threads of one worker
    max_failures: int = Field(10, ge=0, le=1000)  # new starts after lost ranks; a fault that comes back ends the run


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
    pictures: Pictures = Pictures()
    processes: int = Field(2, ge=0, le=256)  # for the refinement, beside each process that runs the network; 0: none
    workers: int = Field(0, ge=0, le=4096)  # Ray workers, each at one picture shard at a time; 0: without Ray, here


class Segment(Model):
    """Stage 2, a segmentation network learnt from the masks (docs/method.md 4)."""

    networks: Literal[1, 2] = 2  # two teach each other where the masks are not trusted
    trusted: float = Field(0.5, gt=0, le=1)  # share of a class's pixels in a mask, the surest ones, whose label counts
    sure: float = Field(0.95, gt=0, lt=1)  # probability from which the networks' own answer is a label
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
        if self.engine.name != "torch" and smallest < self.ray.workers:
            raise ValueError(
                f"train.batch has a batch of {smallest} for ray.workers={self.ray.workers}; every worker needs a "
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
        return 1 if self.engine.name == "torch" else self.ray.workers


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The resolved config of a YAML file (None: the built-in demo) and `a.b=c` overrides. Raises UserError."""
    return over_preset(merge(read_given(path), *(parse_override(o) for o in overrides)))


def read_given(path: Path | None) -> dict[str, Any]:
    """What a YAML file or a built-in config gives (None: the demo), before anything is checked."""
    return read_yaml(built_in(path) if path else DEMO)


def over_preset(given: dict[str, Any]) -> Config:
    """The config of these keys over the preset that they name."""
    method = given.get("method")
    preset = method.get("preset", "corrected") if isinstance(method, dict) else "corrected"
    known = preset if isinstance(preset, str) and preset in PRESETS else "corrected"  # validation names a wrong one
    return validate(merge(PRESETS[known], given))


DEMO = Path(__file__).parent / "demo.yaml"


def built_in(path: Path) -> Path:
    """A bare name that is no file here, such as `own`, means the config of that name that comes with the package."""
    return DEMO.with_name(f"{path}.yaml") if str(path) in names() and not path.is_file() else path


def validate(given: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(given)
    except ValidationError as error:
        raise UserError(explain(error.errors()[0])) from None


def explain(problem: Any, root: type[Model] = Config) -> str:
    """Pydantic's first complaint about a `root` as one line: key, what was found, what is allowed."""
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path) or "config"
    if problem["type"] == "extra_forbidden" and path == ["search"]:
        return "search: is for ktse tune --config FILE; leave it out to train one run"
    if problem["type"] == "extra_forbidden":
        return f"{key}: no such key. {nearest(path, root)}"
    if problem["type"] == "value_error":
        return ".".join([*path, problem["msg"].removeprefix("Value error, ")])  # our messages begin with the key
    return f"{key}: found {problem['input']!r}; {problem['msg'][0].lower()}{problem['msg'][1:]}"


def nearest(path: Sequence[str], root: type[Model]) -> str:
    model: Any = root
    for part in path[:-1]:
        model = get_args(model)[1] if get_origin(model) is dict else model.model_fields[part].annotation
    known = [field.alias or name for name, field in model.model_fields.items()]
    close = difflib.get_close_matches(path[-1], known, n=1)
    return f"Did you mean '{'.'.join([*path[:-1], close[0]])}'?" if close else f"Allowed here: {', '.join(known)}"


def names() -> list[str]:
    """The configs that come with the package."""
    return sorted(file.stem for file in DEMO.parent.glob("*.yaml"))


# What loading foreign text can raise: also for 2024-13-45, for numbers of 5,000 digits, and for 10,000 brackets.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


class _NoAliases(yaml.SafeLoader):
    """Safe loading without anchors: an alias bomb stays text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: safe types only, no aliases, at most YAML_LIMIT bytes."""
    if not path.is_file():
        raise UserError(f"--config {path}: no such file; give one, or the name of a built-in one: {', '.join(names())}")
    if path.stat().st_size > YAML_LIMIT:
        raise UserError(f"--config {path}: {path.stat().st_size} bytes; a config has at most {YAML_LIMIT}")
    try:
        content = yaml.load(path.read_text(), Loader=_NoAliases)  # a subclass of SafeLoader
    except NOT_YAML as error:
        raise UserError(f"--config {path}: not YAML that we read ({error}); see configs/demo.yaml") from None
    if content is not None and not isinstance(content, dict):
        raise UserError(f"--config {path}: found a {type(content).__name__}; allowed is a mapping of sections")
    return content or {}


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as a nested mapping; c is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"'{text}': not an override; write section.key=value, for example train.epochs=3")
    try:
        content: Any = yaml.load(value, Loader=_NoAliases)
    except NOT_YAML:
        raise UserError(f"'{text[:200]}': the value is not YAML; quote it, for example run.name='\"a: b\"'") from None
    for part in reversed(key.split(".")):
        content = {part: content}
    return content


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win; mappings merge, everything else is replaced."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = merged.get(key)
            merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def to_yaml(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False)
