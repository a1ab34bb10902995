"""Masks as the published scripts make them, written from docs/method.md 2: a loop that stores every picture's CAMs as a
.npy file, then a loop that reads them, refines them by the CRF and writes a PNG."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from pydensecrf import densecrf
from torch import nn
from torch.nn import functional as F


class Picture(NamedTuple):
    """rgb uint8 [H,W,3]; keys: the classes that it is tagged with, int [n]."""

    name: str
    rgb: np.ndarray
    keys: np.ndarray


@torch.no_grad()
def store_cams(
    backbone: nn.Module, head: nn.Module, pictures: Iterable[Picture], scales: tuple[float, ...], folder: Path
) -> None:
    """FOLDER/NAME.npy: {class: float32 [H,W]} over scales and mirror images, one network pass for each."""
    mean, std = (torch.tensor(list(values))[:, None, None] for values in (backbone.mean, backbone.std))
    for picture in pictures:
        height, width = picture.rgb.shape[:2]
        total = 0
        for scale in scales:
            sides = round(width * scale), round(height * scale)
            pixels = np.asarray(Image.fromarray(picture.rgb).resize(sides, Image.Resampling.BICUBIC), np.float32)
            image = ((torch.from_numpy(pixels).permute(2, 0, 1) - mean) / std)[None]
            for view in (image, image.flip(3)):
                cam = head(backbone(view))[:, 1:]
                cam = F.interpolate(cam, (height, width), mode="bilinear", align_corners=False)[0].relu()
                total = total + (cam if view is image else cam.flip(2))
        total = total / (total.amax((1, 2), keepdim=True) + 1e-5)
        np.save(folder / f"{picture.name}.npy", {int(key): total[key].numpy() for key in picture.keys})


def store_masks(pictures: Iterable[Picture], cams: Path, alpha: float, palette: np.ndarray, folder: Path) -> None:
    """FOLDER/NAME.png from the files of `store_cams`."""
    for picture in pictures:
        stored = np.load(cams / f"{picture.name}.npy", allow_pickle=True).item()
        planes = np.stack([*stored.values()])
        planes = np.concatenate([(1 - planes.max(0, keepdims=True)) ** alpha, planes])
        values = np.array([0, *(key + 1 for key in stored)], np.uint8)
        mask = Image.fromarray(values[refined(picture.rgb, planes).argmax(0)])
        mask.putpalette(palette.tobytes())
        mask.save(folder / f"{picture.name}.png")


def refined(rgb: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Probabilities [K,H,W] after the published CRF."""
    height, width = rgb.shape[:2]
    field = densecrf.DenseCRF2D(width, height, len(planes))
    field.setUnaryEnergy(np.ascontiguousarray(-np.log(np.clip(planes, 1e-5, 1)).reshape(len(planes), -1), np.float32))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(rgb), compat=10)
    return np.array(field.inference(10)).reshape(planes.shape)
