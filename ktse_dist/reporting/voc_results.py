"""A prediction as the folder that PASCAL VOC's test server takes (competition 6: any training data)."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ktse_dist.data.pack.voc import CLASSES, read_list
from ktse_dist.data.search import Found
from ktse_dist.errors import UserError
from ktse_dist.reporting.prediction import PARTIAL, mask_file

RESULTS = Path("results", "VOC2012", "Segmentation", "comp6_test_cls")


def check_classes(classes: Sequence[str]) -> None:
    """UserError unless mask values mean to the server what they mean here."""
    if tuple(classes) != CLASSES:
        raise UserError(
            f"--voc-list: the network knows {len(classes)} classes ({', '.join(classes[:3])}, ...), the server takes "
            "the 20 of VOC in their own order; leave --voc-list out, or give a network of a set of ktse pack voc"
        )


def listed(found: Sequence[Found], file: Path) -> list[Found]:
    """The pictures that a list names, by file name. UserError for a name without a picture, or with several."""
    if not file.is_file():
        raise UserError(f"--voc-list {file}: no such file; give a list with one name a line")
    places: dict[str, list[Found]] = {}
    for picture in found:
        places.setdefault(picture.path.stem, []).append(picture)
    names = [name for name, *_ in read_list(file, "--voc-list")]
    if not names:
        raise UserError(f"--voc-list {file}: names no picture; give a list with one name a line")
    for name in names:
        if len(places.get(name, ())) != 1:
            raise UserError(f"--voc-list {file}: {len(places.get(name, ()))} pictures are called '{name}'; give one")
    return [places[name][0] for name in names]


def write_results(out: Path, names: Mapping[str, str]) -> Path:
    """Copy masks below `out` to RESULTS there; names: VOC's name -> the prediction's. Returns that folder."""
    folder, unfinished = out / RESULTS, out / PARTIAL / RESULTS.name
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, predicted in names.items():
        shutil.copyfile(out / mask_file(predicted), unfinished / f"{name}.png")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return unfinished.rename(folder)
