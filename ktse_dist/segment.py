"""`python -m ktse_dist.segment --run RUN [a.b=c ...]`: a segmentation network learnt from a run's masks, and its score.

Needs the masks that `ktse masks` made of the training pictures. Goes on where it stopped.
"""

import math
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ktse_dist.config import Config
from ktse_dist.config.data import CACHE_KEYS
from ktse_dist.config.stages import Segment
from ktse_dist.config_file import listed, merge, parse_override, told, validate
from ktse_dist.data.mask_settings import keep_settings, kept_settings
from ktse_dist.data.mask_shards import write_mask_index
from ktse_dist.data.pool import WorkerDied
from ktse_dist.errors import STOPPED, Parser, UserError, run_main
from ktse_dist.evaluation.network import Scores, network_line, network_scores
from ktse_dist.evaluation.score import BACKGROUND
from ktse_dist.files import remove_partials, write_text
from ktse_dist.inference.answers import Answers
from ktse_dist.inference.generate import parts
from ktse_dist.inference.segmentation import SegmentationNetwork
from ktse_dist.mask_work import check_trained, check_undamaged, inference_device, other_masks, splits
from ktse_dist.models.segmenter import load_segmenter
from ktse_dist.presets import SEGMENT, SEGMENT_SMALL
from ktse_dist.run_folder import RunFolder
from ktse_dist.run_lock import alone
from ktse_dist.train import check_compiler, check_installed, check_kernels, for_workers, make_folder, train
from ktse_dist.training.checkpoint import file_digest
from ktse_dist.training.job import Job, prepare
from ktse_dist.training.segment_task import SegmentTask
from ktse_dist.training.setup import start_logging

SMALL = "efficientnet_lite0"
SECTIONS = ("segment", "train", "optimiser", "model", "engine", "ray", "kernels")
KEYS = ("data.crop", "data.workers", "data.max_bad_fraction", *CACHE_KEYS, "masks.processes")
# What the training does not look at, or only the test: these may change when it goes on.
# model.weights: only the first step looks at them, and by default their path is that of the run, which may be moved
FREE = frozenset(
    {"method", "model.weights", "segment.scales", "segment.crf", "segment.long_side", "segment.max_pixels"}
)
TRAINING = f"How it is trained, whatever the run says: {listed(SEGMENT)}; for {SMALL}: {listed(SEGMENT_SMALL)}"


def main(arguments: list[str]) -> None:
    what, own = __doc__.split("\n")[0], f"{told(Segment, 'segment')}. {TRAINING}"
    parser = Parser(prog="ktse segment", description=what, epilog=own)
    parser.add_argument("--run", type=Path, required=True, help="the folder that ktse train printed")
    about = f"keys of the sections {', '.join(SECTIONS)}, and {', '.join(KEYS)}, over those of the run"
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help=about)
    options = parser.parse_intermixed_args(arguments)
    folder = RunFolder(options.run.absolute())
    config = stage2(folder, options.overrides)
    start_logging()
    job = job_of(folder, config)
    check_installed(config)
    check_compiler(config)
    check_kernels(config)
    prepare(job)
    if config.model.weights == folder.model and not job.folder.model.exists():
        check_trained(folder.model)
    make_folder(job.folder)
    with alone(job.folder.path, "ktse segment"):
        keep_masks(folder)
        train([job])
        if not job.folder.model.exists():
            print(f"stopped: {job.folder.path}; the same command goes on where it stopped")
            raise SystemExit(STOPPED)
        found = test(folder, config)
    print(f"{network_line(found)}\nnetwork: {job.folder.model}\nits masks of val: {job.folder.masks}")
    print(f"next: ktse predict PICTURES --model {job.folder.model}")


