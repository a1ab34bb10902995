"""A trial of a search on one rank: phase 2 from a shared fork, scored at rungs on training pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn

from ktse_dist import models
from ktse_dist.config import Config
from ktse_dist.data.index import Index
from ktse_dist.data.remote_set import locate
from ktse_dist.evaluation.tags import mean_average_precision
from ktse_dist.files import write_text
from ktse_dist.inference.generate import SeedScores, SeedSource, parts
from ktse_dist.inference.multiscale import CamNetwork, network_of
from ktse_dist.run_folder import RunFolder, dataset_path
from ktse_dist.training import checkpoint
from ktse_dist.training.checkpoint import Checkpoint
from ktse_dist.training.context import RunContext
from ktse_dist.training.job import Job
from ktse_dist.training.loop import device_of, run


class Leg:
    """The context of a run that is left after `steps` more steps. What it reports in between stays in its metrics."""

    step = 0

    def __init__(self, context: RunContext, steps: int):
        self.rank, self.world, self._context, self._left = context.rank, context.world, context, steps

    def report(self, metrics: dict[str, Any], checkpoint_path: Path | None = None) -> None:
        pass

    def should_stop(self) -> bool:
        self._left -= 1
        asked = self._context.should_stop()  # always: ranks may have to agree on the answer
        return asked or self._left <= 0


def train_to(job: Job, first: int, step: int, context: RunContext) -> bool:
    """Go on until `step`; a run without a checkpoint of its own is at `first`. False if asked to stop earlier."""
    done = steps_done(job.folder, first)
    if done < step:
        run(job, Leg(context, step - done))
    return steps_done(job.folder, first) >= step


def steps_done(folder: RunFolder, first: int) -> int:
    last = checkpoint.latest(folder.checkpoints)
    return int(last.name.removeprefix("step-")) if last else first


def run_trial(job: Job, first: int, rungs: list[int], context: RunContext) -> None:
    """Train from the fork at step `first`, report {"rung", "score", "scores", ...} at each step of `rungs`.

    score: seed mIoU in percent as `ktse evaluate` computes seed_miou_train; without ground truth tag mAP of the same
    pictures. seconds: of training. A restarted trial reports its earlier scores again and goes on where it stopped.
    """
    known = read_scores(job.folder)  # before any rank can write another one: scoring waits for all
    for number, step in enumerate(rungs, 1):
        if not train_to(job, first, step, context):
            return
        if number > len(known):
            known.append(score(job, context))
            if context.rank == 0:
                write_text(scores_file(job.folder), json.dumps(known) + "\n")
        found = {"rung": number, "scores": [one["score"] for one in known[:number]]}
        if step == rungs[-1] and not job.folder.model.exists():
            run(job, context)  # killed between its last checkpoint and its model
        context.report(known[number - 1] | found)


def scores_file(folder: RunFolder) -> Path:
    return folder.path / "scores.json"


def read_scores(folder: RunFolder) -> list[dict[str, Any]]:
    file = scores_file(folder)
    return json.loads(file.read_text()) if file.is_file() else []


def score(job: Job, context: RunContext) -> dict[str, Any]:
    """The latest checkpoint's seeds of the pictures that masks.pictures.train names, shared out among the ranks."""
    config = job.config
    index = Index.open(locate(dataset_path(config), config.data), "train")
    last = checkpoint.latest(job.folder.checkpoints)
    assert last
    saved = checkpoint.load(last)
    source = SeedSource(network(saved, config, len(index.classes)), index, config.masks, config.data.resize)
    scores = source.new_scores()
    rows = [row for part in parts(index, config.masks) for row in part.rows]
    for row in rows[context.rank :: context.world]:
        scores.add(source.look(row))
    return summed(over_ranks(scores), index) | {"seconds": saved.state["seconds"]}


def network(saved: Checkpoint, config: Config, classes: int) -> CamNetwork:
    """A checkpoint's network, in the precision that it is trained with."""
    backbone, head = models.build(config.model, classes, load_weights=False)
    nn.ModuleDict({"backbone": backbone, "head": head}).load_state_dict(saved.weights)
    device = device_of(config)
    return network_of(backbone.to(device), head.to(device), device, bf16=config.train.precision == "bf16")


def over_ranks(scores: SeedScores) -> list[SeedScores]:
    """Every rank's scores, on every rank."""
    if not dist.is_initialized():
        return [scores]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, scores)
    return found


def summed(parts: list[SeedScores], index: Index) -> dict[str, Any]:
    sweep = parts[0].sweep
    for part in parts[1:]:
        sweep.merge(part.sweep)
    rows, logits = ([one for part in parts for one in getattr(part, name)] for name in ("rows", "scores"))
    tag_map = mean_average_precision(np.array(logits), index.labels(rows))
    threshold, miou = sweep.best()
    truths = sum(part.with_truth for part in parts)
    return {"score": miou if truths else tag_map, "tag_map": tag_map, "threshold": threshold if truths else None}
