"""How far CAMs and masks of a picture that is seen in tiles are from those of the whole (masks.max_pixels).

Mosaics of stickers, 1920x1200, seen by the network of a finished `ktse train` of them at one scale; both ways in this
process. `same_labels`: share of the pixels whose label is the same, at the threshold 0.3 for CAMs.
    python benchmarks/tiles.py --run runs/demo [--quick] [--save FILE.json]
"""

import argparse
import datetime
import json
import platform
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import torch

from ktse_dist.data.pack.compose import compose_some
from ktse_dist.inference.multiscale import CamNetwork, look, network_of
from ktse_dist.inference.tiles import OVERLAP
from ktse_dist.inference.walked import over_background
from ktse_dist.mask_work import trained_model
from ktse_dist.run_folder import RunFolder

CELL, ACROSS, DOWN = (320, 240), 6, 5  # pixels and number of the stickers of a mosaic
MAX_PIXELS = (1_250_000, 500_000, 250_000)
THRESHOLD = 0.3
TARGETS = {"same_labels_1250000": {"min": 0.98}}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a run of the stickers")
    parser.add_argument("--quick", action="store_true", help="one mosaic instead of three")
    parser.add_argument("--save", type=Path, help="also write the result as JSON to this file")
    options = parser.parse_args(arguments)
    network = network_of(*trained_model(RunFolder(options.run).model)[:2])
    rows = [compared(network, *mosaic(number)) for number in range(1 if options.quick else 3)]
    result = report(rows)
    if options.save:
        options.save.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("benchmark", "device", "figures", "targets", "holds")}))


def mosaic(number: int) -> tuple[np.ndarray, list[int]]:
    """(rgb uint8 [H,W,3], its tags): stickers in rows and columns."""
    pictures = compose_some(0, "val", range(number * ACROSS * DOWN, (number + 1) * ACROSS * DOWN))
    cells = [cv2.resize(simplejpeg.decode_jpeg(picture.jpeg), CELL) for picture in pictures]
    rows = [np.concatenate(cells[start : start + ACROSS], axis=1) for start in range(0, len(cells), ACROSS)]
    return np.concatenate(rows), sorted({label for picture in pictures for label in picture.labels})


def compared(network: CamNetwork, rgb: np.ndarray, tags: list[int]) -> dict[str, dict[str, float]]:
    """For each bound: share of same labels, and how far CAMs are off on average and at most."""
    whole = cams(network, rgb, tags, None)
    found = {}
    for bound in MAX_PIXELS:
        tiled = cams(network, rgb, tags, bound)
        off = np.abs(tiled - whole)
        same = (labels(tiled) == labels(whole)).mean()
        found[str(bound)] = {"same_labels": float(same), "mean": float(off.mean()), "most": float(off.max())}
    return found


def cams(network: CamNetwork, rgb: np.ndarray, tags: list[int], bound: int | None) -> np.ndarray:
    given = np.zeros((1, max(tags) + 1), np.float32)
    given[0, tags] = 1
    return look(network, rgb[None], (1.0,), "opencv", bound).cams(given)[0].cams


def labels(cams: np.ndarray) -> np.ndarray:
    return over_background(cams, THRESHOLD).argmax(0)


def report(rows: list[dict[str, dict[str, float]]]) -> dict:
    figures = {
        f"{name}_{bound}": round(float(np.mean([row[bound][name] for row in rows])), 4)
        for bound in map(str, MAX_PIXELS)
        for name in ("same_labels", "mean", "most")
    }
    return {
        "benchmark": "tiles",
        "device": f"cpu {platform.machine()}, {torch.get_num_threads()} threads",
        "figures": figures,
        "targets": TARGETS,
        "holds": all(figures[name] >= target["min"] for name, target in TARGETS.items()),
        "mosaics": len(rows),
        "size": [CELL[0] * ACROSS, CELL[1] * DOWN],
        "overlap": OVERLAP,
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
