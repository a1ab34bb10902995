"""The finished network as a file that says by itself what it is, and the card that goes with it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ktse_dist import __version__
from ktse_dist.config import Config
from ktse_dist.data.index import Index
from ktse_dist.files import remove_partials, replacing
from ktse_dist.models.weights import save_model
from ktse_dist.provenance import git_revision
from ktse_dist.reporting.model_card import write_card
from ktse_dist.run_folder import RunFolder
from ktse_dist.training.checkpoint import file_digest


def export(folder: RunFolder, weights: dict[str, Tensor], config: Config, index: Index) -> None:
    """model.safetensors, model.md and, where the data set has one, ATTRIBUTION.md."""

    def save(path: Path, made: dict[str, str]) -> None:
        save_model(path, weights, config.model, index.classes, made)

    with published(folder, index, save):
        write_card(folder, config, index)


@contextmanager
def published(folder: RunFolder, index: Index, save: Callable[[Path, dict[str, str]], None]) -> Iterator[None]:
    """The folder's model, by `save(path, metadata)`. It is the last to appear: when the block, which may read its hash
    in the summary, has ended."""
    made = {"made_by": f"ktse_dist {__version__}", "git": git_revision() or "", "index_sha256": index.sha256}
    remove_partials(folder.path, folder.model.name)
    with replacing(folder.model) as unfinished:
        save(unfinished, made)
        folder.update_summary(model_sha256=file_digest(unfinished))
        copy_attribution(folder, index)
        yield


def copy_attribution(folder: RunFolder, index: Index) -> None:
    if (index.path / folder.attribution.name).is_file():
        shutil.copyfile(index.path / folder.attribution.name, folder.attribution)
