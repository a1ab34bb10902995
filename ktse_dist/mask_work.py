"""What `ktse masks` makes of a run, in pieces that any process may make: a network's look at one picture shard.

A piece is finished when its files are there, so whoever starts next makes the others.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

import kernels
from kernels.dispatch import check_device
from ktse_dist import models
from ktse_dist.config import Config
from ktse_dist.data.bad_samples import FEW
from ktse_dist.data.index import Index
from ktse_dist.data.pool import WorkerDied
from ktse_dist.data.remote_set import locate
from ktse_dist.errors import UserError
from ktse_dist.evaluation.counts import read_counts
from ktse_dist.inference.boundaries import BoundaryNetwork, boundary_network_of
from ktse_dist.inference.calibration import calibrate, truth_rows
from ktse_dist.inference.generate import (
    Part,
    SeedSource,
    Tick,
    Unreadable,
    label_part,
    mask_part,
    parts,
    score_part,
    scores_file,
)
from ktse_dist.inference.multiscale import CamNetwork, network_of
from ktse_dist.models.refinement import load_refinement
from ktse_dist.models.weights import Model, load_model
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint
from ktse_dist.training.checkpoint import file_digest

log = logging.getLogger("ktse")

Look = Literal["labels", "calibration", "masks", "baseline", "phase1"]


class Piece(NamedTuple):
    """look: which network, and what for. `baseline`, `phase1`: their seeds are only scored.

    `calibration` chooses the strength of all masks, and so comes before them. `labels`: what IRN learns from.
    """

    look: Look
    split: str
    part: Part

    def __str__(self) -> str:
        return self.look if self.look == "calibration" else f"{self.look} of {self.part.name}"


Told = Callable[[Piece, list[Unreadable]], None]  # called when a piece is finished


def splits(config: Config) -> tuple[Index, Index]:
    place = locate(config.data.path, config.data)
    return Index.open(place, "train"), Index.open(place, "val")


def pieces(folder: RunFolder, config: Config, indices: Sequence[Index]) -> list[Piece]:
    """All pieces of a run in a good order, finished or not."""
    train, val = indices
    found = [Piece("calibration", "train", Part("calibration", truth_rows(train, config.masks)))]
    found += [Piece("masks", index.split, part) for index in indices for part in parts(index, config.masks)]
    if folder.baseline.model.exists():
        found += [Piece("baseline", index.split, part) for index in indices for part in parts(index, config.masks)]
    if folder.phase1.exists():
        found += [Piece("phase1", "val", part) for part in parts(val, config.masks)]
    return found


def label_pieces(config: Config, train: Index) -> list[Piece]:
    return [Piece("labels", "train", part) for part in parts(train, config.masks)]


def place(folder: RunFolder, look: Look) -> Path:
    """Where the files of a piece lie."""
    elsewhere = {
        "baseline": folder.baseline.masks,
        "phase1": folder.phase1_scores,
        "labels": folder.refinement_labels,
    }
    return elsewhere.get(look, folder.masks)


def is_made(folder: RunFolder, piece: Piece) -> bool:
    if piece.look == "calibration":
        return calibration_file(folder).exists()
    where, name = place(folder, piece.look), piece.part.name
    files = [where / f"{name}.tar"] if piece.look in ("masks", "labels") else []
    files += [scores_file(where, name)] if piece.look != "labels" else []
    return all(file.exists() for file in files)


def calibration_file(folder: RunFolder) -> Path:
    return folder.masks / "calibration.json"


class Maker:
    """One process that makes pieces; keeps the network of the last one."""

    def __init__(self, folder: RunFolder, config: Config):
        self._folder, self._config = folder, config
        self._indices = {index.split: index for index in splits(config)}
        self._network: tuple[str, CamNetwork] | None = None
        self._sources: dict[tuple[str, str], SeedSource] = {}

    def make(self, piece: Piece, tick: Tick) -> list[Unreadable]:
        """Make one piece; returns its pictures that cannot be read. UserError for a disk that is full, and the like."""
        try:
            return self._make(piece, tick)
        except OSError as error:
            raise UserError(f"{piece}: {error}; mend that, the same command goes on from what is finished") from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{piece}: no room on the GPU ({str(error).partition('. ')[0]}); delete the masks and make them with a "
                "lower masks.max_pixels"
            ) from error

    def _make(self, piece: Piece, tick: Tick) -> list[Unreadable]:
        source, folder = self._source(piece), place(self._folder, piece.look)
        if piece.look in ("baseline", "phase1"):
            return score_part(source, piece.part, folder, tick)
        if piece.look == "labels":
            label_part(source, piece.part, folder, tick)
            return []
        chosen = calibrate(source, calibration_file(self._folder), tick)
        return mask_part(source, chosen["strength"], piece.part, folder, tick) if piece.look == "masks" else []

    def _source(self, piece: Piece) -> SeedSource:
        name = "masks" if piece.look == "calibration" else piece.look
        if self._network is None or self._network[0] != name:
            self._sources.clear()
            self._network = name, network_for(self._folder, self._config, name)
        if (name, piece.split) not in self._sources:
            config = self._config.masks
            if name == "phase1":  # a figure to compare with, at one scale
                config = config.model_copy(update={"scales": (1.0,)})
            index, resize = self._indices[piece.split], self._config.data.resize
            refinement = self._refinement() if name == "masks" and config.refine == "irn" else None
            self._sources[name, piece.split] = SeedSource(self._network[1], index, config, resize, refinement)
        return self._sources[name, piece.split]

    def _refinement(self) -> BoundaryNetwork:
        return refinement_from(self._folder.refinement.model, self._config.train.precision)


def refinement_from(model: Path, precision: str) -> BoundaryNetwork:
    """A finished refinement network, in the precision that it was trained with."""
    backbone, head, least = load_refinement(model)
    device = inference_device()
    return boundary_network_of(backbone.to(device), head.to(device), least, device, bf16=precision == "bf16")


def network_for(folder: RunFolder, config: Config, look: Look) -> CamNetwork:
    if look == "phase1":
        return phase1_network(folder, config)
    return network_from((folder.baseline if look == "baseline" else folder).model, config)


def phase1_network(folder: RunFolder, config: Config) -> CamNetwork:
    """The network as it was before KTSE's losses: where phase 2 starts from."""
    weights = checkpoint.load(folder.phase1).weights
    backbone, head = models.build(config.model, weights["head.fc9.weight"].shape[0] - 1, load_weights=False)
    nn.ModuleDict({"backbone": backbone, "head": head}).load_state_dict(weights)
    return inference_network(backbone, head, config)


