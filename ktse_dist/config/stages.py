"""What comes after the training: masks, and the network that learns from them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ktse_dist.config.base import Model


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
    max_pixels: int = Field(1_250_000, ge=250_000, le=100_000_000)  # the same, whatever their shape; bounds the memory

    @model_validator(mode="after")
    def _ordered(self) -> "Segment":
        low, high = self.area
        if not 0.01 <= low <= high <= 1:
            raise ValueError(f"area is {[low, high]}; allowed are 0.01 <= smallest <= largest <= 1")
        return self
