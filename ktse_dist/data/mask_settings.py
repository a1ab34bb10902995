"""What the seeds and masks in a folder were made with. All shards of a folder are made alike, or not at all."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ktse_dist.config.stages import Masks, Segment
from ktse_dist.config_file import leaves, load_config
from ktse_dist.data.augment import Resize
from ktse_dist.data.index import Index
from ktse_dist.errors import UserError
from ktse_dist.files import read_json, write_text

FREE = {"processes", "workers"}  # change how fast masks are made, not the masks


def keep_settings(
    folder: Path,
    model: Path,
    config: Masks | Segment,
    resize: Resize,
    indices: Sequence[Index],
    val_pictures: int | None = None,
) -> None:
    """Note the settings of a new folder; UserError where an old one was made with others.

    val_pictures: where config does not say how many pictures of val there are.
    """
    section = "masks" if isinstance(config, Masks) else "segment"
    unused = {"irn"} if isinstance(config, Masks) and config.refine != "irn" else set()
    now = config.model_dump(mode="json", exclude=FREE | unused)
    with model.open("rb") as file:
        now |= {"resize": resize, "model": hashlib.file_digest(file, "sha256").hexdigest()}
    now |= {f"index of {index.split}": index.sha256 for index in indices}
    now |= {"val": val_pictures} if section == "segment" else {}
    file = folder / "settings.json"
    then = read_settings(file) if file.is_file() or holds_any(folder) else now
    for key, value in now.items():
        if key in then and then[key] != value:
            raise UserError(difference(folder, model, f"{section}.{key}", then[key], value))
    missing = [key for key in now if key not in then]
    if missing:
        older = f"lacks '{missing[0]}', so an older version made the masks in {folder}"
        raise UserError(f"{file}: {older}; delete {folder} to make them anew")
    write_text(file, json.dumps(now, indent=1) + "\n")


def difference(folder: Path, model: Path, key: str, then: Any, now: Any) -> str:
    anew = f"delete {folder} to make its masks anew"
    name = key.partition(".")[2]
    if name.startswith("index of"):
        return f"data.path: other pictures than the masks in {folder} were made of ({name}); {anew}"
    if name == "model":
        return f"{model}: another one than the masks in {folder} were made with; {anew}"
    shown = {"resize": "data.resize", "val": "masks.pictures.val"}.get(name, key)
    back = f"go on with: {masks_command(folder)}" if key.startswith("masks.") else "set it back"
    return f"{shown}: {now!r}, but the masks in {folder} were made with {then!r}; {back}, or {anew}"


def kept_settings(folder: Path) -> Masks:
    """The keys of section `masks` that a folder was made with. UserError if there is no such folder."""
    file = folder / "settings.json"
    if not (file.is_file() or holds_any(folder)):
        raise UserError(f"{folder}: no masks there; run: {masks_command(folder)}")
    kept = {key: value for key, value in read_settings(file).items() if key in Masks.model_fields}
    try:
        return Masks.model_validate(kept)
    except ValidationError as error:
        key = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{file}: damaged, {key} is wrong; delete {folder} to make its masks anew") from None


def asked(index: Index, config: Masks) -> Index:
    """Of the pictures that masks.pictures names."""
    return index.first(getattr(config.pictures, index.split))


def holds_any(folder: Path) -> bool:
    """Whether finished pieces lie there; without their settings nothing tells what they are."""
    return any(path.suffix in (".tar", ".npz") for path in folder.glob("*"))


def masks_command(folder: Path) -> str:
    """What makes the masks, or IRN's labels, that are missing in a run's folder, with the keys of the others there."""
    folder = folder.parents[1] if folder.parent.name == "irn" else folder
    run = folder.parents[1] if folder.parent.name == "baseline" else folder.parent
    command, config = ["ktse", "masks", "--run", str(run)], run / "config.yaml"
    if (folder / "settings.json").is_file() and config.is_file():
        own = load_config(config).masks.model_dump(mode="json")
        kept = own | kept_settings(folder).model_dump(mode="json", exclude_unset=True)
        command += sorted(set(leaves(kept, "masks")) - set(leaves(own, "masks")))
    return shlex.join(command)


def read_settings(file: Path) -> dict[str, Any]:
    return read_json(file, f"delete {file.parent} to make its masks anew with ktse masks")
