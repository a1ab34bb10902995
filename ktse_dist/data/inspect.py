"""`python -m ktse_dist.data.inspect DATASET`: what is in a packed data set, and with --verify whether it is whole."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ktse_dist.data.census import census, same_pictures
from ktse_dist.data.examine import Findings, examine
from ktse_dist.data.index import Index, read_dataset
from ktse_dist.data.overview import overview
from ktse_dist.data.pool import WorkerDied, ordered_map
from ktse_dist.data.verify import Problem, Problems, check_files, check_index, is_readable
from ktse_dist.errors import Parser, UserError, run_main


def parser() -> Parser:
    whole = Parser(
        prog="ktse inspect",
        description="Count what is in a packed data set; exit status 1 if anything in it is wrong.",
    )
    whole.add_argument("dataset", metavar="DATASET", help="a folder that `ktse pack` wrote")
    whole.add_argument("--verify", action="store_true", help="check every hash, every member and every tag")
    whole.add_argument("--sheet", type=Path, metavar="FILE.png", help="also write a contact sheet")
    whole.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    whole.add_argument("--workers", type=int, metavar="N", help="processes; changes only the time (default: one a CPU)")
    return whole


def main(arguments: list[str]) -> None:
    options = parser().parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        raise UserError(f"--workers: {options.workers} is too small; allowed is 1 or more")
    if options.sheet:
        check_sheet(options.sheet)
    if "://" in options.dataset:
        raise UserError(
            f"{options.dataset}: an address, and whole folders are inspected: do it where the set was packed. "
            "What comes from an address is checked as it comes"
        )
    dataset = Path(options.dataset)
    try:
        found = inspect(dataset, options.verify, options.workers or os.cpu_count() or 1)
    except WorkerDied as died:
        raise UserError(f"--workers: {died}") from None
    print(json.dumps(found) if options.json else overview(found))
    if options.sheet:
        from ktse_dist.data.pack.preview import contact_sheet  # not above: worker processes import this file, too

        try:
            contact_sheet(dataset, options.sheet)
        except OSError as error:
            raise UserError(f"--sheet: {options.sheet} cannot be written ({error.strerror})") from None
    if found["problem_count"]:
        raise SystemExit(1)


def check_sheet(file: Path, option: str = "--sheet") -> None:
    if file.suffix != ".png" or file.is_dir() or not file.absolute().parent.is_dir():
        raise UserError(f"{option}: {file} cannot be written; give a name that ends in .png in a folder that is there")


def inspect(dataset: Path, verify: bool, workers: int = 1) -> dict[str, Any]:
    """Figures of each split, and what is wrong. UserError for a folder that is no data set; damage is only listed.

    The first problems are named, all are counted. Without `verify` the indices are checked, but of the shards only what
    the census reads. Memory: a few numbers a picture, for finding the same one twice.
    """
    about = read_dataset(dataset)
    problems = Problems()
    problems.extend(check_files(dataset, about))
    indices = _indices(dataset, about, problems)
    names = {shard["sha256"]: shard["name"] for entry in about["splits"].values() for shard in entry["shards"]}
    total = sum(len(index) for index in indices.values())
    splits = {}
    with tqdm(total=total, desc="verify" if verify else "inspect", unit="picture") as progress:
        for split, index in indices.items():
            findings = _examine_all(index, verify, names, workers, progress)
            splits[split] = census(index, findings)
            problems.join(findings.problems)
    both = same_pictures(indices["train"], indices["val"]) if {"train", "val"} <= set(indices) else 0
    return {
        "dataset": str(dataset),
        "verified": verify,
        "classes": about["classes"],
        "splits": splits,
        "val_pictures_in_train": both,
        "problem_count": problems.count,
        "problems": [problem._asdict() for problem in problems.listed],
    }


def _indices(dataset: Path, about: dict[str, Any], problems: Problems) -> dict[str, Index]:
    """The indices that can be read; what is wrong with any is added to `problems`."""
    found = {}
    for split, entry in about["splits"].items():
        file = f"{split}.index"
        try:
            index = Index.open(dataset, split)
        except UserError as error:
            problems.add(Problem(file, None, str(error).removeprefix(f"{dataset / file}: ")))
            continue
        if not is_readable(index):
            problems.add(Problem(file, None, "its keys cannot be read; pack the data set again"))
            continue
        found[split] = index
        problems.extend(check_index(index, entry))
    return found


def _examine_all(index: Index, verify: bool, names: dict[str, str], workers: int, progress: tqdm) -> Findings:
    numbers = range(len(index.shards))
    whole, workers = Findings(), min(workers, len(numbers))
    for findings in ordered_map(partial(examine, index, verify, names), numbers, 0 if workers == 1 else workers):
        whole.add(findings)
        progress.update(findings.pictures)
    return whole


if __name__ == "__main__":
    run_main(main)