def network_from(model: Path, config: Config) -> CamNetwork:
    """A finished run's network."""
    backbone, head, _, _ = trained_model(model)
    return inference_network(backbone, head, config)


def trained_model(path: Path) -> Model:
    check_trained(path)
    return load_model(path)


def check_trained(path: Path) -> None:
    """UserError for a network that is not there, or another one than its folder's summary.json tells of."""
    if not path.is_file():
        raise UserError(f"{path}: not there; training has not finished: run the same ktse train command again")
    check_undamaged(path)


def other_masks(folder: RunFolder) -> str | None:
    """The sentence for a run whose segmentation network began with other masks than those that are there."""
    index, own = folder.masks / "train.masks.json", folder.segment
    if not index.is_file() or own.learnt_masks in (None, file_digest(index)):
        return None
    return (
        f"{folder.masks}: other masks than those that the network in {own.path} learns from; delete {own.path} and "
        "give ktse segment to train anew"
    )


def check_undamaged(path: Path) -> None:
    """UserError for the network of a run's folder that its summary.json does not know; of a copy nothing is known."""
    folder = RunFolder(path.absolute().parent)
    known = folder.read_summary().get("model_sha256") if path.name == folder.model.name else None
    if known and known != file_digest(path):
        raise UserError(
            f"{path}: damaged, or another network than summary.json beside it tells of; delete it and give the command "
            "that trained it again, which writes it anew"
        )


def inference_network(backbone: nn.Module, head: nn.Module, config: Config) -> CamNetwork:
    """The run's network in the precision that it was trained with, and this process in the run's kernels.mode."""
    device = inference_device()
    use_kernels(config.kernels.mode, device)
    return network_of(backbone.to(device), head.to(device), device, bf16=config.train.precision == "bf16")


def use_kernels(mode: str, device: torch.device) -> None:
    """UserError for a mode that this machine cannot run."""
    try:
        kernels.set_mode(mode)
        check_device(device.type == "cuda")
    except ValueError as error:
        raise UserError(f"{error}; or set KTSE_KERNELS=auto in the environment") from None


def inference_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Unread:
    """The pictures without a real mask, named and counted against data.max_bad_fraction of each split."""

    def __init__(self, indices: Sequence[Index], fraction: float):
        self._pictures = {index.split: len(index) for index in indices}
        self._fraction, self.counts = fraction, dict.fromkeys(self._pictures, 0)

    def look_back(self, folder: RunFolder, made: Sequence[Piece]) -> None:
        """Count those of finished pieces."""
        for piece in made:
            if piece.look == "masks":
                mend = "delete it and give the same command again"
                counted = read_counts(scores_file(folder.masks, piece.part.name), mend)
                self._count(piece, len(counted.get("unreadable", ())), "named when its masks were made")

    def add(self, piece: Piece, found: list[Unreadable]) -> None:
        if piece.look != "masks":
            return  # the same pictures, seen by other networks
        for one in found:
            log.warning("an empty mask, 255 everywhere: %s", one.why)
        self._count(piece, len(found), found[-1].why if found else "")

    def _count(self, piece: Piece, found: int, last: str) -> None:
        self.counts[piece.split] += found
        count, of = self.counts[piece.split], self._pictures[piece.split]
        allowed = max(FEW, int(self._fraction * of))
        if count > allowed:
            raise UserError(
                f"data.max_bad_fraction: {count:,} of {of:,} pictures of split '{piece.split}' could not be read, "
                f"allowed are {allowed:,} ({last}); copy or pack the data set again and delete the masks, or raise it"
            )


def make_here(folder: RunFolder, config: Config, todo: Sequence[Piece], told: Told, bar: tqdm) -> None:
    """One piece after the other in this process."""
    maker = Maker(folder, config)
    try:
        for piece in todo:
            told(piece, maker.make(piece, bar.update))
    except WorkerDied as died:
        raise UserError(f"masks.processes: {died}; the same command goes on from what is finished") from None


def pictures(todo: Sequence[Piece]) -> Iterator[int]:
    return (len(piece.part.rows) for piece in todo)
