"""The finished network as a file that says by itself what it is, and the card that goes with it."""

import os
import shutil

from torch import Tensor

from ktse_dist import __version__
from ktse_dist.config import Config
from ktse_dist.data.index import Index
from ktse_dist.models.weights import save_model
from ktse_dist.provenance import git_revision
from ktse_dist.reporting.model_card import write_card
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.checkpoint import file_digest


def export(folder: RunFolder, weights: dict[str, Tensor], config: Config, index: Index) -> None:
    """model.safetensors, model.md and, where the data set has one, ATTRIBUTION.md. The model is the last to appear."""
    made = {"made_by": f"ktse_dist {__version__}", "git": git_revision() or "", "index_sha256": index.sha256}
    unfinished = folder.model.with_name(f".unfinished-{folder.model.name}")
    save_model(unfinished, weights, config.model, index.classes, made)
    folder.update_summary(model_sha256=file_digest(unfinished))
    copy_attribution(folder, index)
    write_card(folder, config, index)
    os.replace(unfinished, folder.model)


def copy_attribution(folder: RunFolder, index: Index) -> None:
    if (index.path / folder.attribution.name).is_file():
        shutil.copyfile(index.path / folder.attribution.name, folder.attribution)
