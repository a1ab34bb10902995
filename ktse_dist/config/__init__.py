"""The schema of a run, a file for each group of sections: frozen models, and what must hold between their keys.

config_file.py fills it.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PlainValidator, model_validator

from ktse_dist.config.base import ROOT_ALLOWED, WRITABLE, Model, place, without_secrets
from ktse_dist.config.data import Data
from ktse_dist.config.method import Method, Network
from ktse_dist.config.stages import Masks, Segment
from ktse_dist.config.training import Engine, Kernels, Optimiser, Ray, Train


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
