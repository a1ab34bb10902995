"""Finished masks in the formats of other tools. Each writer fills a folder from a stream of pictures. Free of torch.

Names are keys of the data set (relative paths without dots), values of masks are class + 1, 0 background, 255 no
answer. Only the palette PNGs can say "no answer"; elsewhere such pixels belong to no class.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from xml.sax.saxutils import quoteattr

import numpy as np
from pycocotools import mask as rle

from ktse_dist.data.decode import decode_mask
from ktse_dist.data.index import SPLITS
from ktse_dist.data.palette import IGNORE
from ktse_dist.inference.polygons import polygons


class Names(NamedTuple):
    """What values mean. classes: without the background; palette: colours of the background and of each class."""

    classes: Sequence[str]
    palette: Sequence[Sequence[int]]


class Labelled:
    """A picture's mask. content: a palette PNG; source: where the picture came from, as the data set tells it."""

    def __init__(self, split: str, key: str, source: str, content: bytes):
        self.split, self.key, self.source, self.content = split, key, source, content

    @cached_property
    def mask(self) -> np.ndarray:
        """uint8 [H,W]"""
        return decode_mask(self.content)

    def regions(self) -> Iterator[tuple[int, np.ndarray]]:
        """(0-based class, its pixels bool [H,W]) of each class that the mask shows."""
        for value in np.unique(self.mask).tolist():
            if 0 < value < IGNORE:
                yield value - 1, self.mask == value


Writer = Callable[[Path, Names, Iterable[Labelled]], None]


def write_png(folder: Path, names: Names, pictures: Iterable[Labelled]) -> None:
    """Palette PNGs in VOC's layout, SegmentationClass/KEY.png and lists of the splits, with CVAT's labelmap.txt."""
    for split, members in groupby(pictures, key=lambda picture: picture.split):
        with new_file(folder / "ImageSets" / "Segmentation" / f"{split}.txt") as listing:
            for picture in members:
                listing.write(f"{picture.key}\n")
                new_bytes(folder / "SegmentationClass" / f"{picture.key}.png", picture.content)
    with new_file(folder / "labelmap.txt") as file:
        file.write("# label:color_rgb:parts:actions\n")
        for name, colour in zip(["background", *names.classes], names.palette, strict=True):
            file.write(f"{plain(name)}:{','.join(map(str, colour))}::\n")


def plain(name: str) -> str:
    """A class name that cannot be taken for another column or line."""
    return printable(name).translate({ord(letter): "_" for letter in ":#"})


def write_coco(folder: Path, names: Names, pictures: Iterable[Labelled]) -> None:
    """SPLIT.json with one run-length annotation for each class of a picture; category ids are class + 1."""
    for split, members in groupby(pictures, key=lambda picture: picture.split):
        listed: list[dict[str, Any]] = []  # the pictures stand after the annotations, which are too many to keep
        number = 0
        with new_file(folder / f"{split}.json") as file:
            file.write('{"annotations": [')
            for row, picture in enumerate(members, 1):
                listed.append(about(row, picture))
                for chosen, region in picture.regions():
                    file.write(",\n" if number else "\n")
                    number += 1
                    json.dump(annotation(number, row, chosen, region), file)
            categories = [{"id": n, "name": name} for n, name in enumerate(names.classes, 1)]
            file.write(f'],\n"images": {json.dumps(listed)},\n"categories": {json.dumps(categories)}}}\n')


def about(row: int, picture: Labelled) -> dict[str, Any]:
    height, width = picture.mask.shape
    name = f"{picture.key}.jpg"
    return {"id": row, "file_name": name, "height": height, "width": width, "source": picture.source}


def annotation(number: int, picture: int, chosen: int, region: np.ndarray) -> dict[str, Any]:
    encoded = rle.encode(np.asfortranarray(region, dtype=np.uint8))
    return {
        "id": number,
        "image_id": picture,
        "category_id": chosen + 1,
        "iscrowd": 0,
        "area": int(region.sum()),
        "bbox": rle.toBbox(encoded).tolist(),
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
    }


def write_yolo(folder: Path, names: Names, pictures: Iterable[Labelled]) -> None:
    """labels/SPLIT/KEY.txt, a polygon without holes a line: class, then x and y over width and height; data.yaml, where
    a split that is not there stands for the other one, since readers of YOLO's format want both."""
    about: dict[str, Any] = {"names": list(names.classes)}
    for picture in pictures:
        about[picture.split] = f"images/{picture.split}"
        height, width = picture.mask.shape
        with new_file(folder / "labels" / picture.split / f"{picture.key}.txt") as file:
            for chosen, region in picture.regions():
                for outline in polygons(region):
                    # a quarter of a pixel further, so that readers that cut and readers that round find the same
                    points = ((outline + 0.25) / (width, height)).reshape(-1)
                    file.write(f"{chosen} {' '.join(f'{value:.6f}' for value in points)}\n")
    places = [place for key, place in about.items() if key != "names"]
    about |= {split: about.get(split, place) for place in places[:1] for split in SPLITS}
    with new_file(folder / "data.yaml") as file:
        file.writelines(f"{key}: {json.dumps(value)}\n" for key, value in about.items())  # JSON is YAML, too


def write_label_studio(folder: Path, names: Names, pictures: Iterable[Labelled]) -> None:
    """SPLIT.json: tasks with polygons as predictions, to be corrected; config.xml: the labels of the project."""
    for split, members in groupby(pictures, key=lambda picture: picture.split):
        with new_file(folder / f"{split}.json") as file:
            for number, picture in enumerate(members):
                file.write("[\n" if not number else ",\n")
                json.dump(task(picture, names), file)
            file.write("\n]\n")
    labels = "".join(f"<Label value={quoteattr(printable(name))}/>" for name in names.classes)
    with new_file(folder / "config.xml") as file:
        file.write(
            '<View><Image name="image" value="$image"/>'
            f'<PolygonLabels name="label" toName="image">{labels}</PolygonLabels></View>\n'
        )


def task(picture: Labelled, names: Names) -> dict[str, Any]:
    """The picture's address is where Label Studio serves local files from; the folder there is the user's to choose."""
    height, width = picture.mask.shape
    result = [
        {
            "from_name": "label",
            "to_name": "image",
            "type": "polygonlabels",
            "original_width": width,
            "original_height": height,
            "value": {
                "points": (100 * outline / (width, height)).round(4).tolist(),
                "polygonlabels": [printable(names.classes[chosen])],
            },
        }
        for chosen, region in picture.regions()
        for outline in polygons(region)
    ]
    address = f"/data/local-files/?d=images/{picture.split}/{picture.key}.jpg"
    return {"data": {"image": address, "source": picture.source}, "predictions": [{"result": result}]}


def printable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def new_file(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8")


def new_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


FORMATS: dict[str, Writer] = {
    "png": write_png,
    "coco": write_coco,
    "yolo": write_yolo,
    "label-studio": write_label_studio,
}
