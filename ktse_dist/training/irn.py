"""Training IRN's network (docs/method.md 3): its config, made from the run's, and its task."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ktse_dist.config import Config
from ktse_dist.config_file import merge, validate
from ktse_dist.data.decode import BadSample
from ktse_dist.data.index import Index
from ktse_dist.data.labelled import labelled
from ktse_dist.data.reader import Reader
from ktse_dist.data.stream import Plan, stream
from ktse_dist.errors import UserError
from ktse_dist.files import remove_partials
from ktse_dist.method.irn import IRN
from ktse_dist.method.pixels import normalise
from ktse_dist.models import pretrained
from ktse_dist.models.refinement import build_refinement, empty, save_refinement
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.job import Job, prepare

WEIGHT_DECAY = 1e-4
MOMENTUM = 1e-4  # docs/method.md 5.1: what the rates were chosen with
DISPLACEMENT_RATE = 10.0
MEAN_SHIFT = "head.dp_layers.6.4.running_mean"
SHIFT_PICTURES = 100  # each takes as long as in training; the published code takes all


@dataclass(frozen=True)
class IRNTask:
    """labels: a folder of mask shards for the first `count` training pictures (None: for all of them)."""

    room: ClassVar[str] = "delete RUN/masks and give a lower masks.irn.batch or masks.irn.crop"
    labels: Path
    count: int | None

    def pictures(self, index: Index) -> Index:
        return index.first(self.count)

    def module(self, config: Config, index: Index) -> nn.Module:
        return IRN(*build_refinement(config.model), config.train.precision)

    def groups(self, module: nn.Module, config: Config) -> list[dict]:
        """`head` marks the displacement branch, which has a multiple of the rate."""
        branches = ((False, module.head.edge_layers), (True, module.head.dp_layers))
        return [group(module, branch, fast, config) for fast, branch in branches]

    def pairs(self, config: Config, phase: int, batch_size: int) -> int:
        return 0

    def batches(self, config: Config, index: Index, plan: Plan) -> Iterator[Any]:
        seed = config.run.seed
        return stream(index, config.data, seed, plan, labelled(index, config.data, seed, plan, self.labels))

    def rate_key(self, phase: int) -> str:
        return "masks.irn.lr"

    def export(self, folder: RunFolder, weights: dict[str, Tensor], config: Config, index: Index) -> None:
        shift = mean_displacement(weights, config, index)
        remove_partials(folder.path, folder.model.name)
        save_refinement(folder.model, weights | {MEAN_SHIFT: shift}, config.model, config.data.crop)


@torch.inference_mode()
def mean_displacement(weights: dict[str, Tensor], config: Config, index: Index) -> Tensor:
    """Over the first pictures, top left on a canvas of the crop's size: [2]. Masks of classes do without it; it makes
    the file complete for whoever groups pixels into objects."""
    model = empty(config.model)
    model.load_state_dict(weights, assign=True)
    backbone, head = model.eval()["backbone"], model["head"]
    reader, found, crop = Reader(index), [], config.data.crop
    for row in range(min(SHIFT_PICTURES, len(index))):
        with suppress(BadSample):  # training has counted it
            picture = reader.picture(row)[:crop, :crop]
            canvas = np.zeros((1, crop, crop, 3), np.uint8)
            canvas[0, : picture.shape[0], : picture.shape[1]] = picture
            inside = torch.tensor([[0, 0, *picture.shape[:2]]])
            images = normalise(torch.from_numpy(canvas).permute(0, 3, 1, 2), inside, backbone.mean, backbone.std)
            found.append(head(backbone.stages(images))[1].mean((0, 2, 3)))
    return torch.stack(found).mean(0) if found else torch.zeros(2)


def group(module: nn.Module, branch: nn.Module, fast: bool, config: Config) -> dict:
    ours = {id(parameter) for parameter in branch.parameters()}
    named = {name: parameter for name, parameter in module.named_parameters() if id(parameter) in ours}
    decay = config.optimiser.weight_decay
    return {"params": [*named.values()], "names": [*named], "rate": 1.0, "head": fast, "weight_decay": decay}


def irn_job(folder: RunFolder, config: Config) -> Job:
    """The training of the network for the masks of the run in `folder`. UserError in terms of masks.irn."""
    task = IRNTask(folder.refinement_labels, config.masks.pictures.train)
    anew = f"delete {folder.masks}"  # what it was trained with is noted there
    return Job(irn_config(config), folder.refinement, task=task, fresh=anew)


def check_start(job: Job) -> None:
    """UserError, in terms of masks.irn, for what would stop the training before its first step."""
    with in_terms_of_masks():
        prepare(job)
        if job.config.model.weights != "none":
            pretrained(job.config.model)


@contextmanager
def in_terms_of_masks() -> Iterator[None]:
    """The config is made of the user's, so its keys say nothing to them."""
    try:
        yield
    except UserError as error:
        said = str(error)
        for section in ("train.batch", "train.epochs", "model.weights", "model.backbone", "data.crop"):
            said = said.replace(section, f"masks.irn.{section.partition('.')[2]}")
        said = said.replace("optimiser.phase1.lr", "masks.irn.lr")
        raise UserError(said) from None


def irn_config(config: Config) -> Config:
    """The run's config with what is IRN's own: all of it one phase. UserError in terms of masks.irn."""
    irn = config.masks.irn
    sgd = {"lr": irn.lr, "momentum": MOMENTUM, "head_rate": DISPLACEMENT_RATE}
    own = {
        "model": {"backbone": irn.backbone, "output_stride": 16, "weights": irn.weights},
        "data": {"crop": irn.crop},
        "optimiser": {"phase1": sgd, "weight_decay": WEIGHT_DECAY, "power": 0.9, "horizon": "actual"}
        | {"warmup_steps": 0, "lr_batch": None},
        "train": {"batch": [[0, irn.batch]], "epochs": irn.epochs, "phase1_epochs": irn.epochs, "baseline": False}
        | {"micro_batch": None},
    }
    with in_terms_of_masks():
        return validate(merge(config.model_dump(by_alias=True), own))
