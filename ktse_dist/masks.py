"""`python -m ktse_dist.masks --run RUN [masks.a=b ...]`: seeds and masks of a trained run, as mask shards."""

import argparse
import time
from pathlib import Path

import torch
from torch import nn

from ktse_dist import models
from ktse_dist.config import Config, merge, parse_override, validate
from ktse_dist.data.index import Index
from ktse_dist.data.remote_set import locate
from ktse_dist.errors import UserError, run_main
from ktse_dist.inference.generate import SeedSource, calibrate, write_masks, write_seed_scores
from ktse_dist.inference.multiscale import CamNetwork, network_of
from ktse_dist.inference.settings import keep_settings
from ktse_dist.models.weights import Model, load_model
from ktse_dist.run_folder import RunFolder
from ktse_dist.training import checkpoint


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="ktse masks", description=__doc__, allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True, help="the folder that ktse train printed")
    parser.add_argument("overrides", nargs="*", metavar="masks.a=b", help="keys of the masks section")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run.absolute())
    config = with_mask_keys(folder.read_config(), options.overrides)
    start = time.perf_counter()
    made = make_masks(folder, config)
    if folder.baseline.model.exists():
        made += score_baseline(folder.baseline, config)
    if folder.phase1.exists():
        score_phase1(folder, config)
    if made:  # a second call finds everything there, and its time is no figure
        folder.update_summary(seconds={"masks": round(time.perf_counter() - start, 1)})
    print(f"masks: {folder.masks}\nnext: ktse report --run {folder.path}")


def with_mask_keys(config: Config, overrides: list[str]) -> Config:
    for text in overrides:
        if not text.startswith("masks."):
            raise UserError(f"'{text}': only keys of section masks may be set here, such as masks.pictures.train=50")
    return validate(merge(config.model_dump(by_alias=True), *(parse_override(o) for o in overrides)))


def make_masks(folder: RunFolder, config: Config) -> int:
    network = network_from(folder.model, config.train.precision)
    keep_settings(folder.masks, folder.model, config.masks, config.data.resize, splits(config))
    train, val = (SeedSource(network, index, config.masks, config.data.resize) for index in splits(config))
    chosen = calibrate(train, folder.masks / "calibration.json")
    return sum(write_masks(source, chosen["strength"], folder.masks) for source in (train, val))


def score_baseline(folder: RunFolder, config: Config) -> int:
    network = network_from(folder.model, config.train.precision)
    keep_settings(folder.masks, folder.model, config.masks, config.data.resize, splits(config))
    sources = (SeedSource(network, index, config.masks, config.data.resize) for index in splits(config))
    return sum(write_seed_scores(source, folder.masks) for source in sources)


def score_phase1(folder: RunFolder, config: Config) -> None:
    """Class scores on val of the network as it was before KTSE's losses, at one scale: where phase 2 starts from."""
    weights = checkpoint.load(folder.phase1).weights
    backbone, head = models.build(config.model, weights["head.fc9.weight"].shape[0] - 1, load_weights=False)
    nn.ModuleDict({"backbone": backbone, "head": head}).load_state_dict(weights)
    one_scale = config.masks.model_copy(update={"scales": (1.0,)})
    _, val = splits(config)
    source = SeedSource(inference_network(backbone, head, config.train.precision), val, one_scale, config.data.resize)
    write_seed_scores(source, folder.phase1_scores)


def splits(config: Config) -> tuple[Index, Index]:
    place = locate(config.data.path, config.data)
    return Index.open(place, "train"), Index.open(place, "val")


def network_from(model: Path, precision: str) -> CamNetwork:
    """A finished run's network, in the precision that it was trained with."""
    backbone, head, _, _ = trained_model(model)
    return inference_network(backbone, head, precision)


def trained_model(path: Path) -> Model:
    if not path.is_file():
        raise UserError(f"{path}: not there; training has not finished: run the same ktse train command again")
    return load_model(path)


def inference_network(backbone: nn.Module, head: nn.Module, precision: str) -> CamNetwork:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return network_of(backbone.to(device), head.to(device), device, bf16=precision == "bf16")


if __name__ == "__main__":
    run_main(main)