def stage2(folder: RunFolder, overrides: list[str]) -> Config:
    """The run's own config under the published stage 2, or its small form where the run's backbone is the small one.

    The small form starts from the run's own network: it knows the classes already, ImageNet's has to learn them from a
    few masks. Overrides win over both. UserError for a key that may not be set here, and for values that do not go
    together.
    """
    run = folder.read_config()
    for text in overrides:
        key = text.partition("=")[0]
        if key.partition(".")[0] not in SECTIONS and key not in KEYS:
            raise UserError(f"'{text}': only keys of {', '.join(SECTIONS)}, and {', '.join(KEYS)} may be set here")
    base = run.model_dump(by_alias=True)
    preset = SEGMENT
    if run.model.backbone == SMALL:
        own = {"data": {"crop": run.data.crop}, "model": {"weights": folder.model}}
        preset = merge(SEGMENT, SEGMENT_SMALL, own)
    config = for_workers(validate(merge(base, preset, *(parse_override(text) for text in overrides))))
    check_batch(config)
    if config.train.recompute and config.model.backbone in ("resnet50", "resnet101"):
        raise UserError(
            "train.recompute: stage 2 trains batch norms, which would count every picture twice; leave it out and "
            "lower train.batch"
        )
    return config


def check_batch(config: Config) -> None:
    ray = config.ray
    worlds = [1] if config.engine.name == "torch" else range(ray.fewest, ray.most + 1)
    least = math.lcm(*(2 * world for world in worlds))
    for size in (size for _, size in config.train.batch if size % least):
        raise UserError(
            f"train.batch has a batch of {size}, and pictures are mixed in pairs on each of {worlds[-1]} workers"
            f"{', or of fewer' if len(worlds) > 1 else ''}; allowed are multiples of {least}: change train.batch or "
            "ray.workers"
        )
    if config.train.micro_batch:
        raise UserError("train.micro_batch: stage 2 mixes pictures of a whole batch; leave it out or lower train.batch")


def job_of(folder: RunFolder, config: Config) -> Job:
    count = kept_settings(folder.masks).pictures.train
    anew = f"delete {folder.segment.path}"
    task = SegmentTask(folder.masks, count)
    return Job(config, folder.segment, task=task, forks=False, free=FREE, fresh=anew)


def keep_masks(folder: RunFolder) -> None:
    """Note which masks a network is learnt from; UserError where it began with others."""
    if others := other_masks(folder):
        raise UserError(others)
    write_text(folder.segment.learnt_masks_file, f"{file_digest(folder.masks / 'train.masks.json')}\n")


def test(folder: RunFolder, config: Config) -> dict[str, Any]:
    """Masks of the val pictures into the stage's folder, and their score into the run's summary.json."""
    start, own = time.perf_counter(), folder.segment
    check_undamaged(own.model)
    model = load_segmenter(own.model)
    _, val = splits(config)
    of_masks = kept_settings(folder.masks)
    planned = list(parts(val, of_masks))
    keep_settings(own.masks, own.model, config.segment, config.data.resize, [val], of_masks.pictures.val)
    remove_partials(own.masks)
    device = inference_device()
    networks = [network.to(device) for network in model.networks]
    network = SegmentationNetwork(networks, device, config.train.precision == "bf16")
    answers = Answers(network, val, config.segment, config.masks.processes, own.masks)
    scores, made = Scores(len(val.classes)), 0
    with tqdm(desc="test", total=sum(len(part.rows) for part in planned), unit="picture", mininterval=1) as bar:
        for part in planned:
            try:
                made += answers.make(part, bar.update)
            except WorkerDied as died:
                raise UserError(f"masks.processes: {died}; the same command goes on") from None
            except torch.OutOfMemoryError as error:
                why = str(error).partition(". ")[0]
                mend = f"delete {own.masks} and go on with a lower segment.max_pixels"
                raise UserError(f"segment.max_pixels: no room on the GPU ({why}); {mend}") from error
            scores.add(answers.scores_file(part))
    write_mask_index(own.masks, val)
    fields = network_scores(scores, val.classes)
    if scores.final.pictures:
        scores.final.write_table(own.confusion, [BACKGROUND, *val.classes])
    seconds = own.spent("segment")
    if made:  # a second call finds everything there, and its time is no figure
        seconds["segment_test"] = round(time.perf_counter() - start, 1)
    folder.update_summary(**fields, seconds=seconds)
    return fields


if __name__ == "__main__":
    run_main(main)
