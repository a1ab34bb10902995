"""`python -m ktse_dist.masks --run RUN [masks.a=b ...]`: seeds and masks of a trained run, as mask shards.

A picture shard is made at a time, and what is finished stays: the same command goes on after an interruption.
masks.workers=N shares the shards out among N Ray workers, on this machine or on the cluster of RAY_ADDRESS.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from ktse_dist.config import Config
from ktse_dist.config.data import CACHE_KEYS
from ktse_dist.config.stages import Masks
from ktse_dist.config_file import merge, parse_override, told, validate
from ktse_dist.data.index import Index
from ktse_dist.data.mask_settings import keep_settings
from ktse_dist.data.mask_shards import write_mask_index
from ktse_dist.errors import STOPPED, Parser, UserError, run_main
from ktse_dist.files import remove_partials
from ktse_dist.mask_work import (
    Piece,
    Told,
    Unread,
    check_trained,
    is_made,
    label_pieces,
    make_here,
    pictures,
    pieces,
    place,
    splits,
)
from ktse_dist.run_folder import RunFolder
from ktse_dist.run_lock import alone
from ktse_dist.train import check_installed
from ktse_dist.train import train as train_jobs
from ktse_dist.training.irn import check_start, irn_job
from ktse_dist.training.job import Job
from ktse_dist.training.setup import start_logging

log = logging.getLogger("ktse")

REFINE = get_args(Masks.model_fields["refine"].annotation)
Way = Callable[[RunFolder, Config, Sequence[Piece], Told, tqdm], None]
# beside section masks: what changes no mask, only who makes them (or trains for them) and what is put up with
SETTABLE = (
    "engine.name",
    "ray.use_gpu",
    "ray.threads",
    "ray.max_failures",
    "train.hang_seconds",
    "data.max_bad_fraction",
    *CACHE_KEYS,
)


def main(arguments: list[str]) -> None:
    about, known = __doc__.split("\n")[0], told(Masks, "masks")
    parser = Parser(prog="ktse masks", description=about, epilog=known)
    parser.add_argument("--run", type=Path, required=True, help="the folder that ktse train printed")
    keys = f"keys of the masks section, {', '.join(SETTABLE)}"
    parser.add_argument("--refine", choices=REFINE, help="masks.refine: CAMs as they are, after a CRF, or by IRN")
    parser.add_argument("overrides", nargs="*", metavar="masks.a=b", help=keys)
    options = parser.parse_intermixed_args(arguments)
    folder = RunFolder(options.run.absolute())
    refine = [f"masks.refine={options.refine}"] if options.refine else []
    config = with_mask_keys(folder.read_config(), [*refine, *options.overrides])
    start_logging()
    start = time.perf_counter()
    check_trained(folder.model)
    folder.masks.mkdir(exist_ok=True)
    with alone(folder.masks, "ktse masks"):
        made = make_masks(folder, config)
    if made:  # a second call finds everything there, and its time is no figure
        folder.update_summary(seconds={"masks": round(time.perf_counter() - start, 1)})
    print(f"masks: {folder.masks}\nnext: ktse report --run {folder.path}")


def with_mask_keys(config: Config, overrides: list[str]) -> Config:
    for text in overrides:
        if not text.startswith(("masks.", *(f"{key}=" for key in SETTABLE))):
            raise UserError(
                f"'{text}': only keys of section masks, such as masks.pictures.train=50, and {', '.join(SETTABLE)} "
                "may be set here"
            )
    config = validate(merge(config.model_dump(by_alias=True), *(parse_override(o) for o in overrides)))
    weights = config.masks.irn.weights
    if not isinstance(weights, Path):
        return config
    found = {"masks": {"irn": {"weights": weights.expanduser().absolute()}}}  # the same for workers elsewhere
    return validate(merge(config.model_dump(by_alias=True), found))


def make_masks(folder: RunFolder, config: Config) -> int:
    """Make what is missing; returns how many pieces that was."""
    indices = splits(config)
    job = refinement_job(folder, config)
    for run in [folder, *([folder.baseline] if folder.baseline.model.exists() else [])]:
        keep_settings(run.masks, run.model, config.masks, config.data.resize, indices)
    made = make_refinement(folder, config, job, indices[0]) if job else 0
    made += make_pieces(folder, config, indices, pieces(folder, config, indices))
    for index in indices:
        write_mask_index(folder.masks, index)
    return made


def refinement_job(folder: RunFolder, config: Config) -> Job | None:
    """The training that masks.refine=irn still needs, if any. UserError for what would stop it, before anything is
    made."""
    if config.masks.refine != "irn" or folder.refinement.model.is_file():
        return None
    if all(is_made(folder, piece) for piece in pieces(folder, config, splits(config))):
        return None
    job = irn_job(folder, config)
    check_installed(config)
    check_start(job)
    return job


def make_refinement(folder: RunFolder, config: Config, job: Job, train: Index) -> int:
    """Labels, then a network that learns from them, which goes on where it stopped. Returns how many pieces."""
    made = make_pieces(folder, config, (train,), label_pieces(config, train), "labels")
    write_mask_index(folder.refinement_labels, train)
    log.info(f"training the refinement network: {job.folder.path}")
    train_jobs([job])
    if not folder.refinement.model.is_file():
        print(f"stopped: {folder.path}; the same command goes on where it stopped")
        raise SystemExit(STOPPED)
    return made + 1


def make_pieces(
    folder: RunFolder, config: Config, indices: Sequence[Index], planned: Sequence[Piece], of: str = "masks"
) -> int:
    """Make those that are missing; returns how many that was."""
    for where in {place(folder, piece.look) for piece in planned}:
        remove_partials(where)
    todo = [piece for piece in planned if not is_made(folder, piece)]
    unread = Unread(indices, config.data.max_bad_fraction)
    unread.look_back(folder, [piece for piece in planned if piece not in todo])
    if todo:
        with tqdm(desc=of, total=sum(pictures(todo)), unit="picture", smoothing=0.1, mininterval=1) as bar:
            way(config)(folder, config, todo, unread.add, bar)
    if count := sum(unread.counts.values()):
        print(f"{count} pictures could not be read; their masks are 255, which every reader of masks ignores")
    return len(todo)


def way(config: Config) -> Way:
    if not config.masks.workers:
        return make_here
    from ktse_dist.launch.ray_masks import make_with_ray  # only this way needs Ray installed

    return make_with_ray


if __name__ == "__main__":
    run_main(main)
