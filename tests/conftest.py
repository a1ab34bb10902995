"""Fixtures that every test may use."""

import os

if os.environ.get("KTSE_GPU_TESTS") != "1":  # tests/gpu, which `make test-gpu` runs alone
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels then run on CPU tensors
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a machine with a GPU tests what one without it tests

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import settings
from PIL import Image
from pycocotools import mask as rle

from ktse_dist.data.pack.mask_png import mask_png

settings.register_profile("ktse", deadline=None)  # a busy machine is no failure
settings.load_profile("ktse")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """`golden("step")`: the arrays that the published code produced (tests/golden/README.md)."""

    def load(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return dict(arrays)

    return load


class S3:
    """An S3 server on loopback that may go away and come back at the same port; what it holds is this process's."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()

    @property
    def client(self):
        import boto3

        return boto3.client("s3")


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """The session's server, which processes find by their environment."""
    server = S3()
    known = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (known | {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}).items():
            environment.setenv(name, value)
        yield server
    server.stop()


def write_picture(file: Path, number: int, height: int = 48, width: int = 60) -> None:
    """A JPEG of smooth noise; another number, another picture."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    picture = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(simplejpeg.encode_jpeg(picture, 90, "RGB", "420"))


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory) -> Callable[..., Path]:
    """`untrained_run("name", train=24, val=4)`: the folder of a run as `ktse train` leaves it, but untrained.

    Pictures of 60x72 with a coloured square, tagged and with ground truth, about 6 to a shard.
    """

    def make(name: str, *keys: str, train: int = 24, val: int = 4) -> Path:
        import torch
        from torch import nn

        from ktse_dist import models
        from ktse_dist.config.method import Network
        from ktse_dist.config_file import load_config
        from ktse_dist.data.pack.writer import new_dataset, write_about, write_split
        from ktse_dist.models.weights import save_model
        from ktse_dist.run_folder import RunFolder

        root, classes = tmp_path_factory.mktemp("runs"), ["red", "green", "blue"]
        with new_dataset(root / "data") as building:
            splits = {
                split: write_split(building, split, map(square, range(count)), len(classes), 4 * 4096)
                for split, count in (("train", train), ("val", val))
            }
            write_about(building, classes, splits)
        folder, network = RunFolder(root / name), Network(weights="none")
        given = [f"data.path={root / 'data'}", f"run.root={root}", f"run.name={name}", "model.weights=none"]
        given += ["train.precision=fp32", "masks.scales=[1.0]", "masks.refine=none", "masks.processes=0"]
        given += ["masks.pictures.train=null", "masks.pictures.val=null"]  # the demo takes a few
        folder.write_config(load_config(None, [*given, *keys]))
        folder.metrics_file.write_text(json.dumps({"step": 1, "epoch": 0, "phase": 1, "cls": 1.0, "lr": 0.1}) + "\n")
        folder.update_summary(images_per_second=12.3, seconds={"train": 1.0})
        torch.manual_seed(0)
        backbone, head = models.build(network, len(classes))
        weights = nn.ModuleDict({"backbone": backbone, "head": head}).state_dict()
        save_model(folder.model, weights, network, classes)
        return folder.path

    return make


def square(number: int):
    from ktse_dist.data.pack.writer import Sample

    rgb = np.random.default_rng(number).integers(0, 90, (60, 72, 3), np.uint8)
    mask = np.zeros((60, 72), np.uint8)
    rgb[15:40, 20:50, number % 3], mask[15:40, 20:50] = 230, number % 3 + 1
    picture = simplejpeg.encode_jpeg(rgb, 60, "RGB", "420")
    return Sample(f"{number:05}", picture, [number % 3], mask_png(mask), "drawn by the test")


@pytest.fixture(scope="session")
def voc_tree(tmp_path_factory) -> Callable[..., Path]:
    """`voc_tree(train=6, val=3)`: a new VOCdevkit in the layout of VOC2012 with train_aug.txt.

    Picture n shows class n % 20 and, marked difficult, class (n + 7) % 20; its mask shows both, with a border of 255.
    """

    def make(train: int = 6, val: int = 3) -> Path:
        root = tmp_path_factory.mktemp("voc") / "VOCdevkit" / "VOC2012"
        names = [f"2008_{n:06d}" for n in range(train + val)]
        for number, name in enumerate(names):
            write_picture(root / "JPEGImages" / f"{name}.jpg", number)
            voc_annotation(root, name, [number % 20, (number + 7) % 20])
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        pair = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png\n"
        (lists / "train_aug.txt").write_text("".join(pair.format(name) for name in reversed(names[:train])))
        (lists / "val.txt").write_text("".join(f"{name}\n" for name in names[train:]))
        return root.parent

    return make


def voc_annotation(root: Path, name: str, labels: list[int]) -> None:
    from ktse_dist.data.pack.voc import CLASSES

    mask = np.zeros((48, 60), np.uint8)
    for left, label in zip((4, 34), labels, strict=True):
        mask[9:41, left - 1 : left + 21] = 255
        mask[10:40, left : left + 20] = label + 1
    objects = "".join(
        f"<object><name>{CLASSES[label]}</name><difficult>{difficult}</difficult><part><name>head</name></part></object>"
        for difficult, label in enumerate(labels)
    )
    for file, content in (
        (root / "Annotations" / f"{name}.xml", f"<annotation>{objects}</annotation>".encode()),
        (root / "SegmentationClassAug" / f"{name}.png", mask_png(mask)),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.fixture(scope="session")
def coco_tree(tmp_path_factory) -> Callable[..., Path]:
    """`coco_tree(train=6, val=3)`: a new COCO folder in the layout of 2014, 4 categories with gaps between their ids.

    Each picture has two overlapping polygons, every third a crowd and a compressed run length; one more picture in
    each split has no annotation.
    """

    def make(train: int = 6, val: int = 3) -> Path:
        root = tmp_path_factory.mktemp("coco") / "COCO"
        (root / "annotations").mkdir(parents=True)
        for split, count in (("train2014", train), ("val2014", val)):
            about = coco_instances(root, split, count)
            (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(about))
        return root

    return make


def coco_instances(root: Path, split: str, count: int) -> dict:
    images, annotations = [], []
    for number in range(count, -1, -1):  # in no order; the one numbered `count` is not annotated
        name = f"COCO_{split}_{number:012d}.jpg"
        write_picture(root / split / name, number)
        images.append({"id": 70 + number, "file_name": name, "height": 48, "width": 60})
        for shape in coco_shapes(number) if number < count else ():
            annotations.append({"id": 1000 + len(annotations), "image_id": 70 + number, "bbox": [], **shape})
    names = {90: "toothbrush", 1: "person", 44: "bottle", 3: "car"}
    categories = [{"id": number, "name": name, "supercategory": "thing"} for number, name in names.items()]
    return {
        "info": {"year": 2014},
        "images": images,
        "licenses": [],
        "annotations": annotations,
        "categories": categories,
    }


def coco_shapes(number: int) -> list[dict]:
    """The second polygon lies within the first in even pictures, and around it in odd ones."""
    small, large = [[20.5, 12, 40, 12, 40, 30.25, 20, 30]], [[8, 5, 50, 5, 52, 40, 30, 44, 8, 40], [1, 1, 6, 1, 6, 6]]
    pair = [(large, 1800.5, 1), (small, 350, 3)] if number % 2 == 0 else [(small, 350, 44), (large, 1800.5, 90)]
    shapes = [
        {"segmentation": outline, "area": area, "iscrowd": 0, "category_id": category}
        for outline, area, category in pair
    ]
    if number % 3 == 0:
        crowd = {"size": [48, 60], "counts": [400, 100, 300, 150, 48 * 60 - 950]}
        shapes.append({"segmentation": crowd, "area": 250, "iscrowd": 1, "category_id": 1})
        spot = np.zeros((48, 60), np.uint8, order="F")
        spot[30:45, 3:25] = 1
        text = rle.encode(spot) | {"size": [48, 60]}
        shapes.append(
            {"segmentation": text | {"counts": text["counts"].decode()}, "area": 330, "iscrowd": 0, "category_id": 44}
        )
    return shapes


@pytest.fixture
def masked_run(tmp_path, packed_masks):
    """A run of this test's own, as `packed_masks` made it."""
    from ktse_dist.run_folder import RunFolder

    shutil.copytree(packed_masks.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="session")
def packed_masks(tmp_path_factory):
    """A run that was not trained; the masks of its first 8 training pictures are the ground truth."""
    from ktse_dist.config_file import load_config
    from ktse_dist.data.index import Index
    from ktse_dist.data.mask_shards import MaskFiles, write_mask_index, write_mask_shard
    from ktse_dist.data.pack.stickers import pack_stickers
    from ktse_dist.data.reader import Reader
    from ktse_dist.inference.formats import encode_confidence, encode_mask
    from ktse_dist.run_folder import RunFolder

    root = tmp_path_factory.mktemp("masked")
    folder = RunFolder(root / "run")
    pack_stickers(root / "data", train=12, val=4)
    keys = ["engine.name=torch", f"data.path={root}/data", "data.crop=64", "data.long_side=[64,96]"]
    config = load_config(None, [*keys, "masks.pictures.train=8", "train.precision=fp32"])
    folder.write_config(config)
    index = Index.open(root / "data", "train")
    reader, palette = Reader(index), np.asarray(index.palette, np.uint8)
    for number, shard in enumerate(index.shards):
        rows = np.flatnonzero(index.samples["shard"][:8] == number).tolist()
        truths = ((index.key(row), reader.truth(row)) for row in rows)
        files = (MaskFiles(key, encode_mask(t, palette), encode_confidence(np.ones(t.shape))) for key, t in truths)
        write_mask_shard(folder.masks / shard.name, files)
    write_mask_index(folder.masks, index)
    (folder.masks / "settings.json").write_text(config.masks.model_dump_json())
    return folder
