"""The pack of free drawings of the 20 VOC classes: transparent cut-outs, each with a split, an author and a licence."""

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent / "drawings"


class Drawing(NamedTuple):
    """file: path under the pack's folder; rgba: uint8 [h,w,4], not premultiplied, long side 128."""

    file: str
    rgba: np.ndarray


@cache
def classes() -> list[str]:
    """The 20 VOC names in VOC's order, which is alphabetical."""
    return sorted({entry["class"] for entry in _entries()})


@cache
def drawings(split: str) -> dict[str, list[Drawing]]:
    """The drawings of a split by class; no drawing, and no piece of furniture in another style, is in both splits."""
    found: dict[str, list[Drawing]] = {name: [] for name in classes()}
    for entry in _entries():
        if entry["split"] == split:
            with Image.open(FOLDER / entry["file"]) as picture:
                found[entry["class"]].append(Drawing(entry["file"], np.asarray(picture.convert("RGBA"))))
    return found


def attribution() -> str:
    """Authors and licences of all drawings, one by one, as Markdown to go with every picture made of them."""
    lines = [
        "# Attribution",
        "",
        "The pictures of this data set are made of the drawings below: turned, mirrored, scaled, recoloured, cut off",
        "at edges, laid over one another and over generated scenes. Each picture's JSON names its drawings.",
        "",
    ]
    for entry in sorted(_entries(), key=lambda entry: entry["file"]):
        made = f"{entry['title']}, by {entry['author']}, {entry['licence']}, {entry['url']}; {entry['changes']}"
        lines.append(f"- `{entry['file']}`: {made}")
    return "\n".join(lines) + "\n\n" + (FOLDER / "LICENSES.md").read_text().replace("# Sources", "## Sources", 1)


@cache
def _entries() -> list[dict]:
    return json.loads((FOLDER / "index.json").read_text())
