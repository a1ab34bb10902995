"""The network, and KTSE's losses."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ktse_dist.config.base import Model


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
